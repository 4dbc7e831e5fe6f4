"""Does a larger dictionary of the same recipe and sparsity lose less?"""

from sae_bench.frontends.testing import property_test

test_width = property_test("width")
