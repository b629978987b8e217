"""What latents mean: their rates, what they have to do with labels and each other, and what flipping them does."""

from __future__ import annotations

from stochcl.downstream.interpretation.information import Information, mutual_information
from stochcl.downstream.interpretation.interventions import Effect, Intervention, intervene
from stochcl.downstream.interpretation.projection import Projection, project
from stochcl.downstream.interpretation.sample import KINDS, Sample
from stochcl.downstream.interpretation.sides import Side, sides
from stochcl.downstream.interpretation.statistics import associations, entropies, strongest, value_counts, weights

__all__ = [
    "KINDS",
    "Effect",
    "Information",
    "Intervention",
    "Projection",
    "Sample",
    "Side",
    "associations",
    "entropies",
    "intervene",
    "mutual_information",
    "project",
    "sides",
    "strongest",
    "value_counts",
    "weights",
]
