"""Does steering towards a labelled trait work in every question, or through a spurious factor?"""

from sae_bench.frontends.testing import property_test

test_contrast = property_test("contrast")
