"""The registration of one SAE: its id, the path of its weights, its model and site. Nothing is loaded here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sae_bench.errors import UsageError

CONTROL = "control"
"Tag of SAEs that are wrong on purpose; they pass load checks with any numbers, and are never accepted."
RELATED_FIELDS = ("partner", "next_layers", "family")
"Fields of a registration that name other SAEs."
LABELLED_FIELDS = ("contrast", "concepts", "circuit")
"Fields of a registration that name files of labels."
_ID = re.compile(r"[a-z0-9._-]+(/[a-z0-9._-]+)*")


@dataclass(frozen=True)
class SAESpec:
    """One registered SAE. Fields left at None are taken from the SAE's own config when it is loaded."""

    id: str
    "Id in lower case ``[a-z0-9._/-]``; also the name of its accepted report, ``baselines/<id>.json``."
    path: str | None = None
    "Folder or file on disk, ``hf:repo/sub/folder``, ``sae_lens:release/sae_id`` or ``module:attribute``."
    load: Callable[[], Any] | None = None
    "A function that returns an object with ``encode`` and ``decode``; instead of `path`."
    model: str | None = None
    "Hugging Face folder or name of the language model."
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    "Weight processing of the model, by TransformerLens' names (``fold_ln``, ``center_writing_weights`` ...)."
    site: str | None = None
    "Site that the SAE reads and writes, ``blocks.8.hook_resid_pre``."
    output_site: str | None = None
    "Site that a transcoder writes, if it is another one; its reconstruction is compared with the activation there."
    corpus: str | None = None
    "A pinned corpus file made by ``pytest-sae-bench corpus build``."
    dtype: str | None = None
    "Precision of the SAE's weights; ``float32`` by default."
    include_bos: bool = False
    "Intervene on position 0 and average over it as well (only to replicate studies that did)."
    l0: float | None = None
    "Published L0; `sparsity.l0` must lie within 10% of it."
    tags: tuple[str, ...] = ()
    "Words of your choice, shown in lists."
    partner: str | None = None
    "Path of a second SAE of the same recipe with another seed, for `stability`."
    next_layers: tuple[str, ...] = ()
    "SAEs of later layers of the same model, the nearest first, for `layers`: registered ids or paths."
    family: tuple[str, ...] = ()
    "SAEs of the same site and recipe with dictionaries of other sizes, for `width`: registered ids or paths."
    contrast: str | None = None
    "Labelled dataset for contrast steering; ``NAME_shifted.jsonl`` in the same folder is its shifted variant."
    concepts: str | None = None
    "File of labelled concepts and cycles, which `sae_bench.measure.datasets.concept_file` reads."
    circuit: str | None = None
    "Prompts of a circuit with a right and a wrong answer, for `circuits`."
    known_failures: Mapping[str, str] = field(default_factory=dict)
    "``property.metric`` to the reason why its hard limit is known to fail."
    limits: tuple[str, ...] = ()
    "Limits of this SAE, ``property.metric:LIMIT``; they override the property's, and the ini file overrides them."
    origin: str = "?"
    "Line that registered it, ``file:line``."
    baseline_id: str | None = None
    "Id of the accepted report that judges it, when it replaces another SAE (``--sae ID=TARGET``)."
    command_options: str | None = None
    "Options that choose it, when it was given by target; its id alone does not choose it."
    control: str | None = None
    "Name of the control that is built from it and measured instead of it; reported, never judged."

    def __post_init__(self) -> None:
        for name in ("next_layers", "family"):
            object.__setattr__(self, name, check_list(name, getattr(self, name)))
        if not _ID.fullmatch(self.id):
            raise UsageError(
                f"SAE id {self.id!r} ({self.origin}) must be lower case letters, digits, '.', '_' and '-', "
                f"in parts separated by '/'; for example {_suggest_id(self.id)!r}"
            )
        if any(set(part) == {"."} for part in self.id.split("/")):
            raise UsageError(f"SAE id {self.id!r} ({self.origin}) has a part made of dots only; choose a plain name")
        if (self.path is None) == (self.load is None):
            raise UsageError(f"SAE {self.id!r} ({self.origin}) needs exactly one of path=... and load=...")
        for name, reason in self.known_failures.items():
            if not isinstance(reason, str) or not reason.strip():
                raise UsageError(f"known_failures[{name!r}] of SAE {self.id!r} ({self.origin}) needs a reason")

    @property
    def accepted_id(self) -> str:
        """Id whose accepted report and limits apply."""
        return self.baseline_id or self.id

    @property
    def selection_options(self) -> str | None:
        """Options that choose it in another run; None when ``--sae`` with its id does."""
        if self.control is None:
            return self.command_options
        named = self.command_options or f"--sae '{self.id.removesuffix(f'/{self.control}')}'"
        return f"{named} --sae-controls"

    def as_control(self, name: str) -> SAESpec:
        """Return the control ``name`` of this SAE, a registration of its own without limits or accepted report."""
        return replace(
            self,
            id=f"{self.id}/{name}",
            tags=(*self.tags, CONTROL),
            control=name,
            partner=None,
            next_layers=(),
            family=(),
            l0=None,
            limits=(),
            known_failures={},
            baseline_id=None,
        )

    def baseline_path(self, folder: Path) -> Path:
        """Return the path of the accepted report of this SAE under ``folder``."""
        return folder / f"{self.accepted_id}.json"


def check_list(field: str, paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Return a list of ids or paths as text; a `UsageError` when it is a single one."""
    if isinstance(paths, str | Path):
        raise UsageError(f"{field}={str(paths)!r} must be a list of ids or paths, such as [{str(paths)!r}]")
    return tuple(map(str, paths))


def _suggest_id(text: str) -> str:
    slug = re.sub(r"[^a-z0-9._/-]+", "-", text.lower()).strip("-/")
    return re.sub(r"/{2,}", "/", slug) or "my-sae"


def id_from_target(target: str) -> str:
    """Return the id of an unregistered SAE: the last component of its path, spelled as an id."""
    return _suggest_id(re.split(r"[/:]", target.rstrip("/"))[-1])
