"""Upgrade the JSON of older reports and accepted files to the schema of today, when they are read.

Schema 1 held limits, excuses and load checks as sentences. This is the only place that takes those sentences apart.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sae_bench.errors import StoreError, UsageError
from sae_bench.judge.judge import SAME_WEIGHTS
from sae_bench.judge.limits import SOURCES, Limit, parse_limit
from sae_bench.report.json import plain

Tree = dict[str, Any]
_RENAMED = {"headline": "primary_metric", "beyond": "exceeds_limit"}
_UNMEASURED = "was not measured"
_ERROR = re.compile(r".+? could not be measured: (.*)", re.DOTALL)
_COMMAND = re.compile(r" {2}(reproduce|decide|accept|if wanted|if removed|if lost): +(.*)", re.DOTALL)
_DIFFERENCE = re.compile(r" {2}(\S+): (.*) now, (.*) accepted", re.DOTALL)
_DRIFT = re.compile(r"drifted by (\S+) since the anchor (\S+), beyond twice the limit")
_KNOWN = re.compile(r".*; known: (.*)", re.DOTALL)
_NOT_COMPARABLE = re.compile(r".* cannot be compared with its accepted value: (.*)", re.DOTALL)
_STALE = re.compile(r".*, and yet known_failures names it \((.*)\): remove this entry", re.DOTALL)
_LOAD_CHECK = "load_check."
_OF_RUN = {"again": "rerun_command", "interrupted": "interrupted", "narrowed_by": "narrowed_by"}
"Options of a run that are fields of their own since schema 2."


def upgraded(tree: Tree, schema: int, where: str) -> Tree:
    """Return a report's JSON tree in the schema of today; ``where`` begins the `StoreError` of a malformed one."""
    if schema > 1:
        return tree
    try:
        saes = {sae: _sae(result) for sae, result in tree["saes"].items()}
        return {**tree, "schema": 2, "run": _run(tree["run"]), "saes": saes}
    except UsageError as error:
        raise StoreError(f"{where}: {error}; restore it from git, or measure and accept again") from None
    except (AttributeError, KeyError, TypeError):
        # Not of the shape of any report: the decoder names the field that is wrong.
        return tree


def _run(run: Tree) -> Tree:
    options = dict(run.get("options", {}))
    fields = {new: options.pop(old) for old, new in _OF_RUN.items() if old in options}
    return {**run, **({"options": options} if options else {}), **fields} if fields else run


def _sae(result: Tree) -> Tree:
    provenance = dict(result.get("provenance", {}))
    checks = [_load_check(name, provenance.pop(name)) for name in list(provenance) if name.startswith(_LOAD_CHECK)]
    upgraded = {**result, "properties": {name: _property(each) for name, each in result["properties"].items()}}
    return {**upgraded, "provenance": provenance, "load_checks": checks} if checks else upgraded


def _load_check(name: str, text: str) -> Tree:
    word, _, rest = text.partition(": ")
    return {"name": name.removeprefix(_LOAD_CHECK), "ok": word == "ok", "text": rest}


def _property(result: Tree) -> Tree:
    new = _renamed(result)
    new["metrics"] = {name: _metric(each) for name, each in result["metrics"].items()}
    lines = result.get("lines", [])
    if not lines:
        return new
    new["message"] = lines[0]
    new["decided_by"] = next((name for name, each in new["metrics"].items() if each.get("message") == lines[0]), "")
    if not new["metrics"] and result.get("verdict") == "ERROR":
        error = _ERROR.fullmatch(lines[0])
        new["error"] = error[1] if error else lines[0]
    new["commands"] = [{"purpose": match[1], "text": match[2]} for line in lines if (match := _COMMAND.fullmatch(line))]
    new["differences"] = list(_differences(lines))
    return new


def _differences(lines: list[str]) -> Iterator[Tree]:
    for line in lines:
        if match := _DIFFERENCE.fullmatch(line):
            yield {"field": match[1], "now": _literal(match[2]), "accepted": _literal(match[3])}


def _literal(text: str) -> Any:
    """Return the JSON value that a difference spelled; its text where that was cut."""
    try:
        return plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _metric(result: Tree) -> Tree:
    new = _renamed(result)
    limits, sources = _texts(new.pop("limit", "")), _texts(new.pop("limit_from", ""))
    new["limits"] = [
        _limit(text, sources[min(row, len(sources) - 1)] if sources else "property") for row, text in enumerate(limits)
    ]
    overruled: Mapping[str, str] = new.pop("overruled", {})
    new["overruled"] = [_limit(text, source) for source, texts in overruled.items() for text in _texts(texts)]
    new["of_weights"] = any(limit["source"] == "unchanged weights" for limit in new["limits"])
    if result["kind"] == "undefined":
        new.update(_without_value(result.get("reason", "")))
    message, verdict = result.get("message", ""), result.get("verdict")
    if verdict == "KNOWN" and (known := _KNOWN.fullmatch(message)):
        new["known_reason"] = known[1]
    if verdict == "FAIL" and (stale := _STALE.fullmatch(message)):
        new.update(known_reason=stale[1], stale_known_failure=True)
    if verdict == "FAIL" and (drift := _DRIFT.search(message)):
        new["drift"] = {"change": float(drift[1]), "anchor": float(drift[2])}
    if verdict == "INCOMPARABLE" and (other := _NOT_COMPARABLE.fullmatch(message)):
        new["not_comparable"] = other[1]
    return new


def _without_value(reason: str) -> Tree:
    if reason == _UNMEASURED:
        return {"kind": "unmeasured"}
    short, _, detail = reason.partition(": ")
    return {"reason": short, "detail": detail}


def _texts(joined: str) -> list[str]:
    return [text for text in joined.split("; ") if text]


def _limit(text: str, source: str) -> Tree:
    limit: Limit = parse_limit(text)
    if source == "property" and limit == SAME_WEIGHTS:
        source = "unchanged weights"
    known = source if source in SOURCES else "property"
    tree: Tree = plain(limit)
    return {**tree, "source": known}


def _renamed(tree: Tree) -> Tree:
    return {_RENAMED.get(name, name): value for name, value in tree.items()}
