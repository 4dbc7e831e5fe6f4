"""Fixtures of several modules of `tests.support`."""

from tests.support.given_activations import activations, make_bench
from tests.support.simulated_property import gate, sound
from tests.support.tiny_models import corpus, model_folder, tiny_model

__all__ = ["activations", "corpus", "gate", "make_bench", "model_folder", "sound", "tiny_model"]
