"""Where other gates let a bad run through, and everything that `judge` does beyond comparing numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from sae_bench.judge.judge import context_differences, sparsity_moved
from sae_bench.judge.messages import verdict_lines
from sae_bench.judge.verdicts import AcceptedProperty, Verdict
from sae_bench.measure.measurement import Accepted, Exact, Influence, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.uncertainty import standard_error


def _with(sound: Measurement, **estimates) -> Measurement:
    return Measurement({**sound.estimates, **estimates}, sound.clusters)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["kl_sae", "norm"])
def test_a_value_that_became_nan_is_an_error_even_if_only_reported(gate, sound, broken: float, metric: str) -> None:
    parts = sound.estimates[metric].numerator.copy()
    parts[3] = broken
    judged = gate.judge(
        _with(sound, **{metric: Ratio(parts, sound.estimates[metric].denominator)}), gate.accepted(sound)
    )
    assert judged.verdict is Verdict.ERROR
    assert judged.exit_code == 1
    assert judged.judgements[metric].value is None
    weights = gate.judge(_with(sound, nn1=Exact(broken)), gate.accepted(sound))
    assert weights.verdict is Verdict.ERROR


def test_nan_in_the_accepted_file_is_an_error(gate, sound) -> None:
    bad = gate.accepted(sound, kl_sae={"value": math.nan})
    assert gate.judge(sound, bad).verdict is Verdict.ERROR
    parts = sound.estimates["kl_sae"]
    hidden = gate.accepted(
        sound, kl_sae={"estimate": Ratio(np.where(np.arange(64) == 5, np.nan, parts.numerator), parts.denominator)}
    )
    assert gate.judge(sound, hidden).verdict is Verdict.ERROR
    both = _with(sound, kl_sae=Ratio(parts.numerator * np.nan, parts.denominator))
    assert gate.judge(both, bad).verdict is Verdict.ERROR


def test_a_metric_missing_on_either_side_is_never_green_by_silence(gate, sound) -> None:
    without = Measurement({name: each for name, each in sound.estimates.items() if name != "ev"}, sound.clusters)
    gone = gate.judge(without, gate.accepted(sound))
    assert (gone.verdict, gone.exit_code) == (Verdict.MISSING, 11)
    assert "was accepted at" in gone.message
    new = gate.judge(sound, gate.accepted(without))
    assert (new.verdict, new.judgements["ev"].verdict) == (Verdict.NEW, Verdict.NEW)
    never = gate.judge(without, gate.accepted(without))
    assert never.verdict is Verdict.MISSING
    assert "its limit 0.02 cannot be judged" in never.message


def test_a_reported_metric_that_vanished_is_missing_too(gate, sound) -> None:
    without = Measurement({name: each for name, each in sound.estimates.items() if name != "norm"}, sound.clusters)
    assert gate.judge(without, gate.accepted(sound)).verdict is Verdict.MISSING


def test_accepted_metrics_that_nobody_declares_are_missing_and_found_ones_are_errors(gate, sound) -> None:
    held = gate.accepted(sound)
    old = AcceptedProperty({**held.metrics, "gone": Accepted(1.0, Exact(1.0), (), 1)}, held.context)
    assert gate.judge(sound, old).judgements["gone"].verdict is Verdict.MISSING
    assert gate.judge(_with(sound, surprise=Exact(1.0)), held).judgements["surprise"].verdict is Verdict.ERROR


def test_a_metric_cannot_turn_green_by_losing_its_value(gate, sound) -> None:
    """Fewer than 101 live features leave nn100 undefined; so would a dictionary that died."""
    died = gate.judge(_with(sound, nn1=Undefined("fewer than 101 live features")), gate.accepted(sound))
    assert died.verdict is Verdict.MISSING
    assert "fewer than 101 live features" in died.message
    both = gate.accepted(_with(sound, nn1=Undefined("fewer than 101 live features")))
    assert gate.judge(_with(sound, nn1=Undefined("still")), both).judgements["nn1"].verdict is Verdict.UNDEFINED
    assert gate.judge(sound, both).judgements["nn1"].verdict is Verdict.NEW


@pytest.mark.parametrize("accepted", [0.0, -0.2])
def test_accepted_zero_and_negative_values(gate, accepted: float) -> None:
    def measured(value: float) -> Measurement:
        return gate.measurement(kl_sae=Ratio(np.full(64, value * 10), np.full(64, 10.0)))

    old = gate.accepted(measured(accepted))
    worse, better = measured(accepted + 0.1), measured(accepted - 0.1)
    if accepted == 0:
        percent = gate.judge(worse, old, own=["kl_sae:5%"])
        assert percent.verdict is Verdict.ERROR
        assert "kl_gap.kl_sae:5%+0.001" in percent.message
        assert gate.judge(measured(0.0), old, own=["kl_sae:5%"]).verdict is Verdict.ERROR
    assert gate.judge(worse, old, own=["kl_sae:5%+0.001"]).verdict is Verdict.FAIL
    assert gate.judge(better, old, own=["kl_sae:5%+0.001"]).verdict is Verdict.IMPROVED
    assert gate.judge(measured(accepted), old, own=["kl_sae:5%+0.001"]).verdict is Verdict.PASS


def test_first_line_is_the_whole_story(gate, sound) -> None:
    worse = _with(sound, kl_sae=gate.scaled(sound.estimates["kl_sae"], 1.09, 0.02))
    judged = gate.judge(worse, gate.accepted(sound))
    first = judged.message
    assert first.startswith("kl_gap.kl_sae of demo/topk is 0.1")
    assert " nats, 9." in first or " nats, 8." in first
    assert "above the accepted" in first
    assert "99.6% interval +" in first
    assert "allowed 5%" in first
    assert "of 64 documents are worse" in verdict_lines(judged)[1]
    metric = judged.judgements["kl_sae"]
    assert judged.decided_by == "kl_sae"
    assert metric.allowed == pytest.approx(0.05 * metric.accepted)
    assert metric.documents is not None
    assert (metric.documents.shared, len(metric.documents.largest), metric.documents.either_way) == (64, 3, False)
    changes = [each.change for each in metric.documents.largest]
    assert changes == sorted(changes, reverse=True)
    assert "nan" not in "".join(verdict_lines(judged))


def test_error_rate_does_not_depend_on_what_a_user_limits(gate, sound) -> None:
    plain = gate.judge(sound, gate.accepted(sound))
    more = gate.judge(sound, gate.accepted(sound), limits=["norm:max:1", "kl_sae:min:0"])
    assert plain.confidence == more.confidence == pytest.approx(1 - 2 * 0.01 / 5)
    fewer = gate.judge(sound, gate.accepted(sound), own=["kl_sae:5%"])
    assert fewer.confidence == pytest.approx(0.98)


def test_a_smoke_run_is_compared_on_the_documents_both_have(gate, sound) -> None:
    few = Measurement(
        {
            name: Ratio(each.numerator[:16], each.denominator[:16]) if isinstance(each, Ratio) else each
            for name, each in sound.estimates.items()
        },
        sound.clusters[:16],
    )
    judged = gate.judge(few, gate.accepted(sound))
    assert judged.verdict is Verdict.PASS
    for name in ("kl_sae", "ev", "l0", "nn1"):
        assert judged.judgements[name].change == 0
    assert "over the 16 documents that both have" in judged.judgements["kl_sae"].message


def test_a_run_over_calm_documents_says_by_how_much_its_errors_grow(gate) -> None:
    """Four of 64 accepted documents hold most of the KL, and none of them was measured now."""
    old = np.concatenate([gate.rng.uniform(0.9, 1.1, 60), gate.rng.uniform(8, 12, 4)])
    new = 1.1 * old * gate.rng.uniform(0.95, 1.05, 64)
    held = gate.accepted(gate.measurement(kl_sae=Ratio(old, np.ones(64))))
    calm = gate.judge(gate.measurement(kl_sae=Ratio(new[:32], np.ones(32))), held).judgements["kl_sae"]
    factor = old.std(ddof=1) / old[:32].std(ddof=1)
    assert (
        f"over the 32 documents that both have, which vary less than all 64: errors times {factor:.1f}" in calm.message
    )
    assert calm.verdict is Verdict.INCONCLUSIVE
    assert calm.exceeds_limit
    everything = gate.judge(gate.measurement(kl_sae=Ratio(new, np.ones(64))), held).judgements["kl_sae"]
    assert everything.verdict is Verdict.FAIL
    assert "errors times" not in everything.message


def test_fitted_quantities_wait_for_the_same_documents(gate) -> None:
    def fitted(value: float, size: int) -> Measurement:
        influence = gate.rng.normal(0, 0.01 / size, size)
        return gate.measurement(kl_sae=Influence(value, influence - influence.mean()))

    old = gate.accepted(fitted(0.9, 64))
    near = gate.judge(fitted(0.91, 16), old, own=["kl_sae:5%"])
    assert (near.verdict, near.exceeds_limit, near.exit_code) == (Verdict.INCONCLUSIVE, False, 0)
    assert near.judgements["kl_sae"].needed_documents == 64
    far = gate.judge(fitted(1.5, 16), old, own=["kl_sae:5%"])
    assert (far.verdict, far.exceeds_limit, far.exit_code) == (Verdict.INCONCLUSIVE, True, 11)
    assert gate.judge(fitted(1.5, 64), old, own=["kl_sae:5%"]).verdict is Verdict.FAIL


def test_what_cannot_be_paired_is_incomparable(gate, sound) -> None:
    unkept = gate.accepted(sound, kl_sae={"estimate": None})
    assert "no values per document" in gate.judge(sound, unkept).message
    elsewhere = gate.accepted(sound, kl_sae={"clusters": tuple(range(100, 164))})
    for held in (unkept, elsewhere, gate.accepted(sound, kl_sae={"estimate": Exact(0.1)})):
        judged = gate.judge(sound, held)
        assert judged.verdict is Verdict.INCOMPARABLE
        assert judged.judgements["kl_sae"].not_comparable


def test_contexts_are_shown_side_by_side(gate, sound) -> None:
    now = {"corpus": {"sha256": "bad"}, "site": gate.context["site"], "dtype": {"sae": "float32"}, "k": (1, 2)}
    judged = gate.judge(sound, gate.accepted(sound), context=now)
    assert [each.field for each in judged.differences] == ["corpus.sha256", "k"]
    assert "  corpus.sha256: 'bad' now, 'c0ffee' accepted" in verdict_lines(judged)
    assert "corpus.sha256" in judged.message
    assert not context_differences({"a": {"b": (1, 2.0)}}, {"a": {"b": [1, 2]}})
    only_hard = gate.judge(sound, gate.accepted(sound), context=now, own=["kl_level:max:0.25"])
    assert only_hard.verdict is Verdict.PASS


def test_a_hard_failure_outranks_an_incomparable_context(gate, sound) -> None:
    judged = gate.judge(sound, gate.accepted(sound), context={}, limits=["kl_level:max:0.01"])
    assert judged.verdict is Verdict.FAIL


class TestKnownFailures:
    KNOWN: ClassVar = {"kl_gap.kl_level": "L1 penalty, issue 12"}

    def test_excuse_a_hard_failure(self, gate, sound) -> None:
        judged = gate.judge(sound, gate.accepted(sound), limits=["kl_level:max:0.01"], known_failures=self.KNOWN)
        assert judged.verdict is Verdict.KNOWN
        assert "L1 penalty, issue 12" in judged.judgements["kl_level"].message
        assert judged.judgements["kl_level"].known_reason == "L1 penalty, issue 12"
        assert not judged.judgements["kl_level"].stale_known_failure

    def test_must_be_removed_once_it_passes(self, gate, sound) -> None:
        judged = gate.judge(sound, gate.accepted(sound), known_failures=self.KNOWN)
        assert judged.verdict is Verdict.FAIL
        assert "remove this entry" in judged.message
        assert judged.judgements["kl_level"].stale_known_failure

    def test_an_undecided_one_does_not_fail(self, gate, sound) -> None:
        level = sound.estimates["kl_level"].value
        judged = gate.judge(
            sound, gate.accepted(sound), limits=[f"kl_level:max:{level * 0.999}"], known_failures=self.KNOWN
        )
        assert (judged.verdict, judged.exit_code) == (Verdict.INCONCLUSIVE, 0)

    def test_do_not_excuse_a_change(self, gate, sound) -> None:
        worse = _with(sound, kl_level=gate.scaled(sound.estimates["kl_level"], 1.5))
        judged = gate.judge(
            worse,
            gate.accepted(sound),
            limits=["kl_level:max:0.01", "kl_level:5%"],
            known_failures={"kl_level": "known"},
        )
        assert judged.verdict is Verdict.FAIL
        assert "above the accepted" in judged.judgements["kl_level"].message

    def test_never_excuse_an_error(self, gate, sound) -> None:
        broken = _with(sound, kl_level=Ratio(np.full(64, np.nan), np.ones(64)))
        assert gate.judge(broken, gate.accepted(sound), known_failures=self.KNOWN).verdict is Verdict.ERROR

    def test_of_other_metrics_are_ignored(self, gate, sound) -> None:
        known = {"sparsity.l0": "elsewhere"}
        assert gate.judge(sound, gate.accepted(sound), known_failures=known).verdict is Verdict.PASS


class TestAnchor:
    def test_many_small_steps_fail_beyond_twice_the_limit(self, gate, sound) -> None:
        kl = sound.estimates["kl_sae"]
        held, anchor = sound, kl.value
        verdicts = []
        for _ in range(4):
            now = _with(held, kl_sae=gate.scaled(held.estimates["kl_sae"], 1.04))
            verdicts.append(gate.judge(now, gate.accepted(held, {"kl_sae": anchor})).verdict)
            held = now
        assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.FAIL, Verdict.FAIL]
        late = gate.judge(held, gate.accepted(held, {"kl_sae": anchor}))
        assert late.verdict is Verdict.FAIL
        assert "since the anchor" in late.message
        drift = late.judgements["kl_sae"].drift
        assert drift is not None
        assert (drift.anchor, drift.allowed) == (anchor, pytest.approx(0.1 * anchor))
        assert drift.change == pytest.approx(held.estimates["kl_sae"].value - anchor)
        assert gate.judge(held, gate.accepted(held, {"kl_sae": held.estimates["kl_sae"].value})).verdict is Verdict.PASS

    def test_improving_by_small_steps_is_no_drift(self, gate, sound) -> None:
        anchor = 1.5 * sound.estimates["kl_sae"].value
        assert gate.judge(sound, gate.accepted(sound, {"kl_sae": anchor})).verdict is Verdict.PASS

    def test_targets_drift_both_ways(self, gate, sound) -> None:
        for factor in (0.8, 1.2):
            anchor = factor * sound.estimates["l0"].value
            assert gate.judge(sound, gate.accepted(sound, {"l0": anchor})).judgements["l0"].verdict is Verdict.FAIL


class TestSparsity:
    def test_improvement_at_another_sparsity_is_withheld(self, gate, sound) -> None:
        better = _with(sound, kl_sae=gate.scaled(sound.estimates["kl_sae"], 0.5))
        assert gate.judge(better, gate.accepted(sound)).verdict is Verdict.IMPROVED
        judged = gate.judge(better, gate.accepted(sound), sparsity_moved=True)
        assert judged.verdict is Verdict.PASS
        assert "at different sparsity" in judged.judgements["kl_sae"].message
        assert judged.different_sparsity

    def test_worse_at_another_sparsity_still_fails(self, gate, sound) -> None:
        worse = _with(sound, kl_sae=gate.scaled(sound.estimates["kl_sae"], 1.5))
        judged = gate.judge(worse, gate.accepted(sound), sparsity_moved=True)
        assert judged.verdict is Verdict.FAIL
        assert "at different sparsity" in judged.message

    @pytest.mark.parametrize(("factor", "moved"), [(1.0, False), (1.03, False), (2.0, True), (0.5, True)])
    def test_moved_means_beyond_the_limit_on_change(self, gate, sound, factor: float, moved: bool) -> None:
        now = _with(sound, l0=gate.scaled(sound.estimates["l0"], factor))
        assert sparsity_moved(gate.judge(now, gate.accepted(sound))) is moved


def test_metrics_with_a_target_improve_towards_it_and_fail_past_it(gate) -> None:
    metric = Metric("kl_sae", "", "target", "gamma", target=1.0)
    gate.declared = replace(gate.declared, metrics=(metric,))
    base = gate.ratio(mean=0.9, spread=0.01)
    old = gate.accepted(gate.measurement(kl_sae=base))

    def at(factor: float) -> Verdict:
        return gate.judge(gate.measurement(kl_sae=gate.scaled(base, factor)), old, own=["kl_sae:0.03"]).verdict

    assert at(1.1) is Verdict.IMPROVED
    assert at(0.9) is Verdict.FAIL
    assert at(1.4) is Verdict.FAIL
    assert at(1.01) is Verdict.PASS


def test_limits_in_standard_errors_and_in_noise(gate, sound) -> None:
    kl = sound.estimates["kl_sae"]
    now = _with(sound, kl_sae=gate.scaled(kl, 1.05, 0.1))
    held = gate.accepted(sound, kl_sae={"noise": 0.01})
    change = gate.judge(now, held).outcomes["kl_sae"][0].change
    assert change is not None
    assert change.se is not None
    by_se = gate.judge(now, held, own=["kl_sae:2se"]).judgements["kl_sae"]
    assert by_se.allowed == pytest.approx(2 * change.se)
    by_noise = gate.judge(now, held, own=["kl_sae:3noise"]).judgements["kl_sae"]
    assert by_noise.allowed == pytest.approx(0.03)
    unmeasured = gate.judge(now, gate.accepted(sound), own=["kl_sae:3noise"])
    assert unmeasured.verdict is Verdict.ERROR
    assert "--sae-selfcheck" in unmeasured.message


def test_the_report_of_a_metric_says_what_decided(gate, sound) -> None:
    judged = gate.judge(sound, gate.accepted(sound), limits=["kl_sae:2%", "kl_sae:max:1"])
    found = judged.judgements["kl_sae"]
    assert [str(limit) for limit in found.limits] == ["2%", "max:1"]
    assert {limit.source for limit in found.limits} == {"command line"}
    assert found.se == standard_error(sound.estimates["kl_sae"])
    assert found.detectable is not None
    assert found.detectable >= 0.02 * found.accepted
    assert judged.judgements["norm"].verdict is None


def test_judging_does_not_depend_on_the_order_of_documents(gate, sound) -> None:
    worse = _with(sound, kl_sae=gate.scaled(sound.estimates["kl_sae"], 1.05, 0.05))
    order = gate.rng.permutation(64)
    turned = Measurement(
        {
            name: Ratio(each.numerator[order], each.denominator[order]) if isinstance(each, Ratio) else each
            for name, each in worse.estimates.items()
        },
        tuple(order.tolist()),
    )
    one, other = (gate.judge(each, gate.accepted(sound)) for each in (worse, turned))
    assert one.verdict is other.verdict
    assert one.judgements["kl_sae"].interval == pytest.approx(other.judgements["kl_sae"].interval, rel=1e-9)


def test_what_follows_from_unchanged_weights_may_not_change_at_all(gate) -> None:
    """Whatever moves it then is a fault of the measurement; with other weights it is only reported."""
    metric = Metric("nn1_all", "cosine", "reported", "of all features", noise_free=True, of_weights=True)
    gate.declared = replace(gate.declared, metrics=(metric,), primary_metric="nn1_all", limits=())

    def judged(value: float, now: str, before: str) -> Verdict | None:
        held = AcceptedProperty({"nn1_all": Accepted(0.4, Exact(0.4), (), 1)}, gate.context, weights=before)
        return gate.judge(Measurement({"nn1_all": Exact(value)}, weights=now), held).judgements["nn1_all"].verdict

    assert judged(0.4 + 9e-6, "same", "same") is Verdict.PASS
    assert judged(0.4 + 2e-5, "same", "same") is Verdict.FAIL
    assert judged(0.4 - 2e-5, "same", "same") is Verdict.FAIL
    assert judged(0.5, "other", "same") is None
    assert judged(0.5, "", "") is None
