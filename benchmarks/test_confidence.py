"""Does the SAE change how sure the model is, rather than what it is sure of?"""

from sae_bench.frontends.testing import property_test

test_confidence = property_test("confidence")
