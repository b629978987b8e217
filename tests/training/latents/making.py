"""Features with structure, made here: clusters with low-rank spread."""

import numpy as np
import torch

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.training.latents import LatentStage
from stochcl.training.options import LatentOptions

WIDTH = 12


def make_features(rows=1500, *, seed=0):
    """Clusters of low-rank noise, shape (rows, 12), and the cluster of each."""
    rng = np.random.default_rng(7)  # the clusters are the same whatever the seed
    centres = rng.normal(0, 1.0, (6, WIDTH))
    loadings = rng.normal(0, 0.4, (3, WIDTH))
    rng = np.random.default_rng(seed)
    cluster = rng.integers(6, size=rows)
    spread = rng.normal(size=(rows, 3)) @ loadings
    features = centres[cluster] + spread + rng.normal(0, 0.05, (rows, WIDTH))
    return features.astype(np.float32), cluster


def make_encoder(**config):
    torch.manual_seed(0)
    given = {"backbone": f"features:{WIDTH}", "latents": 16, "decoder": (24,)} | config
    encoder = Encoder(EncoderConfig(**given)).eval()
    encoder.norm.fit(make_features()[0])
    return encoder


def make_stage(encoder=None, *, rows=800, **options):
    """Of so few rows that codes are coded by a table; from 1,000 on a network is fitted, which takes seconds."""
    encoder = encoder or make_encoder()
    features, held = (
        encoder.features(torch.from_numpy(make_features(n, seed=s)[0])).numpy() for n, s in ((rows, 1), (600, 2))
    )
    given = {"steps": 150, "batch_size": 64, "prior_hidden": 8, "lr": 4e-2} | options
    return LatentStage(encoder, features, held, LatentOptions(**given))
