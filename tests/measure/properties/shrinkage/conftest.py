"""Fixtures of `tests.support.given_activations`."""

from tests.support.given_activations import activations, make_bench

__all__ = ["activations", "make_bench"]
