"""The suite for repositories that have no benchmarks of their own: ``pytest --pyargs sae_bench.suite``."""
