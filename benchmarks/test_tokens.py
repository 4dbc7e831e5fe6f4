"""On which tokens does the model lose more than noise would cost, once chance is taken out?"""

from sae_bench.frontends.testing import property_test

test_tokens = property_test("tokens")
