"""Comparisons of an SAE with itself, measured with other seeds, batch sizes and orders: none may FAIL."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from evidence.corpora import cut_corpus
from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.judge.against_limit import against_accepted
from sae_bench.judge.judge import ALPHA
from sae_bench.judge.limits import judged_by_declaration, parse_rule
from sae_bench.judge.paired_change import paired_change
from sae_bench.judge.verdicts import LimitOutcome
from sae_bench.measure.measurement import Accepted, Measurement, Ratio
from sae_bench.measure.properties import load_property
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.run.noise import REPEATS, noise, varied_bench

COMPARISONS, DOCUMENTS, MEASURED = 3000, 64, 4
"Comparisons; documents of a run; measurements that runs are put together from."
METRICS = ("kl_isotropic", "kl_covariance", "kl_real_difference", "kl_shuffled_error", "ratio_isotropic")
SAE = "topk"


def false_alarms() -> dict[str, Any]:
    """Verdicts at the limit ``1noise``, by the noise that ``--sae-selfcheck`` would have recorded.

    Noise is drawn for each document by itself, so a run may be put together from documents of several measurements:
    a comparison takes every document from two different ones, drawn at random, and the true change is 0 whichever
    they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpus = cut_corpus(Path(folder) / "corpus.safetensors", DOCUMENTS)
        spec = SAESpec(id="sound", path=str(BUNDLED.sae(SAE)), model=str(BUNDLED.model), site=SITE, corpus=str(corpus))
        bench = Loader(Settings(TIERS["smoke"], documents=DOCUMENTS)).bench(spec)
        declared = load_property("kl_gap")
        runs = [declared.measure(varied_bench(bench, repeat)) for repeat in range(MEASURED)]
    rules = [parse_rule(f"kl_gap.{limit}", "property") for limit in declared.limits]
    alpha = ALPHA / judged_by_declaration(rules, "kl_gap", declared.metrics)
    rng = np.random.default_rng(20261120)
    verdicts: list[str] = []
    for comparison in range(COMPARISONS):
        metric = METRICS[comparison % len(METRICS)]
        checked = [runs[row] for row in rng.choice(MEASURED, size=1 + REPEATS, replace=False)]
        found = _compared(metric, *_put_together(runs, metric, rng), noise(checked, metric, alpha), alpha)
        verdicts.append(f"{found.verdict} beyond" if found.exceeds_limit else str(found.verdict))
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    return {"comparisons": COMPARISONS, "limit": "1noise", "metrics": METRICS, "verdicts": counts}


def _put_together(runs: list[Measurement], metric: str, rng: np.random.Generator) -> tuple[Ratio, Ratio]:
    """Two measurements whose documents come from two different ones of ``runs``, each drawn by itself."""
    found = [run.estimates[metric] for run in runs]
    numerator = np.array([each.numerator for each in found])
    denominator = np.array([each.denominator for each in found])
    at = np.arange(numerator.shape[1])
    first = rng.integers(len(runs), size=len(at))
    second = (first + rng.integers(1, len(runs), size=len(at))) % len(runs)
    now, accepted = (Ratio(numerator[pick, at], denominator[pick, at]) for pick in (first, second))
    return now, accepted


def _compared(metric: str, now: Ratio, accepted: Ratio, moves: float | None, alpha: float) -> LimitOutcome:
    ids = tuple(range(len(now.numerator)))
    change = paired_change(now, accepted, ids, ids)
    assert change is not None
    declared = next(each for each in load_property("kl_gap").metrics if each.name == metric)
    held = Accepted(accepted.value, accepted, ids, declared.version, noise=moves)
    return against_accepted(declared, change, held, parse_rule(f"kl_gap.{metric}:1noise"), alpha, f"kl_gap.{metric}")
