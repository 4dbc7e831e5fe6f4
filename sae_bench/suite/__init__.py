"""Which tests do other repositories run? ``pytest --pyargs sae_bench.suite``, where there are no benchmarks."""
