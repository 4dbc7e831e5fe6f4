"""A property of four metrics, an SAE measured on simulated documents, and the shortest way to a verdict on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import AcceptedProperty, PropertyVerdict
from sae_bench.measure.measurement import Accepted, Estimate, Exact, Measurement, Metric, Ratio
from sae_bench.report.convert import PropertyDeclaration, property_context, property_result
from sae_bench.report.provenance import Provenance
from sae_bench.report.records import PropertyResult
from sae_bench.report.report import Report

# Other work shares the machine, and a slow moment is no failure.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

CONTEXT = {"corpus": {"sha256": "c0ffee"}, "site": "blocks.3.hook_resid_pre", "dtype": {"sae": "float32"}}


@dataclass(frozen=True)
class Declared:
    name: str
    metrics: tuple[Metric, ...]
    primary_metric: str
    limits: tuple[str, ...]
    version: int = 1


GAP = Declared(
    "kl_gap",
    (
        Metric("kl_sae", "nats", "lower", "what the SAE costs", noise_free=True),
        Metric("ev", "share", "higher", "what is explained"),
        Metric("l0", "features", "target", "active features"),
        Metric("kl_level", "ratio", "lower", "cost over mean ablation"),
        Metric("norm", "", "reported", "a number nobody judges"),
        Metric("nn1", "cosine", "lower", "a property of the weights"),
    ),
    "kl_sae",
    ("kl_sae:5%", "ev:0.02", "l0:5%", "kl_level:max:0.25", "nn1:0.02"),
)


@dataclass
class Gate:
    """Builders. ``rng`` is seeded per test."""

    rng: np.random.Generator
    declared: Declared = GAP
    context: dict[str, Any] = field(default_factory=lambda: dict(CONTEXT))

    def ratio(self, documents: int = 64, mean: float = 0.1, spread: float = 0.3, tokens: int = 127) -> Ratio:
        values = mean * self.rng.lognormal(-(spread**2) / 2, spread, documents)
        counts = np.full(documents, float(tokens))
        return Ratio(values * counts, counts)

    def scaled(self, ratio: Ratio, factor: float, noise: float = 0.0) -> Ratio:
        factors = factor * np.exp(self.rng.normal(0, noise, len(ratio.numerator)))
        return Ratio(ratio.numerator * factors, ratio.denominator)

    def measurement(self, **estimates: Estimate) -> Measurement:
        sizes = {len(each.numerator) for each in estimates.values() if isinstance(each, Ratio)}
        sizes |= {len(each.influence) for each in estimates.values() if hasattr(each, "influence")}
        return Measurement(estimates, tuple(range(max(sizes, default=0))))

    def accepted(
        self, measurement: Measurement, anchor: Mapping[str, float] | None = None, **changes: Any
    ) -> AcceptedProperty:
        anchors = anchor or {}
        metrics = {
            name: replace(
                Accepted(each.value, each, measurement.clusters, 1, anchors.get(name)), **changes.get(name, {})
            )
            for name, each in measurement.estimates.items()
        }
        return AcceptedProperty(metrics, self.context)

    def judge(
        self,
        now: Measurement | str,
        accepted: AcceptedProperty | None = None,
        *,
        limits: Sequence[str] = (),
        own: Sequence[str] | None = None,
        context: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> PropertyVerdict:
        default = self.declared.limits if own is None else own
        rules = [parse_rule(f"{self.declared.name}.{limit}", "property") for limit in default]
        rules += [parse_rule(f"{self.declared.name}.{limit}") for limit in limits]
        return judge(
            self.declared.name,
            self.declared.metrics,
            self.declared.primary_metric,
            now,
            accepted,
            sae="demo/topk",
            rules=rules,
            context=self.context if context is None else context,
            **options,
        )

    @property
    def declaration(self) -> PropertyDeclaration:
        """What a report needs of the property."""
        return PropertyDeclaration(
            self.declared.name, self.declared.version, self.declared.metrics, self.declared.primary_metric
        )

    def result(
        self, now: Measurement | str, accepted: AcceptedProperty | None = None, **options: Any
    ) -> PropertyResult:
        verdict = self.judge(now, accepted, **options)
        return property_result(
            now, verdict, self.declaration, context=property_context(self.context, now), seconds=1.5, accepted=accepted
        )

    def report(
        self, now: Measurement | str, accepted: AcceptedProperty | None = None, sae: str = "demo/topk", **options: Any
    ) -> Report:
        run = Provenance("0123abc", False, "2026-11-20T12:00:00Z", command="pytest benchmarks/")
        return Report.of({sae: {self.declared.name: self.result(now, accepted, **options)}}, run)


@pytest.fixture
def gate() -> Gate:
    return Gate(np.random.default_rng(20261120))


@pytest.fixture
def sound(gate: Gate) -> Measurement:
    """A sound SAE's measurement: every metric within its hard limits."""
    kl, ev, l0 = gate.ratio(), gate.ratio(mean=0.9, spread=0.02), gate.ratio(mean=20, spread=0.1)
    return gate.measurement(kl_sae=kl, ev=ev, l0=l0, kl_level=kl, norm=gate.ratio(), nn1=Exact(0.31))
