"""One test per property; a new property is included without a change here."""

from sae_bench.frontends.testing import property_test
from sae_bench.measure.properties import property_names

globals().update({f"test_{name}": property_test(name) for name in property_names()})
