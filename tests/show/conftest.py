"""Reports made by hand: every verdict, every series, several sizes. Nothing here is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sae_bench.judge.limits import SourcedLimit, parse_rule
from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text
from sae_bench.report.convert import context_digest
from sae_bench.report.provenance import Provenance
from sae_bench.report.records import SEVERITY, MetricResult, PerCluster, PropertyResult, SAEResult, Verdict
from sae_bench.report.report import Report
from sae_bench.report.rerun_commands import RerunCommand
from tests.support.browser import Browser

RUN = Provenance(
    commit="4f2c1ab00000000000000000000000000000dead",
    dirty=False,
    started="2026-11-20T09:20:37Z",
    seconds=123.4,
    command="pytest benchmarks/",
    packages={"torch": "2.13", "pytest": "9.2"},
    python="3.11.7",
    platform="Linux",
    hardware={"machine": "x86_64", "cores": 2},
    options={"tier": "standard", "seed": 0},
    rerun_command=RerunCommand("benchmarks/"),
)
CONTEXT = {
    "corpus": "sha256:9f31c2e0aaaa",
    "model": {"weights": "sha256:607a30d0bbbb", "processing": {}},
    "model_dtype": "float32",
    "site": "blocks.2.hook_resid_post",
    "settings": {},
}
VERDICTS = list(Verdict)


def limits(text: str) -> tuple[SourcedLimit, ...]:
    """Limits of a property, joined by semicolons."""
    return tuple(parse_rule(f"x.x:{each}", "property").sourced() for each in text.split("; ") if each)


def metric(
    value: float | None = 0.0449, verdict: Verdict | None = Verdict.PASS, *, limit: str = "5%", **given: Any
) -> MetricResult:
    """A judged metric that looks measured; ``given`` overrides any field, ``limit`` is parsed."""
    fields: dict[str, Any] = {
        "unit": "nats", "better": "lower", "version": 1, "kind": "ratio", "se": 0.0013, "n": 128,
        "limits": limits(limit), "accepted": 0.0412, "change": 0.0037, "interval": (0.0025, 0.0049),
        "value_interval": (0.041, 0.048), "detectable": 0.003, "message": "kl_gap.kl_sae of x is 0.0449 nats",
        "meaning": "KL from clean to a model that reads the reconstruction",
    }  # fmt: skip
    if value is not None:
        fields["value_interval"] = (value * 0.95, value * 1.05)
    if value is None:
        fields |= {
            "se": None,
            "reason": "no value here",
            "kind": "undefined",
            "interval": None,
            "change": None,
            "value_interval": None,
            "accepted": None,
        }
    return MetricResult(**{**fields, "value": value, "verdict": verdict, **given})


def new(value: float = 0.0449, **given: Any) -> MetricResult:
    return metric(value, Verdict.NEW, **{"accepted": None, "change": None, "interval": None, **given})


def reported(value: float, unit: str = "nats", **given: Any) -> MetricResult:
    return metric(
        value, None, **{"unit": unit, "better": "reported", "limit": "", "accepted": None, "change": None,
                        "interval": None, **given}
    )  # fmt: skip


def prop(name: str, metrics: Mapping[str, MetricResult], **given: Any) -> PropertyResult:
    """A property; its verdict is the worst of its metrics, unless ``given`` says otherwise."""
    deciding = [each for each in metrics.values() if each.limits or each.verdict is not Verdict.UNDEFINED]
    verdicts = [each.verdict for each in deciding if each.verdict is not None]
    worst = max(verdicts, key=SEVERITY.__getitem__, default=Verdict.PASS)
    fields: dict[str, Any] = {
        "version": 1, "context": CONTEXT, "context_digest": context_digest(CONTEXT),
        "primary_metric": next(iter(metrics), ""),
        "verdict": worst, "confidence": 0.98, "seconds": 12.3, "clusters": tuple(range(128)),
        "lines": tuple(each.message for each in metrics.values()),
        "message": next((each.message for each in metrics.values()), ""),
        "exceeds_limit": any(each.exceeds_limit for each in metrics.values() if each.verdict is worst),
    }  # fmt: skip
    return PropertyResult(name=name, metrics=metrics, **{**fields, **given})


def failed(name: str, sae: str, why: str) -> PropertyResult:
    message = f"{name} of {sae} could not be measured: {why}"
    return prop(name, {}, verdict=Verdict.ERROR, message=message, lines=(message,), error=why, clusters=())


def report_of(saes: Mapping[str, Mapping[str, PropertyResult]], run: Provenance = RUN) -> Report:
    return Report.of(saes, run)


def kl_series(seed: int, documents: int = 64) -> dict[str, Series]:
    """Series of kl_gap with the shape of measured ones."""
    rng = np.random.default_rng(seed)
    conditions = ("sae", "isotropic", "covariance", "real_difference", "norm_corrected", "sae_norm")
    draws = {condition: rng.lognormal(-3 - row / 2, 1.2, 2_000) for row, condition in enumerate(conditions)}
    edges = np.geomspace(1e-6, 1e2, 65)
    q = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999]
    positions = list(range(1, 64))
    n = rng.integers(50, 5000, 60)
    return {
        "kl_tokens": Series(
            "histogram",
            {"edges": edges.tolist(), **{a: np.histogram(v, edges)[0].tolist() for a, v in draws.items()}},
            "KL of a token, by condition", "nats", log_x=True, chart="token_histogram", order=10),
        "kl_quantiles": Series(
            "quantiles", {"q": q, **{a: np.quantile(v, q).tolist() for a, v in draws.items()}},
            "Quantiles of a token's KL", "share of tokens",
        ),
        "kl_position": Series(
            "curve", {"x": positions, **{a: (v[:63].cumsum() / 63).tolist() for a, v in draws.items()}},
            "Mean KL by position", "position in the document",
        ),
        "kl_text": text_of(seed),
        "kl_documents": Series(
            "table",
            {"document": list(range(documents)), "kl_sae": rng.lognormal(-3, 0.3, documents).tolist()},
            "Mean KL of each document", "document", chart="ranked_documents", order=42),
        "kl_types": Series(
            "table",
            {"token": [f" tok<{row}>" for row in range(60)], "n": n.tolist(),
             "gap": rng.normal(0.01, 0.02, 60).tolist(), "se": (0.3 / np.sqrt(n)).tolist()},
            "KL above isotropic noise, by token type", "occurrences", log_x=True, chart="token_funnel", order=41),
    }  # fmt: skip


def text_of(seed: int) -> Series:
    """Documents as text, with the KL of each token."""
    rng = np.random.default_rng(seed)
    words = ["Then", " Mary", " gave", " a", " drink", " to", " <script>alert(2)</script>", " John", ".", "\n"]
    return packed_text.pack_documents(
        (document, [f"{document}", *words * 2], rng.lognormal(-3, 1.5, 21).tolist()) for document in range(64)
    )


def other_series(seed: int) -> dict[str, dict[str, Series]]:
    """Series by property: sparsity, orthogonality, shrinkage, and one nobody has heard of."""
    rng = np.random.default_rng(seed)
    l0 = np.linspace(-0.5, 40.5, 42)
    density = np.geomspace(1e-6, 1, 49)
    cosines = np.linspace(-0.2, 1, 61)
    scales = np.linspace(0.5, 2, 61)

    def histogram(edges: Any, **draws: Any) -> dict[str, Any]:
        return {"edges": edges.tolist(), **{a: np.histogram(v, edges)[0].tolist() for a, v in draws.items()}}

    nn = {
        name: Series(
            "histogram",
            histogram(cosines, sae=rng.normal(mean, 0.1, 500), isotropic=rng.normal(mean - 0.2, 0.05, 500),
                      covariance=rng.normal(mean + 0.1, 0.05, 500)),
            f"Cosine to the {name[2:]}. nearest direction", "cosine",
        )
        for name, mean in (("nn1", 0.5), ("nn10", 0.3), ("nn100", 0.1))
    }  # fmt: skip
    return {
        "sparsity": {
            "l0": Series("histogram", histogram(l0, tokens=rng.normal(20, 5, 5000)), "L0", "features"),
            "density": Series(
                "histogram", histogram(density, features=rng.lognormal(-5, 1.5, 500)),
                "Share of tokens on which a feature fires", "density", log_x=True,
            ),
        },
        "orthogonality": nn,
        "shrinkage": {
            "most": Series("table", {"feature": [17, 3], "suppression": [0.2, 0.1]}, "Most suppressed features"),
            "t_star": Series("histogram", histogram(scales, features=rng.normal(1.05, 0.1, 500)), "t*", "scale"),
            "suppression_density": Series(
                "table", {"density": [1e-4, 1e-3, 1e-2, 1e-1], "suppression": [0.2, 0.1, 0.05, 0.01]},
                "Suppression by density", "density", log_x=True,
            ),
        },
        "something_else": {
            "unheard_of": Series("table", {"name": ["a", "b", "<script>alert(1)</script>"], "amount": [1.0, 2.0, 3.0]})
        },
    }  # fmt: skip


def ratio(seed: int, value: float, documents: int = 64) -> PerCluster:
    rng = np.random.default_rng(seed)
    counts = np.full(documents, 63.0)
    values = rng.lognormal(0, 0.3, documents)
    values *= value / values.mean()
    return PerCluster(numerator=tuple((values * counts).tolist()), denominator=tuple(counts.tolist()))


def full_sae(sae: str, seed: int, first: Verdict = Verdict.PASS) -> dict[str, PropertyResult]:
    """Six properties with every series; kl_gap's headline has the verdict ``first``."""
    series = other_series(seed)
    clusters = tuple(range(64))
    value = 0.0449 + seed * 0.01
    kl = prop(
        "kl_gap",
        {
            "kl_sae": metric(value, first, per_cluster=ratio(seed, value), n=64, accepted=value - 0.003),
            "ce_gap": metric(0.03, limit="5%+0.001"),
            "kl_level": metric(0.1, limit="max:0.25", unit="ratio", accepted=None, change=None, interval=None),
            "kl_isotropic": reported(0.02),
            "tail_rank": metric(None, Verdict.UNDEFINED, limit="", accepted=None, reason="only in the full tier"),
            "frequency_correlation": reported(-0.2, ""),
        },
        series=kl_series(seed), clusters=clusters, notes=("2 documents were shorter than the others",),
    )  # fmt: skip
    hard = {"accepted": None, "change": None, "interval": None}
    explained = metric(0.8 + seed * 0.01, unit="share", better="higher", limit="min:0.5", **hard)
    fired = {"unit": "features", "better": "target", "se": 0.2, "accepted": 20.0, "change": 0.1}
    exact = {"kind": "exact", "se": None, "change": 0.0, "interval": (0.0, 0.0), "value_interval": (0.5, 0.5)}
    message = f"shrinkage.gamma_centred of {sae} is 1.10, above the hard limit max:1.05; known: L1 penalty, issue 12"
    gamma = metric(
        1.1, Verdict.KNOWN, unit="", better="target", target=1.0, limit="max:1.05; min:0.95", message=message,
        known_reason="L1 penalty, issue 12",
        **{**hard, "value_interval": (1.09, 1.11)},
    )  # fmt: skip
    found = {
        "reconstruction": {"fvu": metric(0.2 - seed * 0.01, unit="share"), "explained_variance": explained},
        "sparsity": {"l0": metric(20.0 + 3 * seed, interval=(-0.2, 0.4), **fired)},
        "orthogonality": {"nn1": metric(0.5, unit="cosine", limit="0.02", accepted=0.5, **exact)},
        "shrinkage": {"gamma_centred": gamma},
        "something_else": {"amount": reported(3.0, "")},
    }
    plain = {name: prop(name, metrics, series=series.get(name, {})) for name, metrics in found.items()}
    plain["something_else"] = replace(plain["something_else"], verdict=None)
    return {"kl_gap": kl, **plain}


@cache
def full_report(saes: int = 6) -> Report:
    """Several SAEs with everything; one fails, one is undecided, one is better."""
    verdicts = [Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.IMPROVED, Verdict.PASS, Verdict.PASS]
    kinds = ["l1", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"]
    results = {f"demo/{kinds[row % 6]}-{row}": row for row in range(saes)}
    report = report_of({sae: full_sae(sae, row, verdicts[row % 6]) for sae, row in results.items()})
    return replace(
        report,
        saes={
            sae: SAEResult(
                each.properties,
                (f"architecture:{kinds[row % 6]}",),
                {"architecture": kinds[row % 6], "neuronpedia_id": "gpt2-small/8-res-jb"},
            )
            for (sae, each), row in zip(report.saes.items(), range(saes), strict=True)
        },
    )


@dataclass(frozen=True)
class Make:
    """The builders, for tests: test modules don't import one another."""

    metric: Callable[..., MetricResult] = field(default=metric)
    new: Callable[..., MetricResult] = field(default=new)
    reported: Callable[..., MetricResult] = field(default=reported)
    prop: Callable[..., PropertyResult] = field(default=prop)
    failed: Callable[..., PropertyResult] = field(default=failed)
    report: Callable[..., Report] = field(default=report_of)
    full: Callable[..., Report] = field(default=full_report)
    full_sae: Callable[..., dict[str, PropertyResult]] = field(default=full_sae)


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium for the tests of one module."""
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()
