"""Fixtures of `tests.support.solved_models`."""

from tests.support.solved_models import bench_of, planted, solved

__all__ = ["bench_of", "planted", "solved"]
