"""Does a circuit still work through the reconstruction, and in every kind of prompt?"""

from sae_bench.frontends.testing import property_test

test_circuits = property_test("circuits")
