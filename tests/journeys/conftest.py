"""Fixtures of `tests.support.own_activations`."""

from tests.support.own_activations import activations, forget, small_corpus

__all__ = ["activations", "forget", "small_corpus"]
