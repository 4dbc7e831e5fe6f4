"""Spell the context of a report, which decides comparability, and its provenance, which explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sae_bench.report.report import Report
from sae_bench.show.rows import properties


def context_line(report: Report) -> str:
    """Return corpus, model, site, precision, documents and intervals, as far as all results agree."""
    return " · ".join(filter(None, [context(report), evidence(report)]))


def context(report: Report) -> str:
    """Return ``corpus 9f31c2e0 · model 607a30d0 · blocks.8.hook_resid_pre · float32``."""
    return " · ".join(filter(None, [_corpora(report), *_models(report), *_hardware(report)]))


def evidence(report: Report) -> str:
    """Return ``128 documents · 98% intervals``."""
    return " · ".join(filter(None, [_documents(report), _confidence(report)]))


def compared(report: Report) -> bool:
    """Return True when any metric is shown with an accepted value."""
    return any(metric.accepted is not None for _, _, result in properties(report) for metric in result.metrics.values())


def different(values: Iterable[Any]) -> list[str]:
    """Return the values that occur, once each, as text."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def flat(tree: Any, path: str = "") -> dict[str, str]:
    """Flatten a nested mapping to dotted paths."""
    if isinstance(tree, Mapping):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}" if path else key).items()}
    if isinstance(tree, list | tuple):
        return {path: ", ".join(map(str, tree))}
    return {path: str(tree)}


def provenance(report: Report) -> list[tuple[str, str]]:
    """Return name and value of everything known about the run."""
    run = report.run
    dirty = {True: " with uncommitted changes", False: "", None: ""}[run.dirty]
    took = None if run.seconds is None else f"{run.seconds:.0f} s"
    narrowed = ", ".join(run.narrowed_by)
    rows: list[tuple[str, str | None]] = [
        ("command", run.command),
        ("commit", None if run.commit is None else run.commit + dirty),
        ("started", run.started),
        ("took", took),
        ("python", run.python),
        ("platform", run.platform),
        ("hardware", ", ".join(f"{key} {value}" for key, value in flat(run.hardware).items())),
        ("packages", ", ".join(f"{key} {value}" for key, value in run.packages.items())),
        ("options", ", ".join(f"{key}={value}" for key, value in flat(run.options).items())),
        ("interrupted", "yes" if run.interrupted else None),
        ("narrowed by", narrowed),
        ("schema", str(report.schema)),
    ]
    return [(name, value) for name, value in rows if value]


def contexts(report: Report) -> dict[str, dict[str, list[str]]]:
    """Return each context field with its values, and each value with the results that have it (``property of sae``)."""
    fields: dict[str, dict[str, list[str]]] = {}
    for sae, name, result in properties(report):
        for field, value in flat(result.context).items():
            fields.setdefault(field, {}).setdefault(value, []).append(f"{name} of {sae}")
    return dict(sorted(fields.items()))


def _contexts(report: Report) -> list[Mapping[str, Any]]:
    return [result.context for _, _, result in properties(report) if result.context]


def _corpora(report: Report) -> str:
    hashes = different(context.get("corpus") for context in _contexts(report))
    if len(hashes) == 1:
        return f"corpus {hashes[0].removeprefix('sha256:')[:8]}"
    return f"{len(hashes)} corpora" if hashes else ""


def _models(report: Report) -> list[str]:
    contexts = _contexts(report)
    models, processing = [], []
    for each in contexts:
        model = each.get("model")
        if isinstance(model, Mapping):
            models.append(str(model.get("weights", model)).removeprefix("sha256:")[:8])
            done = model.get("processing")
            processing.append(", ".join(f"{key}={value}" for key, value in done.items()) if done else "as published")
        elif model is not None:
            models.append(str(model))
    names, sites = different(models), different(each.get("site") for each in contexts)
    texts = [f"model {names[0]}" if len(names) == 1 else f"{len(names)} models"] if names else []
    texts += sites if len(sites) < 2 else [f"{len(sites)} sites"]
    kinds = different(processing)
    if len(kinds) == 1 and kinds[0] != "as published":
        texts.append(f"weights {kinds[0]}")
    return texts + different(each.get("model_dtype") for each in contexts)


def _hardware(report: Report) -> list[str]:
    return different([report.run.hardware.get("accelerator")])


def _documents(report: Report) -> str:
    sizes = sorted({len(result.clusters) for _, _, result in properties(report) if result.clusters})
    if not sizes:
        return ""
    return f"{sizes[0]} documents" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} documents"


def _confidence(report: Report) -> str:
    """Spell the least and the greatest confidence: each property divides its error rate by what it judges."""
    levels = {result.confidence for _, _, result in properties(report) if result.confidence is not None}
    texts = [f"{100 * level:.4g}%" for level in sorted(levels)]
    return f"{' to '.join(dict.fromkeys((texts[0], texts[-1])))} intervals" if texts else ""
