"""What is looked at when an SAE is loaded, so that none is measured wrong in silence: one named sentence each.

A sentence begins with ``ok`` or with ``LOOK``: the second kind is not an error, since it may be meant, but whoever
reads the report has to know. What cannot be meant (NaN, shapes, an explained variance below 0) is refused before.
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


def looked_at(bench: Bench, spec: SAESpec) -> dict[str, str]:
    """Name of each check to what it found, in the order of formats' usual mistakes."""
    batch = bench.batch(tuple(range(min(_DOCUMENTS, bench.n_documents))))
    return {name: sentence for check in CHECKS for name, sentence in check(bench, batch, spec)}


def _site(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    if not bench.has_model:
        return
    trained, read = bench.sae.info.site_in, bench.source.site
    if trained is None:
        yield "site", f"ok: {read}, the SAE does not say where it was trained"
        return
    same = trained == str(read)
    with suppress(UsageError):
        same = same or _place(bench.model.canonical(parse_site(trained))) == _place(read)
    yield "site", _say(same, str(read), f"the SAE was trained at {trained}")


def _base_model(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    """A base model and what was tuned or distilled from it have one shape, and much of one another's activations."""
    trained, read = bench.sae.info.model, bench.model.name
    # A folder is called as its owner likes.
    if not bench.has_model or trained is None or Path(read).is_dir() or Path(trained).is_dir():
        return
    yield "model", _say(_plain(trained) == _plain(read), read, f"the SAE was trained on {trained}")


def _plain(model: str) -> str:
    """A model's name without its owner; TransformerLens says gpt2-small for gpt2."""
    name = model.rpartition("/")[2].lower()
    return {"gpt2-small": "gpt2"}.get(name, name)


def _place(site: Site) -> Site:
    """A block's output is the next one's input."""
    return Site(site.layer + 1, "hook_resid_pre") if site.kind == "hook_resid_post" else site


def _orientation(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    sae = bench.sae
    if not isinstance(sae, LinearDecoderSAE) or bench.source is not bench.site_data:
        return
    cosine = float(cosine_similarity(sae.W_enc.T.float(), sae.W_dec.float(), dim=1).mean())
    text = f"encoder and decoder directions have mean cosine {cosine:.2f}"
    yield "orientation", _say(cosine > ALIGNED, text, "are they transposed, or of two SAEs?")


def _threshold(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    threshold = bench.sae.tensors().get("threshold")
    if threshold is None:
        return
    below = int((threshold < 0).sum())
    rounded = bool(torch.equal(threshold, threshold.to(torch.bfloat16).to(threshold.dtype))) and bool(threshold.any())
    text = f"{float(threshold.min()):.3g} to {float(threshold.max()):.3g}, {below} below 0"
    text += ", all of them bfloat16 numbers" if rounded else ""
    yield "threshold", _say(not below and not rounded, text, "was it ever set, or rounded when it was saved?")


def _norms(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    try:
        norms = decoder_norms(bench.sae)
    except MeasurementError:
        return
    least, most = float(norms.min()), float(norms.max())
    unit = abs(least - 1) < _UNIT and abs(most - 1) < _UNIT
    yield (
        "decoder_norms",
        _say(unit, f"{least:.3g} to {most:.3g}", "codes are multiplied by them where size matters"),
    )


def _l0(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    found = float(bench.l0_per_token(batch)[batch.keep].double().mean())
    claimed = spec.l0 or bench.sae.info.l0
    if claimed is None:
        yield "l0", f"ok: {found:.3g}, none is claimed"
        return
    fits = claimed / L0_WITHIN <= found <= claimed * L0_WITHIN
    yield "l0", _say(fits, f"{found:.3g}, claimed {claimed:.3g}", "is a threshold, k or the scale of the input lost?")


def _explained(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    explained = explained_variance(bench, batch)
    yield "explained_variance", _say(explained > 0.5, f"{explained:.3f}", "model, site, processing, input scale?")


def _clean_ce(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    if not bench.has_model or not bool(batch.keep_ce.any()):
        return
    found = float(bench.intervene(batch, None).ce[batch.keep_ce].mean())
    uniform = math.log(bench.model.d_vocab)
    text = f"{found:.3f} nats a token, a uniform guess has {uniform:.3f}"
    yield "clean_ce", _say(found < UNIFORM * uniform, text, "another tokenizer, or a model without its weights?")


def _bos(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    trained, given = bench.sae.info.prepend_bos, bench.corpus.has_bos
    text = f"documents begin {'with' if given else 'without'} BOS"
    if trained is None:
        yield "bos", f"ok: {text}, the SAE does not say how it was trained"
        return
    yield "bos", _say(trained == given, text, f"the SAE was trained {'with' if trained else 'without'} it")


def _context(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    trained, longest = bench.sae.info.context_size, int(bench.corpus.lengths.max())
    if trained is not None:
        yield "context", _say(longest <= trained, f"{longest} tokens", f"the SAE was trained on {trained}")


def _processing(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    if not bench.has_model:
        return
    said = {name: bool(value) for name, value in bench.sae.info.model_kwargs.items() if isinstance(value, bool)}
    done = {name for name, value in dict(bench.model.identity.get("processing", {})).items() if value is True}
    wanted = {name for name, value in said.items() if value}
    text = f"weights are processed by {', '.join(sorted(done)) or 'nothing'}"
    wants = f"the SAE wants {', '.join(sorted(wanted)) or 'none'}"
    yield "weight_processing", _say(done == wanted or not said, text, wants)


def _batch_dependence(bench: Bench, batch: Batch, spec: SAESpec) -> Iterator[tuple[str, str]]:
    x = batch.source[batch.keep][:_TOKENS]
    with torch.no_grad():
        together = bench.sae.encode(x)
        alone = torch.cat([bench.sae.encode(row[None]) for row in x])
    apart = _apart(together, alone)
    text = f"{apart} of {len(x)} tokens have other codes alone than among others"
    # A token whose code sits at a threshold may round to either side.
    yield "batch_dependence", _say(apart <= len(x) // 10, text, "does its encoder choose among all tokens?")


def _apart(one: Tensor, two: Tensor) -> int:
    scale = one.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(one.dtype).tiny)
    return int((((one - two).abs() / scale) > 1e-2).any(-1).sum())


CHECKS: tuple[Callable[[Bench, Batch, SAESpec], Iterator[tuple[str, str]]], ...] = (
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
    """1 - squared error over squared deviation from the corpus mean, on the kept tokens; 0 without variance."""
    x, xhat = batch.x[batch.keep].double(), bench.reconstruct(batch)[batch.keep].double()
    variance = float((x - bench.site_data.mean.to(x)).square().sum())
    return 1 - float((xhat - x).square().sum()) / variance if variance > 0 else 0.0


def _say(fine: bool, found: str, question: str) -> str:
    return f"ok: {found}" if fine else f"LOOK: {found}; {question}"
