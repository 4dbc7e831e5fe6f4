"""What every SAE must satisfy on any input, tried with activations that hypothesis draws.

A clause is 1 when an input was found that breaks it, and 0 when `EXAMPLES` inputs were not enough to; the note beside
it has the smallest such input. Inputs are zeros, one-hot, repeated, Gaussian, real, and real with an outlier, of usual,
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
"Inputs that every clause is tried with."
_REAL = 64
"Tokens for what one look decides."
UNCALIBRATED = -1.0

CLAUSES = {
    "not_finite": "finite activations have a NaN or infinite code or reconstruction",
    "not_deterministic": "the same activations have other codes when asked again",
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
"What is wrong, by metric."

METRICS = (
    Metric("violations", "clauses", "lower", "clauses of the contract that are broken", noise_free=True),
    *(Metric(name, "", "lower", f"1 when {wrong}", noise_free=True) for name, wrong in CLAUSES.items()),
    Metric("explained_variance", "share", "higher", "on the first 64 documents of the corpus", noise_free=True),
    Metric("decoder_norm_min", "", "reported", "smallest norm of a decoder row", noise_free=True),
    Metric("decoder_norm_max", "", "reported", "largest norm of a decoder row", noise_free=True),
)


def measure(bench: Bench) -> Measurement:
    """Every clause on drawn inputs, then what saving, thresholds, norms and the corpus say."""
    import torch

    from sae_bench.measure.properties.contract import clauses
    from sae_bench.measure.properties.contract.inputs import DTYPES, InputBuilder, strategy

    inputs = InputBuilder(bench)
    found: dict[str, str | Undefined | None] = {}
    many = strategy(tokens=2)
    with torch.no_grad():
        for clause, drawn in (
            (clauses.not_finite, strategy()),
            (clauses.not_deterministic, strategy()),
            (clauses.batch_dependent, many),
            (clauses.decode_not_affine, strategy()),
            (clauses.wrong_sign, strategy()),
            (clauses.wrong_dtype_or_shape, strategy(dtypes=DTYPES)),
            (clauses.nan_hidden, strategy()),
        ):
            found[clause.__name__] = _search(bench, clause, drawn, inputs)
            bench.show_progress("contract", len(found), len(CLAUSES))
        real = inputs.real[:_REAL]
        found["rounded"] = _attempt(lambda: clauses.rounded(bench.sae, real, inputs))
        found["changed_by_saving"] = _attempt(lambda: _saved(bench.sae, real, found["not_deterministic"]))
        found["uncalibrated_threshold"] = _threshold(bench.sae)
        fired, explained = _on_corpus(bench)
        norms, found["silent_features"] = _norms(bench, fired)
    estimates: dict[str, Estimate] = {
        name: each if isinstance(each, Undefined) else Exact(float(each is not None)) for name, each in found.items()
    }
    broken = {name: wrong for name, wrong in found.items() if isinstance(wrong, str)}
    estimates |= {"violations": Exact(float(len(broken))), "explained_variance": explained, **norms}
    notes = tuple(f"{name}: {wrong}" for name, wrong in broken.items())
    return Measurement(estimates, bench.clusters, settings={"examples": EXAMPLES}, notes=notes)


def _search(bench: Bench, clause: Clause, drawn: Strategy, inputs: InputBuilder) -> str | None:
    """What is wrong with the smallest input found that breaks ``clause``; None when none was found."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import Flaky, NoSuchExample

    last: dict[str, tuple[InputDescription, str]] = {}

    def breaks(case: InputDescription) -> bool:
        wrong = _attempt(lambda: clause(bench.sae, inputs(case), inputs))
        if wrong is not None:
            last["seen"] = case, wrong
        return wrong is not None

    quiet = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        smallest = find(drawn, breaks, settings=quiet, random=Random(bench.settings.seed))
    except NoSuchExample:
        return None
    except Flaky:
        # An SAE that remembers need not fail twice on the same input.
        smallest = last["seen"][0]
    case, wrong = last["seen"]
    again = _attempt(lambda: clause(bench.sae, inputs(smallest), inputs))
    return f"{again}; for {smallest}" if again is not None else f"{wrong}; for {case}"


def _attempt(look: Callable[[], str | Undefined | None]) -> Any:
    """What ``look`` finds; an exception is a finding, since ordinary activations must be encoded."""
    try:
        return look()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def _saved(sae: Any, x: Tensor, undecided: str | Undefined | None) -> str | Undefined | None:
    from sae_bench.measure.properties.contract.clauses import encoding_difference
    from sae_bench.sae.formats import read_folder, write_sae_lens

    if undecided is not None:
        return Undefined("codes are not deterministic, so those before and after cannot be compared")
    with tempfile.TemporaryDirectory(prefix="sae-bench-") as folder:
        try:
            write_sae_lens(sae, Path(folder) / "sae")
        except UsageError as error:
            return Undefined(str(error))
        again = read_folder(Path(folder) / "sae").to(x.device, sae.encode(x[:1]).dtype)
    return encoding_difference(sae.encode(x), again.encode(x), x)


def _threshold(sae: Any) -> str | None:
    found = sae.tensors().get("threshold")
    if found is None:
        return None
    wrong = (found <= UNCALIBRATED).nonzero().flatten()
    if not len(wrong):
        return None
    least = float(found.min())
    return f"{len(wrong)} of {found.numel()} thresholds are {UNCALIBRATED:g} or below, the least {least:.3g}"


def _on_corpus(bench: Bench) -> tuple[Tensor, Exact]:
    """bool (n,), which features fire on the smoke tier's documents, and the variance that is explained there."""
    import torch

    fired = torch.zeros(int(bench.sae.d_sae), dtype=torch.bool)
    error = variance = 0.0
    mean = bench.site_data.mean
    for x, read in zip(_first_documents(bench, bench.site_data), _first_documents(bench, bench.source), strict=True):
        codes = bench.sae.encode(read)
        xhat = bench.sae.decode(codes, like=read)
        fired |= (codes != 0).any(0).cpu()
        error += float((xhat.double() - x.double()).square().sum())
        variance += float((x.double() - mean.to(x.device)).square().sum())
    if not variance > 0:
        raise MeasurementError(f"all activations at {bench.site} are the same, so there is no variance to explain")
    return fired, Exact(1 - error / variance)


def _first_documents(bench: Bench, data: SiteData) -> Iterator[Tensor]:
    """(kept, d) activations at a site of each of the smoke tier's documents, whatever the tier."""
    from sae_bench.engine.settings import TIERS

    for x, keep in zip(data.x[: TIERS["smoke"].documents], data.keep, strict=False):
        yield x[keep].to(bench.settings.device)


def _norms(bench: Bench, fired: Tensor) -> tuple[dict[str, Estimate], str | Undefined | None]:
    from sae_bench.sae import decoder_norms

    try:
        norms = decoder_norms(bench.sae).cpu()
    except MeasurementError as error:
        why = Undefined(str(error))
        return {"decoder_norm_min": why, "decoder_norm_max": why}, why
    silent = (fired & (norms == 0)).nonzero().flatten()
    wrong = f"{len(silent)} features fire and write nothing, the first is {int(silent[0])}" if len(silent) else None
    return {"decoder_norm_min": Exact(float(norms.min())), "decoder_norm_max": Exact(float(norms.max()))}, wrong


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
