"""``python -m sae_bench`` is the console script ``pytest-sae-bench``."""

import sys

from sae_bench.frontends.cli import main

sys.exit(main())
