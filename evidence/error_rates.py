"""How often the gate is wrong, on values of real SAEs per document: size, false alarms and power.

The values per document of the whole corpus are measured once and are what was accepted. Runs are then drawn again and
again: some of its documents, with replacement, judged exactly as a run would judge them, by the limits and the error
rate that ``kl_gap`` declares. A document drawn twice is two documents, which the accepted report holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.stats import norm

from evidence.false_alarms import false_alarms
from evidence.planted_changes import KL, METRICS, Kind, Values, changes
from sae_bench.judge.against_limit import against_accepted
from sae_bench.judge.judge import ALPHA
from sae_bench.judge.limits import judged_by_declaration, parse_rule
from sae_bench.judge.paired_change import Change, paired_change
from sae_bench.judge.verdicts import Verdict
from sae_bench.measure.measurement import Accepted, Ratio
from sae_bench.measure.properties import load_property

EITHER = "kl_gap"
"What finds a change when one of `METRICS` does."
DRAWS = 2000
SIZES = (64, 128, 256)
STEPS = 0.025 * 1.06 ** np.arange(110)
"Rises that are tried, up to +1,430%."
TRIES = 200
"Runs that decide whether 95% find a rise."

Number = TypeVar("Number", int, float)


def measure() -> dict[str, Any]:
    """All tables."""
    torch.set_grad_enabled(False)
    kinds = changes()
    rng, sizes = np.random.default_rng(20261120), [round(SIZES[0] * 2 ** (step / 2)) for step in range(13)]
    return {
        "limits": {metric: str(_rule(metric).limit) for metric in METRICS},
        "alpha": _alpha(),
        "documents": max(len(kind.accepted[KL].numerator) for kind in kinds),
        "draws": DRAWS,
        "concentration": {kind.of: _concentration(kind.accepted[KL]) for kind in kinds},
        "rows": [_row(kind, size, rng) for kind in kinds for size in SIZES],
        "most_documents": sizes[-1],
        "documents_for_10_percent": {
            kind.name: {
                who: _least(sizes, lambda size, kind=kind, who=who: _found(kind, 0.1, size, rng, who))
                for who in (KL, EITHER)
            }
            for kind in kinds
        },
        "false_alarms": false_alarms(),
    }


def _concentration(accepted: Ratio) -> float:
    """How much of the KL the highest hundredth of the documents holds."""
    values = np.sort(accepted.numerator)[::-1]
    return float(values[: len(values) // 100].sum() / values.sum())


@cache
def _rule(metric: str) -> Any:
    declared = load_property("kl_gap")
    limit = next(limit for limit in declared.limits if limit.startswith(f"{metric}:"))
    return parse_rule(f"kl_gap.{limit}", "property")


@cache
def _alpha() -> float:
    declared = load_property("kl_gap")
    rules = [parse_rule(f"kl_gap.{limit}", "property") for limit in declared.limits]
    return ALPHA / judged_by_declaration(rules, "kl_gap", declared.metrics)


def _change(now: Ratio, accepted: Ratio, rows: Any) -> Change:
    """What a run over the documents ``rows`` finds; the accepted report holds each as often as the run does."""
    documents = len(accepted.numerator)
    order = np.argsort(rows, kind="stable")
    _, starts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    copy = np.empty(len(rows), dtype=int)
    copy[order] = np.arange(len(rows)) - np.repeat(starts, counts)
    copies = int(copy.max()) + 1
    whole = Ratio(np.tile(accepted.numerator, copies), np.tile(accepted.denominator, copies))
    ids = (rows + documents * copy).tolist()
    change = paired_change(Ratio(now.numerator[rows], now.denominator[rows]), whole, ids, range(documents * copies))
    assert change is not None
    return change


def _alone(now: Ratio, accepted: Ratio, rows: Any) -> Change:
    """The same, when nothing else was accepted."""
    old, ids = Ratio(accepted.numerator[rows], accepted.denominator[rows]), range(len(rows))
    change = paired_change(Ratio(now.numerator[rows], now.denominator[rows]), old, ids, ids)
    assert change is not None
    return change


def _failing(
    now: Values,
    accepted: Values,
    size: int,
    rng: np.random.Generator,
    draws: int = DRAWS,
    metrics: Sequence[str] = METRICS,
    found: Callable[[Ratio, Ratio, Any], Change] = _change,
) -> dict[str, float]:
    """Share of runs that FAIL, by metric and by any of them."""
    fails = dict.fromkeys((*metrics, EITHER), 0)
    for _ in range(draws):
        rows = rng.integers(len(accepted[KL].numerator), size=size)
        failed = [metric for metric in metrics if _fails(metric, found(now[metric], accepted[metric], rows), accepted)]
        for name in (*failed, *([EITHER] if failed else [])):
            fails[name] += 1
    return {name: count / draws for name, count in fails.items()}


def _fails(metric: str, change: Change, accepted: Values) -> bool:
    old = accepted[metric]
    declared = next(each for each in load_property("kl_gap").metrics if each.name == metric)
    held = Accepted(old.value, old, tuple(range(len(old.numerator))), declared.version)
    outcome = against_accepted(declared, change, held, _rule(metric), _alpha(), f"kl_gap.{metric}")
    return outcome.verdict is Verdict.FAIL


def _row(kind: Kind, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """FAIL when the true change is the limit itself; a rise of 10% of the mean loss; the smallest that 95% find.

    ``fails_alone`` is the first of these when the accepted report holds the same documents only, ``at_best`` the second
    by a normal test that knows what no run can.
    """
    accepted = kind.accepted
    limits = {metric: kind.moved(metric, _rule(metric).limit.relative) for metric in METRICS}
    least = {who: _smallest(kind, size, rng, who) for who in (KL, EITHER)}
    return {
        "kind": kind.name,
        "documents": size,
        "fails_at_the_limit": {
            metric: _failing(now, accepted, size, rng, metrics=(metric,))[metric] for metric, now in limits.items()
        },
        "fails_alone": {
            metric: _failing(now, accepted, size, rng, DRAWS // 4, (metric,), _alone)[metric]
            for metric, now in limits.items()
        },
        "found_10_percent": _failing(kind.moved(KL, 0.1), accepted, size, rng, DRAWS // 2),
        "at_best": _at_best(accepted[KL], kind.moved(KL, 0.1)[KL], size),
        "found_in_95": {who: None if step is None else round(step, 3) for who, step in least.items()},
        "paired_se": {
            metric: _paired_se(old, kind.moved(metric, 0.0)[metric], size, rng) for metric, old in accepted.items()
        },
    }


def _smallest(kind: Kind, size: int, rng: np.random.Generator, who: str) -> float | None:
    steps = STEPS[kind.most >= STEPS].tolist()
    return _least(steps, lambda step: _found(kind, step, size, rng, who))


def _at_best(accepted: Ratio, now: Ratio, size: int) -> float:
    """How often a test of the mean loss that knew its own error, and every accepted value, would find the rise.

    What the accepted values foretell of the change is taken away by a regression over the whole corpus; of what is
    left, a normal mean with the variance it truly has. Where a change has a long tail on its good side, runs without it
    find the rise more often than that, by luck.
    """
    tokens, before = accepted.denominator, accepted.numerator
    exceeds_limit = now.numerator - (1 + _rule(KL).limit.relative) * before
    known = np.column_stack([tokens, before, np.sqrt(before * tokens), before**2])
    known /= known.std(0)
    left = exceeds_limit - known @ np.linalg.lstsq(known, exceeds_limit, rcond=None)[0]
    reach = float(exceeds_limit.mean() / left.std(ddof=known.shape[1])) * size**0.5
    return float(norm.sf(norm.isf(_alpha()) - reach))


def _paired_se(accepted: Ratio, unmoved: Ratio, size: int, rng: np.random.Generator) -> float:
    """Standard error of the change as a share of the value, when the true change is 0; mean of many runs."""
    found = [_change(unmoved, accepted, rng.integers(len(accepted.numerator), size=size)) for _ in range(100)]
    return float(np.mean([(change.se or 0.0) / change.accepted_value for change in found]))


def _found(kind: Kind, rise: float, size: int, rng: np.random.Generator, who: str) -> bool:
    """Whether 95% of runs FAIL; runs end as soon as too many have not."""
    metrics, now = METRICS if who == EITHER else (who,), kind.moved(KL, rise)
    misses = 0.0
    for _ in range(TRIES):
        misses += 1 - _failing(now, kind.accepted, size, rng, 1, metrics)[EITHER]
        if misses > 0.05 * TRIES:
            return False
    return True


def _least(candidates: Sequence[Number], enough: Callable[[Number], bool]) -> Number | None:
    """The first of rising candidates that is enough, as all after it are; None when the last is not."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(candidates[middle]) else (middle + 1, high)
    return candidates[low] if low < len(candidates) else None
