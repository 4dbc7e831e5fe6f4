"""Spreading items over xdist workers: those of one SAE stay together, so that it is loaded and captured once."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_PARAMETER = re.compile(r"\[([^\[\]]+)\]$")


def group_of(nodeid: str, saes: Collection[str]) -> str:
    """The SAE in an item's brackets; every other item is a group of its own."""
    match = _PARAMETER.search(nodeid)
    return match[1] if match and match[1] in saes else nodeid


def by_sae(config: Any, log: Any, saes: Collection[str]) -> Any:
    """An xdist scheduler that hands out whole SAEs (its own ``loadgroup`` does not group on every pytest)."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class BySAE(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid, frozenset(saes))

    return BySAE(config, log)
