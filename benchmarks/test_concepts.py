"""Is a labelled concept, upper case first, a direction at the site, and does the SAE keep it?"""

from sae_bench.frontends.testing import property_test

test_concepts = property_test("concepts")
