"""How much of the activation does the reconstruction keep?"""

from sae_bench.frontends.testing import property_test

test_reconstruction = property_test("reconstruction")
