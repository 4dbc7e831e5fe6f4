"""Are cyclic concepts circles at the site, and how much of the circle does the SAE keep?"""

from sae_bench.frontends.testing import property_test

test_circles = property_test("circles")
