"""Does a second SAE of the same site, trained with another seed, find the same features?"""

from sae_bench.frontends.testing import property_test

test_stability = property_test("stability")
