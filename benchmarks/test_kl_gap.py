"""What does the model lose when it reads the reconstruction, and is that more than noise would cost?"""

from sae_bench.frontends.testing import property_test

test_kl_gap = property_test("kl_gap")
