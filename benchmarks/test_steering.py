"""Does adding a feature raise what the feature means, in every prompt and more than noise of the same size does?"""

from sae_bench.frontends.testing import property_test

test_steering = property_test("steering")
