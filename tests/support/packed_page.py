"""What the script of the page unpacks."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

from sae_bench.show.html.page import PACKED


def unpacked(page: str, name: str) -> Any:
    """The tree that the element ``name`` of a page holds: ``figures`` or ``table``."""
    found = re.search(rf"<script type=(\S+) id={name}>(.*?)</script>", page, re.DOTALL)
    assert found, f"the page holds no {name}"
    return json.loads(gzip.decompress(base64.b64decode(found[2])) if found[1] == PACKED else found[2])
