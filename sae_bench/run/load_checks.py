"""Check an SAE when it is loaded, so that none is measured wrong in silence.

A check that is not ok is no error, since it may be intended, but whoever reads the report has to know. What cannot be
intended (NaN, shapes, an explained variance below 0) is refused before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.registry.site import Site, parse_site
from sae_bench.registry.spec import SAESpec
from sae_bench.report.records import LoadCheck
from sae_bench.sae import LinearDecoderSAE, decoder_norms

ALIGNED = 0.05
"Mean cosine of encoder and decoder directions that any trained autoencoder exceeds."

L0_WITHIN = 1.25
"Factor between claimed and measured L0 that another corpus explains."

UNIFORM = 0.9
"Share of the uniform guess's cross-entropy above which the model does not model these tokens."

_UNIT = 0.01
_TOKENS = 64
_DOCUMENTS = 2


def check_loaded(bench: Bench, spec: SAESpec) -> tuple[LoadCheck, ...]:
    """Run all checks, in the order of formats' usual mistakes; one that does not apply is left out."""
    batch = bench.batch(tuple(range(min(_DOCUMENTS, bench.n_documents))))
    return tuple(check for checks in CHECKS for check in checks(bench, batch, spec))


def _site(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    if not bench.has_model:
        return
    trained, read = bench.sae.info.site_in, bench.source.site
    if trained is None:
        yield LoadCheck("site", True, f"{read}, the SAE does not say where it was trained")
        return
    same = trained == str(read)
    with suppress(UsageError):
        same = same or _place(bench.model.canonical(parse_site(trained))) == _place(read)
    yield _check("site", same, str(read), f"the SAE was trained at {trained}")


def _base_model(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    """Compare model names: a base model and one tuned from it have the same shapes and similar activations."""
    trained, read = bench.sae.info.model, bench.model.name
    # The name of a folder says nothing about the model in it.
    if not bench.has_model or trained is None or Path(read).is_dir() or Path(trained).is_dir():
        return
    yield _check("model", _plain(trained) == _plain(read), read, f"the SAE was trained on {trained}")


def _plain(model: str) -> str:
    """Return a model's name without its owner; TransformerLens calls gpt2 gpt2-small."""
    name = model.rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(name, name)


def _place(site: Site) -> Site:
    """Return a site in its simplest form: a block's output is the next one's input."""
    return Site(site.layer + 1, "hook_resid_pre") if site.kind == "hook_resid_post" else site


def _orientation(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    sae = bench.sae
    if not isinstance(sae, LinearDecoderSAE) or bench.source is not bench.site_data:
        return
    cosine = float(cosine_similarity(sae.W_enc.T.float(), sae.W_dec.float(), dim=1).mean())
    text = f"encoder and decoder directions have mean cosine {cosine:.2f}"
    yield _check("orientation", cosine > ALIGNED, text, "are they transposed, or of two SAEs?")


def _threshold(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    threshold = bench.sae.tensors().get("threshold")
    if threshold is None:
        return
    below = int((threshold < 0).sum())
    rounded = bool(torch.equal(threshold, threshold.to(torch.bfloat16).to(threshold.dtype))) and bool(threshold.any())
    text = f"{float(threshold.min()):.3g} to {float(threshold.max()):.3g}, {below} below 0"
    text += ", all of them bfloat16 numbers" if rounded else ""
    yield _check("threshold", not below and not rounded, text, "was it ever set, or rounded when it was saved?")


def _norms(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    try:
        norms = decoder_norms(bench.sae)
    except MeasurementError:
        return
    least, most = float(norms.min()), float(norms.max())
    unit = abs(least - 1) < _UNIT and abs(most - 1) < _UNIT
    yield _check("decoder_norms", unit, f"{least:.3g} to {most:.3g}", "codes are multiplied by them where size matters")


def _l0(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    measured = float(bench.l0_per_token(batch)[batch.keep].double().mean())
    claimed = spec.l0 or bench.sae.info.l0
    if claimed is None:
        yield LoadCheck("l0", True, f"{measured:.3g}, none is claimed")
        return
    fits = claimed / L0_WITHIN <= measured <= claimed * L0_WITHIN
    yield _check(
        "l0", fits, f"{measured:.3g}, claimed {claimed:.3g}", "is a threshold, k or the scale of the input lost?"
    )


def _explained(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    explained = explained_variance(bench, batch)
    yield _check("explained_variance", explained > 0.5, f"{explained:.3f}", "model, site, processing, input scale?")


def _clean_ce(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    if not bench.has_model or not bool(batch.keep_ce.any()):
        return
    ce = float(bench.intervene(batch, None).ce[batch.keep_ce].mean())
    uniform = math.log(bench.model.d_vocab)
    text = f"{ce:.3f} nats a token, a uniform guess has {uniform:.3f}"
    yield _check("clean_ce", ce < UNIFORM * uniform, text, "another tokenizer, or a model without its weights?")


def _bos(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    trained, has_bos = bench.sae.info.prepend_bos, bench.corpus.has_bos
    text = f"documents begin {'with' if has_bos else 'without'} BOS"
    if trained is None:
        yield LoadCheck("bos", True, f"{text}, the SAE does not say how it was trained")
        return
    yield _check("bos", trained == has_bos, text, f"the SAE was trained {'with' if trained else 'without'} it")


def _context(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    trained, longest = bench.sae.info.context_size, int(bench.corpus.lengths.max())
    if trained is not None:
        yield _check("context", longest <= trained, f"{longest} tokens", f"the SAE was trained on {trained}")


def _processing(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    if not bench.has_model:
        return
    declared = {name: bool(value) for name, value in bench.sae.info.model_kwargs.items() if isinstance(value, bool)}
    done = {name for name, value in dict(bench.model.identity.get("processing", {})).items() if value is True}
    wanted = {name for name, value in declared.items() if value}
    text = f"weights are processed by {', '.join(sorted(done)) or 'nothing'}"
    wants = f"the SAE wants {', '.join(sorted(wanted)) or 'none'}"
    yield _check("weight_processing", done == wanted or not declared, text, wants)


def _batch_dependence(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[LoadCheck]:
    x = batch.source[batch.keep][:_TOKENS]
    with torch.no_grad():
        together = bench.sae.encode(x)
        alone = torch.cat([bench.sae.encode(row[None]) for row in x])
    apart = _apart(together, alone)
    text = f"{apart} of {len(x)} tokens have other codes alone than among others"
    # A token whose code sits at a threshold may round to either side.
    yield _check("batch_dependence", apart <= len(x) // 10, text, "does its encoder choose among all tokens?")


def _apart(one: Tensor, two: Tensor) -> int:
    scale = one.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(one.dtype).tiny)
    return int((((one - two).abs() / scale) > 1e-2).any(-1).sum())


CHECKS: tuple[Callable[[Bench, Batch, SAESpec], Iterator[LoadCheck]], ...] = (
    _base_model,
    _site,
    _orientation,
    _threshold,
    _norms,
    _l0,
    _explained,
    _clean_ce,
    _bos,
    _context,
    _processing,
    _batch_dependence,
)


def explained_variance(bench: Bench, batch: Batch) -> float:
    """Return 1 - squared error / squared deviation from the corpus mean, on the kept tokens; 0 without variance."""
    x, xhat = batch.x[batch.keep].double(), bench.reconstruct(batch)[batch.keep].double()
    variance = float((x - bench.site_data.mean.to(x)).square().sum())
    return 1 - float((xhat - x).square().sum()) / variance if variance > 0 else 0.0


def _check(name: str, ok: bool, result: str, question: str) -> LoadCheck:
    return LoadCheck(name, ok, result if ok else f"{result}; {question}")
