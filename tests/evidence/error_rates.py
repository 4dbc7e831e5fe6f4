"""How often the gate is wrong, on values of real SAEs per document: size, false alarms and power.

The values per document are measured once; documents are then drawn again and again, and every draw is judged exactly as
a run would judge it, by the limit and the error rate that ``kl_gap.kl_sae`` declares.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_bench import controls
from sae_bench.bench import TIERS, Settings
from sae_bench.change import paired_change
from sae_bench.comparison import against_accepted
from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.limits import judged_by_declaration, parse_rule
from sae_bench.loading import Loader
from sae_bench.measurement import Accepted, Ratio
from sae_bench.outcome import Verdict
from sae_bench.properties import load_property
from sae_bench.selfcheck import varied
from sae_bench.spec import SAESpec
from sae_bench.verdict import ALPHA
from tests.evidence.sensitivity import cut_corpus

METRIC = "kl_sae"
DRAWS, COMPARISONS = 2000, 3000
SIZES = (64, 128, 256)
RETRAINED = ("topk", "topk-seed1")
SCALED = {"standard": (0.9,), "topk": (0.95, 0.9)}
"Factors whose KL is measured; changes between them lie on the line through the nearest two."
REPEATS = 4
NOISY = ("kl_isotropic", "kl_covariance", "kl_real_difference", "kl_shuffled_error", "ratio_isotropic")


def measure() -> dict[str, Any]:
    """The three tables."""
    torch.set_grad_enabled(False)
    loader = Loader(Settings(TIERS["full"], batch_size=64))
    sound = {name: _kl(loader, name) for name in SCALED}
    kinds: dict[str, tuple[Ratio, Moved]] = {
        f"scaled decoder of {name}": (sound[name], _towards(sound[name], [_kl(loader, name, each) for each in factors]))
        for name, factors in SCALED.items()
    }
    accepted = sound[RETRAINED[0]]
    kinds[f"{RETRAINED[0]} retrained"] = (accepted, _recentred(accepted, _kl(loader, RETRAINED[1])))
    rng = np.random.default_rng(20261120)
    return {
        "limit": str(_rule().limit),
        "alpha": _alpha(),
        "documents": len(accepted.numerator),
        "concentration": [_concentration(kind, pair[0]) for kind, pair in kinds.items()],
        "size": [_size(kind, *pair, size, rng) for kind, pair in kinds.items() for size in SIZES],
        "power": [_power(kind, *pair, size, rng) for kind, pair in kinds.items() for size in SIZES],
        "false_alarms": _false_alarms(rng),
        "paired_se_at_128": {kind: _paired_se(*pair, 128, rng) for kind, pair in kinds.items()},
    }


def _concentration(kind: str, accepted: Ratio) -> dict[str, Any]:
    """How much of the KL the highest hundredth of the documents holds."""
    values = np.sort(accepted.numerator)[::-1]
    return {"kind": kind, "share_of_top_percent": float(values[: len(values) // 100].sum() / values.sum())}


Moved = Callable[[float], Ratio]
"""The new values when the true change is so many parts of the accepted value."""


def _kl(loader: Loader, name: str, factor: float = 1.0) -> Ratio:
    """KL of one SAE per document of the whole corpus, its decoder scaled."""
    from sae_bench.formats import read_sae

    sae = read_sae(str(BUNDLED.sae(name)))
    spec = _spec(f"{name}-{factor}", lambda: controls.scale_decoder(sae, factor))
    bench = loader.bench(spec)
    tables = bench.collect(lambda batch: {"kl": bench.outcome(batch, bench.reconstruct(batch)).kl})
    loader.forget(spec)
    return Ratio(bench.per_cluster(tables["kl"]), bench.per_cluster(bench.keep))


def _spec(name: str, load: Callable[[], Any], corpus: str = str(BUNDLED.corpus)) -> SAESpec:
    return SAESpec(id=name, load=load, model=str(BUNDLED.model), site=SITE, corpus=corpus)


def _towards(accepted: Ratio, scaled: Sequence[Ratio]) -> Moved:
    """Decoder scales between the measured ones: each document's KL on the line through the nearest two."""
    points = [accepted, *scaled]

    def moved(change: float) -> Ratio:
        goal = accepted.value * (1 + change)
        after = next((row for row in range(1, len(points) - 1) if points[row].value >= goal), len(points) - 1)
        low, high = points[after - 1], points[after]
        share = (goal - low.value) / (high.value - low.value)
        return Ratio(low.numerator + share * (high.numerator - low.numerator), accepted.denominator)

    return moved


def _recentred(accepted: Ratio, other: Ratio) -> Moved:
    """Another seed's values, all multiplied by one number so that the true change is the wanted one."""
    return lambda change: Ratio(other.numerator * (accepted.value * (1 + change) / other.value), other.denominator)


@cache
def _rule() -> Any:
    declared = load_property("kl_gap")
    limit = next(limit for limit in declared.limits if limit.startswith(f"{METRIC}:"))
    return parse_rule(f"kl_gap.{limit}", "property")


@cache
def _alpha() -> float:
    declared = load_property("kl_gap")
    rules = [parse_rule(f"kl_gap.{limit}", "property") for limit in declared.limits]
    return ALPHA / judged_by_declaration(rules, "kl_gap", declared.metrics)


def _verdict(
    now: Ratio, accepted: Ratio, rows: Any, metric: str = METRIC, rule: Any = None, noise: float | None = None
) -> Verdict:
    """What a run over these documents would say; a document drawn twice counts as two."""
    ids = tuple(range(len(rows)))
    new = Ratio(now.numerator[rows], now.denominator[rows])
    old = Ratio(accepted.numerator[rows], accepted.denominator[rows])
    change = paired_change(new, old, ids, ids)
    assert change is not None
    declared = next(each for each in load_property("kl_gap").metrics if each.name == metric)
    held = Accepted(old.value, old, ids, declared.version, noise=noise)
    return against_accepted(declared, change, held, rule or _rule(), _alpha(), f"kl_gap.{metric}").verdict


def _share_failing(now: Ratio, accepted: Ratio, size: int, rng: np.random.Generator, draws: int = DRAWS) -> float:
    documents = len(accepted.numerator)
    fails = [_verdict(now, accepted, rng.integers(documents, size=size)) is Verdict.FAIL for _ in range(draws)]
    return float(np.mean(fails))


def _size(kind: str, accepted: Ratio, moved: Moved, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """The true change is the limit itself: FAIL may come in alpha of the draws."""
    share = _share_failing(moved(_rule().limit.relative), accepted, size, rng)
    return {"kind": kind, "documents": size, "failing": share}


def _power(kind: str, accepted: Ratio, moved: Moved, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """How often a rise of 10% is found, and the smallest rise that is found in 95%, to half a percent."""
    found = _share_failing(moved(0.1), accepted, size, rng, DRAWS // 2)
    steps = np.arange(0.025, 0.6, 0.005)
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if _share_failing(moved(float(steps[middle])), accepted, size, rng, DRAWS // 8) >= 0.95:
            high = middle
        else:
            low = middle + 1
    # The last step was never tried: there, nothing that was tried is found often enough.
    least = round(float(steps[low]), 3) if low < len(steps) - 1 else None
    return {"kind": kind, "documents": size, "found_10_percent": found, "found_in_95": least}


def _paired_se(accepted: Ratio, moved: Moved, size: int, rng: np.random.Generator) -> float:
    """Standard error of the unchanged pair's difference, as a share of the value."""
    now, errors = moved(0.0), []
    for _ in range(200):
        rows, ids = rng.integers(len(accepted.numerator), size=size), tuple(range(size))
        old = Ratio(accepted.numerator[rows], accepted.denominator[rows])
        change = paired_change(Ratio(now.numerator[rows], now.denominator[rows]), old, ids, ids)
        assert change is not None
        assert change.se is not None
        errors.append(change.se / old.value)
    return float(np.mean(errors))


def _false_alarms(rng: np.random.Generator) -> dict[str, Any]:
    """The same SAE measured again with other seeds, batch sizes and orders, in the metrics that draw noise.

    Noise is drawn for each document by itself, so a run may be put together from documents of several: a comparison
    takes every document from two different ones, drawn at random, and the true change is 0 whichever they are. The
    limit is the tightest that a run allows for a metric whose noise was measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpus = cut_corpus(Path(folder) / "corpus.safetensors", 96)
        bench = Loader(Settings(TIERS["smoke"])).bench(_spec("sound", lambda: _sae(RETRAINED[0]), str(corpus)))
        declared = load_property("kl_gap")
        runs = [declared.measure(varied(bench, repeat)).estimates for repeat in range(1, REPEATS + 1)]
    spread = {metric: float(np.ptp([run[metric].value for run in runs])) for metric in NOISY}
    verdicts = []
    for comparison in range(COMPARISONS):
        metric = NOISY[comparison % len(NOISY)]
        found = [run[metric] for run in runs]
        parts = [
            [getattr(each, part) for each in found] for part in ("numerator", "denominator")
        ]  # (2, runs, documents)
        numerator, denominator = map(np.array, parts)
        at = np.arange(numerator.shape[1])
        first = rng.integers(REPEATS, size=len(at))
        second = (first + rng.integers(1, REPEATS, size=len(at))) % REPEATS
        now, accepted = (Ratio(numerator[pick, at], denominator[pick, at]) for pick in (first, second))
        verdicts.append(_verdict(now, accepted, at, metric, parse_rule(f"kl_gap.{metric}:1noise"), spread[metric]))
    counts = {verdict.value: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    fails = verdicts.count(Verdict.FAIL)
    return {"comparisons": COMPARISONS, "limit": "1noise", "metrics": NOISY, "verdicts": counts, "fails": fails}


def _sae(name: str) -> Any:
    from sae_bench.formats import read_sae

    return read_sae(str(BUNDLED.sae(name)))
