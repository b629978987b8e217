"""Posteriors of all families whose parameters vary over rows and latents."""

import torch

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.posteriors import POSTERIORS, Posterior
from stochcl.encoders.priors import FACTORISED

CASES = [("bernoulli", 2), ("categorical", 2), ("categorical", 5), ("gaussian", 4), ("gaussian", 7)]
"""Families and alphabets, powers of two and others."""


def make_config(family: str, alphabet: int, latents: int = 3) -> EncoderConfig:
    return EncoderConfig(posterior=family, alphabet=alphabet, latents=latents, backbone="features:6", decoder=(4,))


def make_parameters(config: EncoderConfig, rows: int = 4, seed: int = 0) -> torch.Tensor:
    """Parameters in double precision; a Gaussian's are centred on its levels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, POSTERIORS[config.posterior].width(config))
    parameters = torch.randn(shape, generator=generator, dtype=torch.float64)
    if config.posterior == "gaussian":
        parameters[:, : config.latents] -= 0.5
        parameters[:, config.latents :] *= 0.5
    return parameters


def make_prior(config: EncoderConfig, seed: int = 1) -> torch.Tensor:
    initial = FACTORISED[config.posterior].initial(config).double()
    return initial + 0.7 * torch.randn(initial.shape, generator=torch.Generator().manual_seed(seed)).double()


def make_posterior(family: str, alphabet: int, rows: int = 4, seed: int = 0, latents: int = 3) -> Posterior:
    config = make_config(family, alphabet, latents)
    return POSTERIORS[family](make_parameters(config, rows, seed), config)


def make_uniform(posterior: Posterior, seed: int = 2) -> torch.Tensor:
    count = posterior.noise(posterior.config)
    return torch.rand(len(posterior.parameters), count, generator=torch.Generator().manual_seed(seed))
