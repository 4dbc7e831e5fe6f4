"""Fixtures of `tests.support.own_activations`."""

from tests.support.own_activations import activations, contract, forget

__all__ = ["activations", "contract", "forget"]
