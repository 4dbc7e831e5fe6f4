"""Places in a model where an SAE reads and writes, by TransformerLens hook name.

Module names of Hugging Face models (``layers.10``, ``model.layers.3.mlp``, ``transformer.h.3.attn``) are converted:
a block's *output* is the residual after it, so ``layers.10`` is ``blocks.10.hook_resid_post``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sae_bench.errors import UsageError, near

KINDS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
)
"Sites the engine can replace without running the blocks before them."

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.(.+)")
_HUGGING_FACE = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.([a-z_]+))?")
_MODULE_KINDS = {
    None: "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}


@dataclass(frozen=True, order=True)
class Site:
    """One hook point of one block."""

    layer: int
    kind: str
    "One of `KINDS`."

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.kind}"


def parse_site(name: str) -> Site:
    """The site that ``name`` means, in TransformerLens' or Hugging Face's spelling; unknown is a `UsageError`."""
    if match := _TRANSFORMER_LENS.fullmatch(name):
        layer, kind = int(match[1]), match[2]
        if kind in KINDS:
            return Site(layer, kind)
        raise UsageError(f"unknown site {name!r}{near(name, [f'blocks.{layer}.{known}' for known in KINDS])}")
    if (match := _HUGGING_FACE.fullmatch(name)) and match[2] in _MODULE_KINDS:
        return Site(int(match[1]), _MODULE_KINDS[match[2]])
    raise UsageError(
        f"unknown site {name!r}: a site is a hook name such as 'blocks.8.hook_resid_pre' ({', '.join(KINDS)}) "
        f"or a module name such as 'model.layers.8' or 'model.layers.8.mlp'"
    )
