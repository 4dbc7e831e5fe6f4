"""How often the gate is wrong, on values of real SAEs per document: size, false alarms and power.

The values per document of the whole corpus are measured once and are what was accepted. Runs are then drawn again and
again: some of its documents, with replacement, judged exactly as a run would judge them, by the limit and the error
rate that ``kl_gap.kl_sae`` declares. A document drawn twice is two documents, which the accepted report holds too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch

from sae_bench import controls
from sae_bench.bench import TIERS, Settings
from sae_bench.change import Change, paired_change
from sae_bench.comparison import against_accepted
from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.limits import judged_by_declaration, parse_rule
from sae_bench.loading import Loader
from sae_bench.measurement import Accepted, Ratio
from sae_bench.outcome import Verdict
from sae_bench.properties import load_property
from sae_bench.spec import SAESpec
from sae_bench.verdict import ALPHA
from tests.evidence.false_alarms import false_alarms

METRIC = "kl_sae"
DRAWS = 2000
SIZES = (64, 128, 256)
SAES = ("standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka")
FACTORS = (0.95, 0.9, 0.7)
"Scales of a decoder whose KL is measured; changes between them lie on the line through the nearest two."
PAIRS = (
    ("topk", "topk-seed1"),
    ("topk", "batchtopk"),
    ("standard", "gated"),
    ("matryoshka", "batchtopk"),
)
"An accepted SAE and another one in its place: of another seed first, then of other recipes."
STEPS = 0.025 * 1.06 ** np.arange(110)
"Rises that are tried, up to +1,430%."
TRIES = 200
"Runs that decide whether 95% find a rise."

Number = TypeVar("Number", int, float)
Moved = Callable[[float], Ratio]
"""The new values when the true change is so many parts of the accepted value."""


def measure() -> dict[str, Any]:
    """All tables."""
    torch.set_grad_enabled(False)
    loader = Loader(Settings(TIERS["full"], batch_size=64))
    names = dict.fromkeys([*SAES, *(name for pair in PAIRS for name in pair)])
    sound = {name: _kl(loader, name) for name in names}
    kinds: dict[str, tuple[Ratio, Moved, float]] = {}
    for name in SAES:
        scaled = [_kl(loader, name, factor) for factor in FACTORS]
        most = max(each.value for each in scaled) / sound[name].value - 1
        kinds[f"decoder of {name} scaled"] = (sound[name], _towards(sound[name], scaled), most)
    for accepted, other in PAIRS:
        moved = _recentred(sound[accepted], sound[other])
        kinds[f"{accepted} replaced by {other}"] = (sound[accepted], moved, np.inf)
    rng, sizes = np.random.default_rng(20261120), [round(SIZES[0] * 2 ** (step / 2)) for step in range(13)]
    return {
        "limit": str(_rule().limit),
        "alpha": _alpha(),
        "documents": len(sound[SAES[0]].numerator),
        "draws": DRAWS,
        "concentration": {name: _concentration(sound[name]) for name in SAES},
        "rows": [
            _row(kind, accepted, moved, most, size, rng)
            for kind, (accepted, moved, most) in kinds.items()
            for size in SIZES
        ],
        "most_documents": sizes[-1],
        "documents_for_10_percent": {
            kind: _least(sizes, lambda size, pair=pair: _found(pair[1](0.1), pair[0], size, rng))
            for kind, pair in kinds.items()
        },
        "false_alarms": false_alarms(),
    }


def _concentration(accepted: Ratio) -> float:
    """How much of the KL the highest hundredth of the documents holds."""
    values = np.sort(accepted.numerator)[::-1]
    return float(values[: len(values) // 100].sum() / values.sum())


def _kl(loader: Loader, name: str, factor: float = 1.0) -> Ratio:
    """KL of one SAE per document of the whole corpus, its decoder scaled."""
    from sae_bench.formats import read_sae

    sae = read_sae(str(BUNDLED.sae(name)))
    spec = SAESpec(
        id=f"{name}-{factor}",
        load=lambda: controls.scale_decoder(sae, factor),
        model=str(BUNDLED.model),
        site=SITE,
        corpus=str(BUNDLED.corpus),
    )
    bench = loader.bench(spec)
    tables = bench.collect(lambda batch: {"kl": bench.outcome(batch, bench.reconstruct(batch)).kl})
    loader.forget(spec)
    return Ratio(bench.per_cluster(tables["kl"]), bench.per_cluster(bench.keep))


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
    """Another SAE's values, all multiplied by one number so that the true change is the wanted one."""
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


def _share_failing(
    now: Ratio,
    accepted: Ratio,
    size: int,
    rng: np.random.Generator,
    draws: int = DRAWS,
    found: Callable[[Ratio, Ratio, Any], Change] = _change,
) -> float:
    metric = next(each for each in load_property("kl_gap").metrics if each.name == METRIC)
    held = Accepted(accepted.value, accepted, tuple(range(len(accepted.numerator))), metric.version)
    fails = 0
    for _ in range(draws):
        change = found(now, accepted, rng.integers(len(accepted.numerator), size=size))
        outcome = against_accepted(metric, change, held, _rule(), _alpha(), f"kl_gap.{METRIC}")
        fails += outcome.verdict is Verdict.FAIL
    return fails / draws


def _row(kind: str, accepted: Ratio, moved: Moved, most: float, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """FAIL when the true change is the limit itself; a rise of 10%; the smallest rise that is found in 95%.

    ``fails_alone`` is the first of these when the accepted report holds the same documents only.
    """
    at_the_limit, steps = moved(_rule().limit.relative), STEPS[most >= STEPS]
    least = _least(steps.tolist(), lambda step: _found(moved(step), accepted, size, rng))
    return {
        "kind": kind,
        "documents": size,
        "fails_at_the_limit": _share_failing(at_the_limit, accepted, size, rng),
        "fails_alone": _share_failing(at_the_limit, accepted, size, rng, DRAWS // 4, _alone),
        "found_10_percent": _share_failing(moved(0.1), accepted, size, rng, DRAWS // 2),
        "found_in_95": None if least is None else round(least, 3),
        "paired_se": _paired_se(accepted, moved(0.0), size, rng),
    }


def _paired_se(accepted: Ratio, unmoved: Ratio, size: int, rng: np.random.Generator) -> float:
    """Standard error of the change as a share of the value, when the true change is 0; mean of many runs."""
    changes = [_change(unmoved, accepted, rng.integers(len(accepted.numerator), size=size)) for _ in range(100)]
    return float(np.mean([(change.se or 0.0) / change.accepted_value for change in changes]))


def _found(now: Ratio, accepted: Ratio, size: int, rng: np.random.Generator) -> bool:
    """Whether 95% of runs FAIL; runs end as soon as too many have not."""
    misses = 0.0
    for _ in range(TRIES):
        misses += 1 - _share_failing(now, accepted, size, rng, 1)
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
