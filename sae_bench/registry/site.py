"""Sites of a model, which SAEs read and write, by TransformerLens hook name.

Module names of Hugging Face models (``layers.10``, ``model.layers.3.mlp``, ``transformer.h.3.attn``) are converted by
one table, `MODULES`: a block's *output* is the residual after it, so ``layers.10`` is ``blocks.10.hook_resid_post``;
its *input* is ``blocks.10.hook_resid_pre``. One head of ``attn.hook_z`` is ``blocks.3.attn.hook_z[5]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sae_bench.errors import UsageError, near

KINDS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
    "attn.hook_out",
    "mlp.hook_in",
    "mlp.hook_post",
    "mlp.hook_out",
)
"Sites the engine can replace without running the blocks before them."

INPUTS = ("ln2.hook_normalized",)
"Sites that a transcoder may read but no intervention can change: the model does not read their hook back."

End: TypeAlias = Literal["input", "output"]

MODULES: dict[tuple[str, End], str] = {
    ("", "input"): "hook_resid_pre",
    ("", "output"): "hook_resid_post",
    ("mlp", "input"): "mlp.hook_in",
    ("mlp", "output"): "mlp.hook_out",
    ("attn", "output"): "attn.hook_out",
    ("self_attn", "output"): "attn.hook_out",
    ("attention", "output"): "attn.hook_out",
    ("attn.c_proj", "input"): "attn.hook_z",
    ("self_attn.o_proj", "input"): "attn.hook_z",
    ("attention.dense", "input"): "attn.hook_z",
    ("mlp.c_proj", "input"): "mlp.hook_post",
    ("mlp.down_proj", "input"): "mlp.hook_post",
    ("mlp.dense_4h_to_h", "input"): "mlp.hook_post",
    # Gemma 2 and 3 norm what enters and what leaves the MLP; TransformerLens' mlp_out is what is added to the residual.
    ("pre_feedforward_layernorm", "output"): "mlp.hook_in",
    ("post_feedforward_layernorm", "output"): "hook_mlp_out",
}
"Module of a block and its end, in Hugging Face's names, to the kind of site; the block itself is ''."

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d{1,6})\.([a-z0-9_.]+?)(?:\[(\d{1,6})\])?")
_MODULE = re.compile(
    r"(?:[a-z_]+\.)*?(?:layers|h|blocks)\.(\d{1,6})(?:\.(?!(?:in|out)put$)([a-z0-9_.]+?))?(?:\.(input|output))?"
)
_HIDDEN_STATES = re.compile(r"hidden_states\[(\d{1,6})\]")


@dataclass(frozen=True, order=True)
class Site:
    """One hook point of one block."""

    layer: int
    kind: str
    "One of `KINDS`, or of `INPUTS` where something is only read."
    head: int | None = None
    "One head of ``attn.hook_z``; None for all heads, concatenated."

    def __str__(self) -> str:
        head = "" if self.head is None else f"[{self.head}]"
        return f"blocks.{self.layer}.{self.kind}{head}"


def parse_site(name: str, end: End = "output") -> Site:
    """Parse a site in TransformerLens' or Hugging Face's spelling; an unknown one is a `UsageError`.

    ``end`` is the end of the module when the name has none (``layers.3.mlp.input`` has one). Entry n of Hugging Face's
    ``hidden_states[n]`` is the input of block n.
    """
    if match := _TRANSFORMER_LENS.fullmatch(name):
        return _hook(name, int(match[1]), match[2], match[3])
    if match := _HIDDEN_STATES.fullmatch(name):
        return Site(int(match[1]), "hook_resid_pre")
    if (match := _MODULE.fullmatch(name)) and (kind := _module_kind(match[2] or "", match[3] or end)):
        return Site(int(match[1]), kind)
    raise UsageError(
        f"unknown site {name!r}: a site is a hook name such as 'blocks.8.hook_resid_pre' ({', '.join(KINDS)}) "
        f"or a module name such as 'model.layers.8' or 'model.layers.8.mlp'"
    )


def _hook(name: str, layer: int, kind: str, head: str | None) -> Site:
    if kind == "hook_mlp_in":
        raise UsageError(
            f"site {name!r} is ambiguous: give 'blocks.{layer}.mlp.hook_in' for the input of the MLP after its norm, "
            f"or 'blocks.{layer}.hook_resid_mid' for the residual before that norm"
        )
    if kind not in KINDS + INPUTS:
        raise UsageError(f"unknown site {name!r}{near(name, [f'blocks.{layer}.{known}' for known in KINDS])}")
    if head is not None and kind != "attn.hook_z":
        raise UsageError(f"site {name!r} names a head, which only attn.hook_z has; leave out [{head}]")
    return Site(layer, kind, None if head is None else int(head))


def _module_kind(module: str, end: str) -> str | None:
    return next((kind for (known, of), kind in MODULES.items() if known == module and of == end), None)
