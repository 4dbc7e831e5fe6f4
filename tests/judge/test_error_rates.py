"""On simulated documents whose truth is known: intervals cover, unchanged SAEs don't fail, changed ones do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from sae_bench.judge.against_limit import against_accepted
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.paired_change import paired_change
from sae_bench.judge.verdicts import LimitOutcome, Verdict
from sae_bench.measure.measurement import Accepted, Influence, Metric, Ratio
from sae_bench.measure.uncertainty import interval, leave_one_out

KL = Metric("kl_sae", "nats", "lower", "")


def _documents(rng: np.random.Generator, size: int, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Per document: mean of its tokens, which share a document effect, and their number; the truth is 1."""
    tokens = rng.integers(40, 128, size).astype(float)
    effect = rng.lognormal(-(spread**2) / 2, spread, size)
    return effect * rng.gamma(tokens) / tokens, tokens


def _rate(hits: list[bool]) -> float:
    return float(np.mean(hits))


@pytest.mark.parametrize(("size", "confidence"), [(32, 0.95), (64, 0.95), (128, 0.98)])
def test_clustered_intervals_of_ratios_cover_at_their_nominal_rate(size: int, confidence: float) -> None:
    rng = np.random.default_rng(size)
    hits = []
    for _ in range(2000):
        means, tokens = _documents(rng, size)
        span = interval(Ratio(means * tokens, tokens), 1 - confidence)
        assert span is not None
        hits.append(span[0] <= 1 <= span[1])
    # 2,000 draws have a standard deviation of 0.5%; skewed documents cost up to another 1.5%.
    assert confidence - 0.025 <= _rate(hits) <= confidence + 0.01


def test_tokens_taken_for_independent_would_not_cover() -> None:
    """The reason for clustering: the same data, one cluster a token."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        tokens = rng.lognormal(-0.08, 0.4, 32)[:, None] * rng.gamma(1.0, size=(32, 60))
        span = interval(Ratio(tokens.ravel(), np.ones(tokens.size)), 0.05)
        assert span is not None
        hits.append(span[0] <= 1 <= span[1])
    assert _rate(hits) < 0.75


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float((x * y).sum() / (x * x).sum())


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def _p90(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.quantile(y, 0.9))


@pytest.mark.parametrize(("statistic", "size", "tokens"), [(_slope, 30, 20), (_correlation, 30, 20), (_p90, 64, 100)])
def test_leave_one_out_intervals_cover_at_their_nominal_rate(statistic: Callable, size: int, tokens: int) -> None:
    """A quantile needs many tokens: the jackknife of the 99th percentile of 64 x 127 tokens covers 89%, not 95."""
    rng = np.random.default_rng(7)

    def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(size, tokens)) + 0.5 * rng.normal(size=(size, 1))
        return x, 0.7 * x + rng.normal(size=(size, tokens)) + 0.5 * rng.normal(size=(size, 1))

    truth = statistic(*draw(20_000))
    hits = []
    for _ in range(300):
        x, y = draw(size)
        full = statistic(x, y)
        without = [statistic(np.delete(x, row, 0), np.delete(y, row, 0)) for row in range(size)]
        span = interval(Influence(full, leave_one_out(without, full)), 0.05)
        assert span is not None
        hits.append(span[0] <= truth <= span[1])
    assert 0.915 <= _rate(hits) <= 0.985


def test_two_way_clustered_intervals_cover_and_one_way_ones_do_not() -> None:
    rng = np.random.default_rng(3)
    both, one = [], []
    for _ in range(1000):
        cells = rng.normal(size=(24, 1)) + rng.normal(size=(1, 20)) + rng.normal(size=(24, 20))
        influence = (cells - cells.mean()) / cells.size
        by_prompt, by_feature = influence.sum(axis=0), influence.sum(axis=1)
        two = Influence(cells.mean(), by_prompt, by_feature, float((influence**2).sum()))
        for estimate, hits in ((two, both), (Influence(cells.mean(), by_prompt), one)):
            span = interval(estimate, 0.05)
            assert span is not None
            hits.append(span[0] <= 0 <= span[1])
    assert 0.93 <= _rate(both) <= 0.98
    assert _rate(one) < 0.9


def _outcome(now: Ratio, old: Ratio, limit: str, alpha: float = 0.01) -> LimitOutcome:
    ids = range(len(old.numerator))
    change = paired_change(now, old, ids, ids)
    assert change is not None
    held = Accepted(old.value, old, tuple(ids), 1)
    return against_accepted(KL, change, held, parse_rule(f"kl_gap.kl_sae:{limit}"), alpha, "kl_gap.kl_sae")


def _verdict(now: Ratio, old: Ratio, limit: str, alpha: float = 0.01) -> Verdict:
    return _outcome(now, old, limit, alpha).verdict


@pytest.mark.parametrize("limit", ["5%", "0.05"])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_size_at_the_border_is_at_most_the_nominal_rate(limit: str, spread: float) -> None:
    """The true change equals the limit: FAIL in at most alpha of the runs, whatever the noise between two SAEs."""
    rng = np.random.default_rng(11)
    alpha, runs = 0.01, 3000
    fails = 0
    for _ in range(runs):
        old, tokens = _documents(rng, 64)
        now = old * 1.05 * rng.lognormal(-(spread**2) / 2, spread, 64)
        fails += _verdict(Ratio(now * tokens, tokens), Ratio(old * tokens, tokens), limit, alpha) is Verdict.FAIL
    assert fails / runs <= alpha + 3 * math.sqrt(alpha / runs)


def test_size_holds_where_one_document_in_fifty_holds_a_fifth_of_the_value() -> None:
    """Those few move the other way; half of the runs over 32 documents see none of them, and nothing in a run tells."""
    rng = np.random.default_rng(19)
    alpha, runs, limit = 0.01, 2000, parse_rule("kl_gap.kl_sae:2%")
    heavy = np.arange(500) % 50 == 0
    old = np.where(heavy, 12.0, 1.0) * rng.lognormal(-0.02, 0.2, 500)
    now = old * np.where(heavy, 0.8, 1.1) * rng.lognormal(-0.005, 0.1, 500)
    now *= 1.02 * old.sum() / now.sum()
    accepted = Ratio(old, np.ones(500))
    held = Accepted(accepted.value, accepted, tuple(range(500)), 1)
    fails = {"all": 0, "shared": 0}
    for _ in range(runs):
        rows = rng.permutation(500)[:32]
        new, same = Ratio(now[rows], np.ones(32)), Ratio(old[rows], np.ones(32))
        for known, (estimate, ids) in {"all": (accepted, range(500)), "shared": (same, rows.tolist())}.items():
            change = paired_change(new, estimate, rows.tolist(), ids)
            assert change is not None
            outcome = against_accepted(KL, change, held, limit, alpha, "kl_gap.kl_sae")
            fails[known] += outcome.verdict is Verdict.FAIL
    assert fails["all"] / runs <= alpha + 3 * math.sqrt(alpha / runs)
    # What the accepted values of the documents left out are worth.
    assert fails["shared"] / runs > 0.2


def test_unchanged_saes_with_redrawn_noise_never_fail_where_a_fixed_rule_would() -> None:
    rng = np.random.default_rng(5)
    verdicts, fixed = [], 0
    for _ in range(1500):
        old, tokens = _documents(rng, 64, spread=0.8)
        noise = rng.lognormal(-0.00125, 0.05, (2, 64))
        verdicts.append(_verdict(Ratio(old * noise[0] * tokens, tokens), Ratio(old * noise[1] * tokens, tokens), "2%"))
        fresh, again = _documents(rng, 64, spread=0.8)
        fixed += Ratio(fresh * again, again).value > 1.05 * Ratio(old * tokens, tokens).value
    assert verdicts.count(Verdict.FAIL) == 0
    # Documents drawn anew and a plain 5% rule: the practice that this replaces.
    assert fixed / 1500 > 0.3


@pytest.mark.parametrize(("documents", "least"), [(64, 0.8), (128, 0.95), (256, 0.99)])
def test_a_ten_percent_rise_is_found(documents: int, least: float) -> None:
    """Changes that vary between documents by 13%, against a limit of 2%, at the error rate of four judged metrics."""
    rng = np.random.default_rng(13)
    found = []
    for _ in range(400):
        old, tokens = _documents(rng, documents)
        now = old * 1.1 * rng.lognormal(-0.00845, 0.13, documents)
        found.append(_verdict(Ratio(now * tokens, tokens), Ratio(old * tokens, tokens), "2%", 0.0025) is Verdict.FAIL)
    assert _rate(found) >= least


def test_the_detectable_change_is_detected() -> None:
    rng = np.random.default_rng(17)

    def outcome(factor: float) -> LimitOutcome:
        old, tokens = _documents(rng, 128)
        now = old * factor * rng.lognormal(-0.005, 0.1, 128)
        return _outcome(Ratio(now * tokens, tokens), Ratio(old * tokens, tokens), "2%")

    promised = float(np.mean([outcome(1.0).detectable or 0.0 for _ in range(100)]))
    assert promised > 0.02
    found = _rate([outcome(1 + promised).verdict is Verdict.FAIL for _ in range(600)])
    assert found == pytest.approx(0.95, abs=0.04)
