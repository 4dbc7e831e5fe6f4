"""The grammar of limits: round trips, refusals that name the way out, and which rule decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.errors import UsageError
from sae_bench.judge.limits import (
    SOURCES,
    Limit,
    Rule,
    check_accepted,
    check_known_failures,
    check_rules,
    effective,
    judged_by_declaration,
    parse_limit,
    parse_rule,
    width,
)
from sae_bench.measure.measurement import Accepted, Exact, Metric

sizes = st.floats(0, 1e20, allow_nan=False).filter(lambda size: size == 0 or size > 1e-300)
changes = st.builds(Limit, st.just("change"), sizes, sizes, sizes, sizes)
bounds = st.floats(-1e20, 1e20, allow_nan=False)
hard = st.builds(lambda kind, bound: Limit(kind, bound=bound), st.sampled_from(["max", "min"]), bounds)
words = st.text("abcdefgh_1", min_size=1, max_size=8)
KNOWN = ("kl_gap.kl_sae", "kl_gap.ce_gap", "sparsity.l0")


@given(st.one_of(changes, hard))
def test_limits_read_back_what_they_write(limit: Limit) -> None:
    assert parse_limit(str(limit)) == limit


@given(words, words, st.one_of(changes, hard), st.sampled_from(["*", "demo/*", "gpt2-small/8", "a?[bc]"]))
def test_rules_read_back_what_they_write(name: str, metric: str, limit: Limit, sae: str) -> None:
    rule = Rule(name, metric, limit, sae, "command line")
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("5%", Limit("change", percent=5)),
        ("5.5%", Limit("change", percent=5.5)),
        ("0.002", Limit("change", absolute=0.002)),
        (".002", Limit("change", absolute=0.002)),
        ("5%+0.001", Limit("change", percent=5, absolute=0.001)),
        ("0.001+5%", Limit("change", percent=5, absolute=0.001)),
        ("1e-3", Limit("change", absolute=0.001)),
        ("2se", Limit("change", se=2)),
        ("1noise+2%", Limit("change", percent=2, noise=1)),
        ("0", Limit("change")),
        ("max:0.25", Limit("max", bound=0.25)),
        ("min:-1", Limit("min", bound=-1)),
    ],
)
def test_every_form(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 %",
        "-5%",
        "five",
        "5%%",
        "max:",
        "max:5%",
        "max:nan",
        "max:inf",
        "min:1e999",
        "1e999",
        "nan",
        "5%+",
        "+5",
        "5floor",
    ],
)
def test_anything_else_lists_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"a limit is 5%, 0\.002"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl_gap.kl_sae", "needs a metric and a limit"),
        ("kl_gap:5%", r"'kl_gap\.\*'"),
        (".kl_sae:5%", "property and metric"),
        ("kl_gap.:5%", "property and metric"),
        ("kl_gap.kl_sae:5%@", "without an SAE"),
        ("kl_gap.kl_sae:5percent", r"cannot be read.*in 'kl_gap\.kl_sae:5percent'"),
    ],
)
def test_broken_rules_say_what_is_missing(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_rule(text)


def test_rules_that_name_nothing_list_near_names() -> None:
    check_rules([parse_rule("*.kl_*:5%"), parse_rule("sparsity.l0:3")], KNOWN)
    with pytest.raises(UsageError, match=r"did you mean 'kl_gap\.kl_sae'"):
        check_rules([parse_rule("kl_gap.kl_sea:5%")], KNOWN)
    with pytest.raises(UsageError, match="names no metric"):
        check_rules([parse_rule("steering.*:5%")], KNOWN)
    with pytest.raises(UsageError, match=r"no registered SAE.*demo/topk"):
        check_rules([parse_rule("sparsity.l0:3@demo/topkk")], KNOWN, ["demo/topk", "demo/gated"])
    check_rules([parse_rule("sparsity.l0:3@demo/*")], KNOWN, ["demo/topk"])


def test_known_failures_must_name_declared_metrics() -> None:
    check_known_failures({"kl_gap.kl_sae": "why"}, KNOWN, "conftest.py:3")
    with pytest.raises(UsageError, match=r"conftest\.py:3.*did you mean 'kl_gap\.kl_sae'"):
        check_known_failures({"kl_gap.kl_sa": "why"}, KNOWN, "conftest.py:3")


METRIC = Metric("kl_sae", "nats", "lower", "")
REPORTED = Metric("kl_p99", "nats", "reported", "")


@pytest.mark.parametrize("weaker", range(len(SOURCES) - 1))
def test_the_stronger_source_decides_whatever_the_order(weaker: int) -> None:
    rules = [parse_rule("kl_gap.kl_sae:1%", SOURCES[weaker]), parse_rule("kl_gap.kl_sae:2%", SOURCES[weaker + 1])]
    for order in (rules, rules[::-1]):
        assert effective(order, "kl_gap", METRIC, "x")["change"] is rules[1]


def test_among_equals_the_last_decides_and_kinds_stand_side_by_side() -> None:
    texts = ["kl_gap.*:1%", "kl_gap.kl_sae:2%", "kl_gap.kl_sae:max:1", "kl_gap.kl_sae:min:0", "*.*:3%@other/*"]
    chosen = effective([parse_rule(text) for text in texts], "kl_gap", METRIC, "demo/topk")
    assert {kind: str(rule.limit) for kind, rule in chosen.items()} == {"change": "2%", "max": "max:1", "min": "min:0"}


def test_globs_leave_reported_metrics_alone_and_names_do_not() -> None:
    assert not effective([parse_rule("kl_gap.*:1%")], "kl_gap", REPORTED, "x")
    assert effective([parse_rule("*.kl_p99:1%")], "kl_gap", REPORTED, "x")


def test_error_rates_depend_on_what_a_property_declares_only() -> None:
    own = [parse_rule("kl_gap.kl_sae:5%", "property"), parse_rule("kl_gap.kl_sae:max:1", "property")]
    extra = [parse_rule("kl_gap.kl_p99:5%"), parse_rule("other.kl_p99:5%", "property")]
    assert judged_by_declaration(own + extra, "kl_gap", [METRIC, REPORTED]) == 1
    assert judged_by_declaration([], "kl_gap", [METRIC, REPORTED]) == 1


def test_widths_add_up() -> None:
    limit = parse_limit("5%+0.001+2se+1noise")
    assert width(limit, -0.2, 0.003, 0.0005, "a.b") == pytest.approx(0.01 + 0.001 + 0.006 + 0.0005)


def test_a_percentage_of_nothing_and_an_unmeasured_noise_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"a\.b:5%\+0\.001"):
        width(parse_limit("5%"), 0.0, 0.1, None, "a.b")
    assert width(parse_limit("5%+0.001"), 0.0, 0.1, None, "a.b") == 0.001
    with pytest.raises(UsageError, match="--sae-selfcheck"):
        width(parse_limit("1noise"), 1.0, 0.1, None, "a.b")
    held = {"kl_sae": Accepted(0.0, Exact(0.0), (), 1)}
    with pytest.raises(UsageError, match="which is 0"):
        check_accepted([parse_rule("kl_gap.kl_sae:5%")], "kl_gap", [METRIC], "x", held)
