"""The table of verdicts, row by row: what leads to it, what the pytest item does, which exit code it gives alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from sae_bench.judge.verdicts import SEVERITY, PropertyVerdict, Verdict, exit_code, worst_exit
from sae_bench.measure.measurement import Exact, Measurement, Ratio, Undefined

# verdict, exceeds the limit, exit code alone, under --sae-strict
TABLE = [
    (Verdict.PASS, False, 0, 0),
    (Verdict.IMPROVED, False, 0, 0),
    (Verdict.KNOWN, False, 0, 0),
    (Verdict.UNDEFINED, False, 0, 0),
    (Verdict.NEW, False, 0, 11),
    (Verdict.INCONCLUSIVE, False, 0, 11),
    (Verdict.INCONCLUSIVE, True, 11, 11),
    (Verdict.FAIL, True, 1, 1),
    (Verdict.INCOMPARABLE, False, 11, 11),
    (Verdict.MISSING, False, 11, 11),
    (Verdict.ERROR, False, 1, 1),
]


def _item(verdict: Verdict, exceeds_limit: bool, strict: bool = False) -> PropertyVerdict:
    return PropertyVerdict(
        property="kl_gap", sae="demo/topk", verdict=verdict, exceeds_limit=exceeds_limit, message="text", strict=strict
    )


def test_the_table_is_whole() -> None:
    assert {row[0] for row in TABLE} == set(Verdict) == set(SEVERITY)


@pytest.mark.parametrize(("verdict", "exceeds_limit", "code", "strict_code"), TABLE)
def test_each_row(verdict: Verdict, exceeds_limit: bool, code: int, strict_code: int) -> None:
    assert exit_code(verdict, exceeds_limit, strict=False) == code
    assert exit_code(verdict, exceeds_limit, strict=True) == strict_code
    assert _item(verdict, exceeds_limit).fails == (code != 0)
    assert _item(verdict, exceeds_limit, strict=True).fails == (strict_code != 0)
    assert _item(verdict, exceeds_limit).exit_code == code
    assert _item(verdict, exceeds_limit, strict=True).exit_code == strict_code


@pytest.mark.parametrize("strict", [False, True])
def test_sessions_end_with_the_worst_code(strict: bool) -> None:
    rank = {0: 0, 11: 1, 1: 2}
    for first, second in product(TABLE, TABLE):
        items = [_item(first[0], first[1], strict), _item(second[0], second[1], strict)]
        codes = [row[3] if strict else row[2] for row in (first, second)]
        assert worst_exit(item.exit_code for item in items) == max(codes, key=rank.__getitem__)


def test_nothing_measured_is_5() -> None:
    assert worst_exit([]) == 5
    assert worst_exit([0, 11]) == 11
    assert worst_exit([0, 0]) == 0


def _worsened(gate, sound: Measurement, factor: float, noise: float = 0.0) -> Measurement:
    kl = sound.estimates["kl_sae"]
    assert isinstance(kl, Ratio)
    return Measurement({**sound.estimates, "kl_sae": gate.scaled(kl, factor, noise)}, sound.clusters)


def _at(gate, sound: Measurement, share: float, error: float) -> Measurement:
    """kl_sae changed by exactly ``share``, with a paired standard error of ``error`` of the accepted value."""
    kl = sound.estimates["kl_sae"]
    assert isinstance(kl, Ratio)
    size = len(kl.numerator)
    noise = np.tile([1.0, -1.0], size // 2) * error * math.sqrt(size - 1) * kl.value
    noise -= noise.mean()
    return Measurement(
        {**sound.estimates, "kl_sae": Ratio(kl.numerator * (1 + share) + noise * kl.denominator, kl.denominator)},
        sound.clusters,
    )


# The limit is 5%; at alpha = .01 / 5 and 63 degrees of freedom t is 2.99.
EDGES = [
    (0.0, 0.01, Verdict.PASS, False),
    (0.03, 0.005, Verdict.PASS, False),
    (-0.06, 0.01, Verdict.PASS, False),
    (0.04, 0.01, Verdict.INCONCLUSIVE, False),
    (0.06, 0.01, Verdict.INCONCLUSIVE, True),
    (0.09, 0.01, Verdict.FAIL, True),
    (-0.09, 0.01, Verdict.IMPROVED, False),
]


@pytest.mark.parametrize(("share", "error", "verdict", "exceeds_limit"), EDGES)
def test_intervals_against_a_limit_on_change(gate, sound, share, error, verdict, exceeds_limit) -> None:
    judged = gate.judge(_at(gate, sound, share, error), gate.accepted(sound))
    found = judged.judgements["kl_sae"]
    assert (found.verdict, found.exceeds_limit) == (verdict, exceeds_limit)
    assert (judged.verdict, judged.exceeds_limit) == (verdict, exceeds_limit)
    assert found.change == pytest.approx(share * found.accepted, abs=1e-12)
    assert (found.needed_documents is not None) == (verdict is Verdict.INCONCLUSIVE)
    assert judged.message == found.message


@pytest.mark.parametrize("metric", ["ev", "l0"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_directions(gate, sound, metric: str, sign: int) -> None:
    old = sound.estimates[metric]
    assert isinstance(old, Ratio)
    now = Measurement({**sound.estimates, metric: gate.scaled(old, 1 + sign * 0.2)}, sound.clusters)
    verdict = gate.judge(now, gate.accepted(sound)).judgements[metric].verdict
    if metric == "l0":
        assert verdict is Verdict.FAIL
    else:
        assert verdict is (Verdict.IMPROVED if sign > 0 else Verdict.FAIL)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.019, Verdict.PASS), (0.021, Verdict.FAIL), (-0.03, Verdict.IMPROVED), (0.0, Verdict.PASS)],
)
def test_exact_metrics_are_decided_without_an_interval(gate, sound, change: float, verdict: Verdict) -> None:
    now = Measurement({**sound.estimates, "nn1": Exact(0.31 + change)}, sound.clusters)
    found = gate.judge(now, gate.accepted(sound)).judgements["nn1"]
    assert found.verdict is verdict
    assert found.se is None


@pytest.mark.parametrize(
    ("level", "spread", "verdict", "exceeds_limit"),
    [
        (0.1, 0.1, Verdict.PASS, False),
        (0.24, 0.5, Verdict.INCONCLUSIVE, False),
        (0.26, 0.5, Verdict.INCONCLUSIVE, True),
        (0.4, 0.1, Verdict.FAIL, True),
    ],
)
def test_hard_limits_need_no_accepted_value(gate, level, spread, verdict, exceeds_limit) -> None:
    ratio = gate.ratio(spread=spread)
    level_now = Ratio(ratio.numerator * level / ratio.value, ratio.denominator)
    judged = gate.judge(gate.measurement(kl_level=level_now), own=["kl_level:max:0.25"])
    assert (judged.verdict, judged.exceeds_limit) == (verdict, exceeds_limit)
    low = gate.judge(gate.measurement(kl_level=gate.scaled(level_now, -1)), own=["kl_level:min:-0.25"])
    assert (low.verdict, low.exceeds_limit) == (verdict, exceeds_limit)


SITUATIONS: dict[str, tuple[Verdict, Callable]] = {
    "unchanged": (Verdict.PASS, lambda gate, sound: gate.judge(sound, gate.accepted(sound))),
    "nothing accepted": (Verdict.NEW, lambda gate, sound: gate.judge(sound, None)),
    "nothing accepted, hard limit broken": (
        Verdict.FAIL,
        lambda gate, sound: gate.judge(sound, None, limits=["kl_level:max:0.01"]),
    ),
    "not compared": (Verdict.PASS, lambda gate, sound: gate.judge(sound, gate.accepted(sound), compare=False)),
    "context differs": (
        Verdict.INCOMPARABLE,
        lambda gate, sound: gate.judge(sound, gate.accepted(sound), context={**gate.context, "site": "blocks.4"}),
    ),
    "metric version differs": (
        Verdict.INCOMPARABLE,
        lambda gate, sound: gate.judge(sound, gate.accepted(sound, kl_sae={"version": 2})),
    ),
    "exception": (Verdict.ERROR, lambda gate, sound: gate.judge("the SAE has 3 dimensions", gate.accepted(sound))),
    "no documents": (
        Verdict.ERROR,
        lambda gate, sound: gate.judge(Measurement({"kl_sae": Ratio(np.zeros(0), np.zeros(0))}), None),
    ),
    "one document": (
        Verdict.ERROR,
        lambda gate, sound: gate.judge(
            Measurement({"kl_level": Ratio(np.ones(1) * 0.1, np.ones(1))}, (0,)), None, own=["kl_level:max:0.25"]
        ),
    ),
    "undefined": (
        Verdict.UNDEFINED,
        lambda gate, sound: gate.judge(
            gate.measurement(kl_sae=Undefined("the error is zero")), None, own=["kl_sae:5%"]
        ),
    ),
    "nothing at all": (Verdict.ERROR, lambda gate, sound: gate.judge(Measurement({}), None, own=[])),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_situations(gate, sound, situation: str) -> None:
    expected, judged = SITUATIONS[situation]
    assert judged(gate, sound).verdict is expected
