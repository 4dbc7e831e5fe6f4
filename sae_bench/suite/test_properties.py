"""Every property of the package, each as one test; a new property is picked up by itself."""

from sae_bench.properties import property_names
from sae_bench.testing import property_test

globals().update({f"test_{name}": property_test(name) for name in property_names()})
