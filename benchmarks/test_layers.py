"""Is a feature finished at its layer, and do later layers keep it?"""

from sae_bench.frontends.testing import property_test

test_layers = property_test("layers")
