"""Steering: what a model says when something is added to its activation at the last position of a prompt."""

from __future__ import annotations

from sae_bench.prompts import Prompt
from sae_bench.steering.choice import SELECTION_DOCUMENTS, Choice, choose_features, firing_counts, halves
from sae_bench.steering.directions import covariance_directions, other_features, random_directions
from sae_bench.steering.last_position import LastPosition
from sae_bench.steering.responses import Responses, respond
from sae_bench.steering.scores import input_scores, output_scores
from sae_bench.steering.targets import Targets, find_targets, mean_differences

__all__ = [
    "SELECTION_DOCUMENTS",
    "Choice",
    "LastPosition",
    "Prompt",
    "Responses",
    "Targets",
    "choose_features",
    "covariance_directions",
    "find_targets",
    "firing_counts",
    "halves",
    "input_scores",
    "mean_differences",
    "other_features",
    "output_scores",
    "random_directions",
    "respond",
]
