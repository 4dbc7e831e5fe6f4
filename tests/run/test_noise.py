"""The noise of a measurement is the change that an SAE which did not change stays within, interval included."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sae_bench.errors import UsageError
from sae_bench.judge.against_limit import against_accepted
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.paired_change import paired_change
from sae_bench.judge.verdicts import LimitOutcome, Verdict
from sae_bench.measure.measurement import Accepted, Estimate, Exact, Measurement, Metric, Ratio, Undefined
from sae_bench.measure.uncertainty import t_quantile
from sae_bench.run.noise import REPEATS, check_noise, measured_noise, noise

FLOOR = Metric("floor", "nats", "reported", "")
ALPHA = 0.0025
IDS = tuple(range(64))


def _measured(estimate: Estimate) -> Measurement:
    return Measurement({"floor": estimate}, IDS if isinstance(estimate, Ratio) else ())


class Documents:
    """An SAE's true values per document, heavy-tailed, and measurements of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = self.rng.lognormal(0, 1.2, len(IDS))

    def measure(self, own: float = 0.1, shared: float = 0.0) -> Measurement:
        """With noise of each document's ``own`` and noise that all documents ``share``."""
        drawn = self.rng.lognormal(0, own, len(IDS)) * math.exp(shared * self.rng.normal())
        return _measured(Ratio(self.truth * drawn, np.ones(len(IDS))))

    def compared(self, moves: float | None, **kinds: float) -> LimitOutcome:
        now, held = self.measure(**kinds), self.measure(**kinds).estimates["floor"]
        change = paired_change(now.estimates["floor"], held, IDS, IDS)
        assert change is not None
        accepted = Accepted(held.value, held, IDS, 1, noise=moves)
        return against_accepted(FLOOR, change, accepted, parse_rule("gap.floor:1noise"), ALPHA, "gap.floor")


@pytest.mark.parametrize(
    ("kinds", "exceeds_limit"), [({"own": 0.1}, 0.0), ({"own": 0.3}, 0.0), ({"own": 0.05, "shared": 0.02}, 0.01)]
)
def test_an_unchanged_sae_stays_within_one_noise(kinds: dict[str, float], exceeds_limit: float) -> None:
    """It never fails. What all documents share is estimated from three measurements and exceeds it now and then."""
    found = []
    for seed in range(200):
        documents = Documents(seed)
        moves = noise([documents.measure(**kinds) for _ in range(1 + REPEATS)], "floor", ALPHA)
        found += [documents.compared(moves, **kinds) for _ in range(4)]
    assert not any(outcome.verdict is Verdict.FAIL for outcome in found)
    assert np.mean([outcome.exceeds_limit for outcome in found]) <= exceeds_limit
    assert np.mean([outcome.verdict is Verdict.PASS for outcome in found]) > 0.85


def test_the_noise_is_not_the_spread_of_three_values_by_chance() -> None:
    """Three measurements that happen to agree: the documents still say how far the next one may lie."""
    documents = Documents(0)
    first, second = documents.measure(own=0.3), documents.measure(own=0.3)
    scale = first.estimates["floor"].value / second.estimates["floor"].value
    agreeing = Ratio(second.estimates["floor"].numerator * scale, np.ones(len(IDS)))  # type: ignore[union-attr]
    found = noise([first, _measured(agreeing)], "floor", ALPHA)
    change = paired_change(first.estimates["floor"], agreeing, IDS, IDS)
    assert change is not None
    assert change.value == pytest.approx(0)
    assert found == pytest.approx(2 * t_quantile(ALPHA, 63) * (change.se or 0))


def test_what_never_moves_has_no_noise() -> None:
    same = Documents(1).measure()
    assert noise([same, same, same], "floor", ALPHA) == 0


def test_values_without_documents_have_the_t_of_few_measurements() -> None:
    values = [_measured(Exact(value)) for value in (1.0, 1.2, 1.1)]
    apart = math.sqrt((0.2**2 + 0.1**2 + 0.1**2) / 3)
    assert noise(values, "floor", ALPHA) == pytest.approx(t_quantile(ALPHA, 2) * apart)


@pytest.mark.parametrize("broken", [Undefined("no floor"), Exact(math.nan), None])
def test_no_noise_where_a_value_is_missing(broken: Estimate | None) -> None:
    found = _measured(Exact(1.0))
    assert noise([found, Measurement({} if broken is None else {"floor": broken})], "floor", ALPHA) is None


@dataclass(frozen=True)
class Settings:
    batch_size: int = 16
    seed: int = 7
    order_seed: int | None = None


@dataclass
class Bench:
    sae: Any = None
    model: Any = None
    corpus: Any = None
    site_data: Any = None
    settings: Settings = Settings()
    include_bos: bool = False
    partner: Any = None
    next_layers: Any = ()
    family: Any = ()
    contrast: Any = None
    concepts: Any = None
    id: str = ""
    circuit: Any = None
    source: Any = None


@dataclass
class Declared:
    names_the_seed: bool
    name: str = "gap"
    metrics: tuple[Metric, ...] = (FLOOR,)
    limits: tuple[str, ...] = ()
    seen: list[Settings] = field(default_factory=list)

    def measure(self, bench: Any) -> Measurement:
        self.seen.append(bench.settings)
        return replace(_measured(Exact(1.0)), settings={"seed": 7} if self.names_the_seed else {})


@pytest.mark.parametrize(("names_the_seed", "seeds"), [(False, [7, 8, 9]), (True, [7, 7, 7])])
def test_batch_order_and_seed_vary_unless_the_seed_is_part_of_what_is_measured(
    names_the_seed: bool, seeds: list[int]
) -> None:
    declared: Any = Declared(names_the_seed)
    bench: Any = Bench()
    assert measured_noise(declared, bench, declared.measure(bench)) == {"floor": 0}
    assert [each.seed for each in declared.seen] == seeds
    assert len({each.batch_size for each in declared.seen}) == 3
    assert len({each.order_seed for each in declared.seen}) == 3


def test_limits_tighter_than_the_noise_are_refused_with_the_wider_one() -> None:
    held = SimpleNamespace(values={"floor": 2.0}, noise={"floor": 0.2})
    check_noise([parse_rule("gap.floor:10%")], "gap", [FLOOR], "lab/a", held.values, held.noise)
    with pytest.raises(UsageError, match=r"allows 0.18, less than the noise 0.2 .* as in 'gap.floor:9%\+1noise'"):
        check_noise([parse_rule("gap.floor:9%")], "gap", [FLOOR], "lab/a", held.values, held.noise)
