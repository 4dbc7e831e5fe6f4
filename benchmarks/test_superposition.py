"""How much do features that are active together disturb each other, and do codes scale with the activation?"""

from sae_bench.frontends.testing import property_test

test_superposition = property_test("superposition")
