"""Read results of SAEBench and of SAELens' evals as a `Report`: to be looked at, never compared with one of ours.

One number has several definitions under one name (explained variance has four), so every metric carries whose formula
it is. Both tools write -1 where they found NaN, and SAELens writes NaN as bare words: neither is a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_bench.errors import StoreError
from sae_bench.report.convert import context_digest
from sae_bench.report.provenance import Provenance, utc
from sae_bench.report.records import MetricResult, PropertyResult, SAEResult
from sae_bench.report.report import Report

FORMULAS = {
    "kl_div_score": "(KL of zero ablation - KL with the SAE) / KL of zero ablation, a mean over batches",
    "ce_loss_score": "(CE of zero ablation - CE with the SAE) / (CE of zero ablation - CE clean), a mean over batches",
    "explained_variance": "1 - residual / variance, with sums over batches; SAEBench up to 0.4 squares a mean instead",
    "explained_variance_legacy": "mean over tokens of 1 - squared error / squared distance from the batch's mean",
    "mse": "mean of the squared error over tokens; before mid-2026 divided by the tokens of a batch",
    "cossim": "mean over tokens of the cosine of activation and reconstruction",
    "l0": "mean number of non-zero codes over tokens",
    "l1": "mean sum of codes over tokens, decoder norms not folded in",
    "l2_ratio": "mean over tokens of reconstruction norm / activation norm",
    "relative_reconstruction_bias": "reconstruction squared norm / inner product with the activation",
}
"Formulas of SAEBench core and SAELens' evals under these names, read in their sources."
_SENTINEL = -1


def read_results(path: Path | str) -> Report:
    """Read the results in a file of SAEBench (one evaluation) or of SAELens' evals (one SAE, or a list of them).

    Raises:
        StoreError: the file is missing, no JSON, or of something else.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} cannot be read as results of SAEBench or SAELens: {error}") from None
    saes: dict[str, dict[str, PropertyResult]] = {}
    started = None
    for each in tree if isinstance(tree, list) else [tree]:
        if not isinstance(each, dict):
            raise StoreError(f"{path} holds a {type(each).__name__} where a result is due")
        if "eval_result_metrics" in each:
            sae, result = _saebench(each, str(path))
            started = each.get("datetime_epoch_millis")
        elif "metrics" in each and "eval_cfg" in each:
            sae, result = _sae_lens(each, str(path))
        else:
            raise StoreError(
                f"{path} is neither a result of SAEBench (it has no eval_result_metrics) nor of SAELens' evals (no "
                f"metrics and eval_cfg)"
            )
        saes.setdefault(sae, {})[result.name] = result
    if not saes:
        raise StoreError(f"{path} holds no result")
    when = utc(started / 1000) if isinstance(started, int | float) else ""
    run = Provenance(commit=None, dirty=None, started=when, command=f"read from {Path(path).name}")
    return Report(run, {sae: SAEResult(properties) for sae, properties in saes.items()})


def _saebench(tree: Mapping[str, Any], where: str) -> tuple[str, PropertyResult]:
    kind = str(tree.get("eval_type_id", "unknown"))
    sae = _id(str(tree.get("sae_lens_release_id") or "saebench"), str(tree.get("sae_lens_id") or "sae"))
    context = {"formulas_of": f"SAEBench {kind}", "config": tree.get("eval_config", {})}
    return sae, _result(f"saebench_{_word(kind)}", f"SAEBench {kind}", tree["eval_result_metrics"], context, where)


def _sae_lens(tree: Mapping[str, Any], where: str) -> tuple[str, PropertyResult]:
    sae = _id(str(tree.get("sae_set") or ""), str(tree.get("sae_id") or tree.get("unique_id") or "sae"))
    version = tree["eval_cfg"].get("library_version", "unknown")
    context = {"formulas_of": f"SAELens evals {version}", "config": tree["eval_cfg"]}
    return sae, _result("sae_lens_evals", f"SAELens evals {version}", tree["metrics"], context, where)


def _result(name: str, owner: str, tree: Any, context: Mapping[str, Any], where: str) -> PropertyResult:
    if not isinstance(tree, Mapping):
        raise StoreError(f"{where}: the metrics are a {type(tree).__name__} where an object is due")
    metrics = {}
    for path, value in _leaves(tree):
        formula = FORMULAS.get(path[-1], "as defined there")
        gone = not math.isfinite(value) or value == _SENTINEL
        metrics[".".join(path)] = MetricResult(
            value=None if gone else float(value),
            unit="",
            better="reported",
            version=1,
            kind="undefined" if gone else "exact",
            reason=f"its tool wrote {value:g}, which means that it found NaN" if gone else "",
            meaning=f"{owner}: {formula}",
        )
    if not metrics:
        raise StoreError(f"{where} holds no number that {owner} has measured")
    plain = json.loads(json.dumps(context, default=str).replace("NaN", "null"))
    note = f"measured by {owner}, by its formulas; not comparable with metrics of the same name here"
    return PropertyResult(
        name,
        1,
        plain,
        context_digest(plain),
        metrics,
        primary_metric=next(iter(metrics)),
        notes=(note,),
        message=note,
        lines=(note,),
    )


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield numbers by their path; a category's name stays, since two categories share names of metrics."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(name)))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, str(name)), float(value)


def _id(*parts: str) -> str:
    return "/".join(word for part in parts for piece in part.split("/") if (word := _word(piece)))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")
