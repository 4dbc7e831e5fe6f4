"""The ``--sae`` option: choose registered SAEs by id or glob, and add SAEs by target."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain

from sae_bench.errors import UsageError, near
from sae_bench.registry.spec import SAESpec, id_from_target

TARGET_FIELDS = ("model", "site", "output_site", "corpus")
"Fields of `SAESpec` that options give for SAEs named by target: ``--sae-model`` and so on."

_TARGET = re.compile(r"(\.{0,2}/|hf:|sae_lens:)|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


def select_saes(
    arguments: Sequence[str], target_fields: Mapping[str, str | None], registered: Mapping[str, SAESpec]
) -> list[SAESpec]:
    """Return the SAEs that the ``--sae`` options name: registered ones in their order, then targets in the order given.

    ``target_fields`` has a value, or None, for each of `TARGET_FIELDS`.

    Raises:
        UsageError: a glob or id matches nothing, two targets share an id, or a target option has no target.
    """
    fields = {name: value for name, value in target_fields.items() if value is not None}
    globs = [text for text in arguments if not text.startswith("!") and not _is_target(text)]
    excluded = [text[1:] for text in arguments if text.startswith("!")]
    targets = [_from_target(text, fields, registered) for text in arguments if _is_target(text)]
    for pattern in (*globs, *excluded):
        if not any(fnmatchcase(name, pattern) for name in registered):
            raise UsageError(f"--sae {pattern!r} matches no registered SAE{near(pattern, registered)}")
    if fields and not targets:
        raise UsageError(
            f"{', '.join(map(_option, fields))} apply to SAEs given by target, but --sae gives none; add --sae TARGET, "
            f"for example --sae ./my-sae"
        )
    patterns = globs or ([] if targets else ["*"])
    chosen = [
        registered[name]
        for name in registered
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatchcase(name, pattern) for pattern in excluded)
    ]
    ids = [spec.id for spec in (*chosen, *targets)]
    for repeated in {name for name in ids if ids.count(name) > 1}:
        raise UsageError(f"two of the chosen SAEs have the id {repeated!r}; register one of them under another id")
    return [*chosen, *targets]


def _is_target(text: str) -> bool:
    return bool(_TARGET.match(text)) or "=" in text


def _option(field: str) -> str:
    return f"--sae-{field.replace('_', '-')}"


def _from_target(text: str, fields: Mapping[str, str], registered: Mapping[str, SAESpec]) -> SAESpec:
    name, equals, target = text.partition("=")
    if _TARGET.match(text) or not equals:
        options = chain.from_iterable((_option(field), value) for field, value in fields.items())
        command_options = shlex.join(["--sae", text, *options])
        return SAESpec(id_from_target(text), path=text, origin="--sae", command_options=command_options, **fields)  # type: ignore[arg-type]
    if name not in registered:
        raise UsageError(f"--sae {text!r}: {name!r} is not registered{near(name, registered)}")
    if not _TARGET.match(target):
        raise UsageError(f"--sae {text!r}: a target starts with './', '/', 'hf:', 'sae_lens:' or is 'module:attribute'")
    command_options = shlex.join(["--sae", text])
    return replace(
        registered[name],
        path=target,
        load=None,
        baseline_id=name,
        origin="--sae",
        command_options=command_options,
    )
