"""Fixtures of `tests.support.stream_benches`."""

from tests.support.stream_benches import make_bench, own_cache

__all__ = ["make_bench", "own_cache"]
