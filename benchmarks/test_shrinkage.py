"""Is the reconstruction too short, uniformly or feature by feature, and what does it cost?"""

from sae_bench.frontends.testing import property_test

test_shrinkage = property_test("shrinkage")
