"""Timings of every SAE, for ``-k speed`` and pytest-benchmark's own options."""

from sae_bench.frontends.testing import speed_test

test_speed = speed_test()
