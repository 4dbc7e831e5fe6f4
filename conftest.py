"""Registers the SAEs that `pytest benchmarks/` measures in this repository: the bundled demo."""

from sae_bench.demo import register_demo

register_demo()
