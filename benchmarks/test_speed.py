"""How many tokens a second does the SAE encode and decode, beside the bare matrix product of the same shape?"""

from sae_bench.frontends.testing import speed_test

test_speed = speed_test()
