"""Clauses that every SAE must satisfy on any input, tried with activations that hypothesis draws.

A clause is 1 when an input breaks it, and 0 when none of `EXAMPLES` inputs does; its note in the report has the
smallest such input. Inputs are zeros, one-hot, repeated, Gaussian, real, and real with an outlier, of usual,
tiny and huge size, in every floating dtype. The same seed draws the same inputs on every machine, so that a run in CI
and one on a laptop say the same; another ``--sae-seed`` draws others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from sae_bench.errors import MeasurementError, UsageError
from sae_bench.measure.measurement import Estimate, Exact, Measurement, Metric, Undefined
from sae_bench.measure.properties import Property

if TYPE_CHECKING:
    from torch import Tensor

    from sae_bench.engine.bench import Bench
    from sae_bench.engine.site_data import SiteData
    from sae_bench.measure.properties.contract.clauses import Clause
    from sae_bench.measure.properties.contract.inputs import InputBuilder, InputDescription, Strategy

EXAMPLES = 50
"Most inputs with which a clause is tried."
_REAL = 64
"Tokens of clauses that are tested once."
UNCALIBRATED = -1.0

CLAUSES = {
    "not_finite": "finite activations have a NaN or infinite code or reconstruction",
    "not_deterministic": "encoding the same activations twice gives different codes",
    "batch_dependent": "a token's codes depend on the batch it is in",
    "decode_not_affine": "decode is more than a matrix and a constant",
    "wrong_sign": "codes are negative, and the SAE does not say that they are signed",
    "wrong_dtype_or_shape": "codes or reconstruction have another dtype than the weights, or another shape",
    "rounded": "codes of float32 weights are numbers of a half precision",
    "nan_hidden": "a NaN goes in and numbers come out",
    "changed_by_saving": "saved and loaded again, the SAE gives other codes",
    "uncalibrated_threshold": "a threshold is -1 or below, which is what an untrained one is",
    "silent_features": "a feature fires and writes nothing",
}
"Violation, by metric."

METRICS = (
    Metric("violations", "clauses", "lower", "clauses of the contract that are broken", noise_free=True),
    *(Metric(name, "", "lower", f"1 when {wrong}", noise_free=True) for name, wrong in CLAUSES.items()),
    Metric("explained_variance", "share", "higher", "explained variance on the first 64 documents", noise_free=True),
    Metric("decoder_norm_min", "", "reported", "smallest norm of a decoder row", noise_free=True),
    Metric("decoder_norm_max", "", "reported", "largest norm of a decoder row", noise_free=True),
)


def measure(bench: Bench) -> Measurement:
    """Try every clause on drawn inputs, then test saving, thresholds, norms and the corpus."""
    import torch

    from sae_bench.measure.properties.contract import clauses
    from sae_bench.measure.properties.contract.inputs import DTYPES, InputBuilder, strategy

    inputs = InputBuilder(bench)
    results: dict[str, str | Undefined | None] = {}
    batches = strategy(tokens=2)
    with torch.no_grad():
        for clause, inputs_to_try in (
            (clauses.not_finite, strategy()),
            (clauses.not_deterministic, strategy()),
            (clauses.batch_dependent, batches),
            (clauses.decode_not_affine, strategy()),
            (clauses.wrong_sign, strategy()),
            (clauses.wrong_dtype_or_shape, strategy(dtypes=DTYPES)),
            (clauses.nan_hidden, strategy()),
        ):
            results[clause.__name__] = _search(bench, clause, inputs_to_try, inputs)
            bench.show_progress("contract", len(results), len(CLAUSES))
        real = inputs.real[:_REAL]
        results["rounded"] = _attempt(lambda: clauses.rounded(bench.sae, real, inputs))
        results["changed_by_saving"] = _attempt(
            lambda: _changed_by_saving(bench.sae, real, results["not_deterministic"])
        )
        results["uncalibrated_threshold"] = _uncalibrated_threshold(bench.sae)
        fired, explained = _on_corpus(bench)
        norms, results["silent_features"] = _norm_estimates(bench, fired)
    estimates: dict[str, Estimate] = {
        name: result if isinstance(result, Undefined) else Exact(float(result is not None))
        for name, result in results.items()
    }
    broken = {name: violation for name, violation in results.items() if isinstance(violation, str)}
    estimates |= {"violations": Exact(float(len(broken))), "explained_variance": explained, **norms}
    notes = tuple(f"{name}: {violation}" for name, violation in broken.items())
    return Measurement(estimates, bench.clusters, settings={"examples": EXAMPLES}, notes=notes)


def _search(bench: Bench, clause: Clause, candidates: Strategy, inputs: InputBuilder) -> str | None:
    """Return the violation by the smallest input that breaks ``clause``; None when no input did."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import Flaky, NoSuchExample

    latest: dict[str, tuple[InputDescription, str]] = {}

    def breaks(description: InputDescription) -> bool:
        violation = _attempt(lambda: clause(bench.sae, inputs(description), inputs))
        if violation is not None:
            latest["violation"] = description, violation
        return violation is not None

    quiet = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        smallest = find(candidates, breaks, settings=quiet, random=Random(bench.settings.seed))
    except NoSuchExample:
        return None
    except Flaky:
        # An SAE that remembers need not fail twice on the same input.
        smallest = latest["violation"][0]
    description, violation = latest["violation"]
    repeated = _attempt(lambda: clause(bench.sae, inputs(smallest), inputs))
    return f"{repeated}; for {smallest}" if repeated is not None else f"{violation}; for {description}"


def _attempt(check: Callable[[], str | Undefined | None]) -> Any:
    """Return the result of ``check``; an exception is a violation, as ordinary activations must be encoded."""
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def _changed_by_saving(sae: Any, x: Tensor, undecided: str | Undefined | None) -> str | Undefined | None:
    from sae_bench.measure.properties.contract.clauses import encoding_difference
    from sae_bench.sae.formats import read_folder, write_sae_lens

    if undecided is not None:
        return Undefined("codes are not deterministic, so those before and after cannot be compared")
    with tempfile.TemporaryDirectory(prefix="sae-bench-") as folder:
        try:
            write_sae_lens(sae, Path(folder) / "sae")
        except UsageError as error:
            return Undefined(str(error))
        loaded = read_folder(Path(folder) / "sae").to(x.device, sae.encode(x[:1]).dtype)
    return encoding_difference(sae.encode(x), loaded.encode(x), x)


def _uncalibrated_threshold(sae: Any) -> str | None:
    threshold = sae.tensors().get("threshold")
    if threshold is None:
        return None
    uncalibrated = (threshold <= UNCALIBRATED).nonzero().flatten()
    if not len(uncalibrated):
        return None
    lowest = float(threshold.min())
    return (
        f"{len(uncalibrated)} of {threshold.numel()} thresholds are {UNCALIBRATED:g} or below, the least {lowest:.3g}"
    )


def _on_corpus(bench: Bench) -> tuple[Tensor, Exact]:
    """Return bool (n,) features that fire on the smoke tier's documents, and the variance explained there."""
    import torch

    fired = torch.zeros(int(bench.sae.d_sae), dtype=torch.bool)
    error = variance = 0.0
    mean = bench.site_data.mean
    for x, source in zip(_first_documents(bench, bench.site_data), _first_documents(bench, bench.source), strict=True):
        codes = bench.sae.encode(source)
        xhat = bench.sae.decode(codes, like=source)
        fired |= (codes != 0).any(0).cpu()
        error += float((xhat.double() - x.double()).square().sum())
        variance += float((x.double() - mean.to(x.device)).square().sum())
    if not variance > 0:
        raise MeasurementError(f"all activations at {bench.site} are the same, so there is no variance to explain")
    return fired, Exact(1 - error / variance)


def _first_documents(bench: Bench, data: SiteData) -> Iterator[Tensor]:
    """Yield (kept, d) activations at a site of each of the smoke tier's documents, whatever the tier."""
    from sae_bench.engine.settings import TIERS

    for x, keep in zip(data.x[: TIERS["smoke"].documents], data.keep, strict=False):
        yield x[keep].to(bench.settings.device)


def _norm_estimates(bench: Bench, fired: Tensor) -> tuple[dict[str, Estimate], str | Undefined | None]:
    from sae_bench.sae import decoder_norms

    try:
        norms = decoder_norms(bench.sae).cpu()
    except MeasurementError as error:
        undefined = Undefined(str(error))
        return {"decoder_norm_min": undefined, "decoder_norm_max": undefined}, undefined
    silent = (fired & (norms == 0)).nonzero().flatten()
    violation = f"{len(silent)} features fire and write nothing, the first is {int(silent[0])}" if len(silent) else None
    return {"decoder_norm_min": Exact(float(norms.min())), "decoder_norm_max": Exact(float(norms.max()))}, violation


PROPERTY = Property(
    name="contract",
    question="Does the SAE behave like one on any input: finite, deterministic, one token at a time?",
    primary_metric="violations",
    metrics=METRICS,
    limits=("violations:max:0", *(f"{name}:max:0" for name in CLAUSES), "explained_variance:min:0"),
    measure=measure,
    marker="contract",
    needs_model=False,
)
