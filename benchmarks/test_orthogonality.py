"""Is the dictionary made of near-copies, and do its features crowd around a few, compared with random directions?"""

from sae_bench.frontends.testing import property_test

test_orthogonality = property_test("orthogonality")
