"""Does the SAE behave like one on any input: finite, deterministic, one token at a time?"""

from sae_bench.frontends.testing import property_test

test_contract = property_test("contract")
