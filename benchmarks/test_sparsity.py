"""How many features fire, how often, and are some of them always on?"""

from sae_bench.frontends.testing import property_test

test_sparsity = property_test("sparsity")
