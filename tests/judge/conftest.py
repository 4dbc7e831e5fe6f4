"""Fixtures of `tests.support.simulated_property`."""

from tests.support.simulated_property import gate, sound

__all__ = ["gate", "sound"]
