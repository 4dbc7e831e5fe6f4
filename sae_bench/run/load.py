"""Load an SAE with its model and corpus: complete what the registration leaves open, check that all fits together.

Whatever is wrong with one SAE is one sentence in a `LoadError`; the others are not touched by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, check_context, check_tokenizer, check_vocabulary, load_corpus
from sae_bench.engine.devices import check_device
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import Progress, capture_site
from sae_bench.errors import LoadError, SAEBenchError
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model
from sae_bench.registry.site import INPUTS, Site, parse_site
from sae_bench.registry.spec import CONTROL, LABELLED_FIELDS, SAESpec
from sae_bench.report.records import LoadCheck, SAEResult
from sae_bench.run.load_checks import check_loaded, explained_variance
from sae_bench.run.related_saes import MeasuredSAE, load_related_saes, site_names
from sae_bench.sae import SAE, check_outputs, check_width, weights_sha256
from sae_bench.sae.controls import make_control
from sae_bench.sae.controls.known_quality import AT_THE_OUTPUT
from sae_bench.sae.formats import as_sae, read_sae

_CONTROL_TOKENS = 16_384
"Of the site that a control is made from: a principal component needs no more."


@dataclass(frozen=True)
class ResolvedSpec:
    """Model, site and corpus of an SAE, complete: registration first, then the SAE's own config."""

    model: str
    model_kwargs: Mapping[str, Any]
    site: Site
    "Site that it writes to; reconstructions are compared with the activations there."
    source: Site
    "Site that it reads; only a transcoder reads another one than it writes."
    corpus: str


class Loader:
    """Loader of SAEs with their models and corpora; models and corpora are shared, SAEs stay until closed."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        check_device(settings.device)
        self.settings = settings
        self.progress = progress
        self._models: dict[tuple[Any, ...], Model] = {}
        self._corpora: dict[str, Corpus] = {}
        self._benches: dict[str, Bench] = {}
        self._errors: dict[str, SAEBenchError] = {}
        self._checks: dict[str, tuple[LoadCheck, ...]] = {}

    def bench(self, spec: SAESpec) -> Bench:
        """Return the bench of ``spec``, loaded once; a failure is remembered and raised again."""
        if spec.id in self._errors:
            raise self._errors[spec.id]
        if spec.id not in self._benches:
            try:
                self._benches[spec.id] = self._load(spec)
            except SAEBenchError as error:
                self._errors[spec.id] = error
                raise
        return self._benches[spec.id]

    def forget(self, spec: SAESpec) -> None:
        """Release an SAE's codes and weights; models and captured activations stay."""
        self._benches.pop(spec.id, None)

    def context(self, spec: SAESpec) -> dict[str, Any]:
        """Return the context, which decides whether two results may be compared; a property adds its settings."""
        bench = self.bench(spec)
        return {
            "corpus": bench.corpus.sha256,
            "model": bench.model.identity,
            "model_dtype": bench.model.dtype,
            "sae_dtype": spec.dtype or "float32",
            "site": str(bench.site_data.site),
            "include_bos": spec.include_bos,
            **({} if bench.source is bench.site_data else {"source": str(bench.source.site)}),
        }

    def description(self, spec: SAESpec) -> SAEResult:
        """Return the provenance of an SAE, as its own config says, and its load checks; no property is measured."""
        bench = self.bench(spec)
        info = bench.sae.info
        facts = {"architecture": info.architecture, "format": info.format, "neuronpedia_id": info.neuronpedia}
        if spec.id not in self._checks:
            self._checks[spec.id] = () if spec.control is not None else check_loaded(bench, spec)
        provenance = {name: value for name, value in facts.items() if value}
        return SAEResult({}, provenance=provenance, load_checks=self._checks[spec.id])

    def weights(self, spec: SAESpec) -> str:
        """Return the hash of the SAE's weights."""
        return weights_sha256(self.bench(spec).sae)

    def _load(self, spec: SAESpec) -> Bench:
        sae = self._read(spec)
        place = complete(spec, sae)
        model = self._model(place)
        corpus = self._corpus(place.corpus)
        check_vocabulary(corpus, model.d_vocab)
        check_tokenizer(corpus, model.tokenizer_sha256)
        check_context(corpus, model.context)
        site, source = model.canonical(place.site), model.canonical(place.source)
        if site.kind in INPUTS:
            raise LoadError(
                f"SAE {spec.id!r} would write to {site}, which can only be read; give output_site=... or "
                f"--sae-output-site"
            )
        check_width(sae, model.width(site), str(site), (model.width(source), str(source)))
        check_outputs(sae)
        data = capture_site(model, site, corpus, self.settings, spec.include_bos)
        read = data if source == site else capture_site(model, source, corpus, self.settings, spec.include_bos)
        if spec.control is not None:
            x, y = (each.rows[each.kept_positions[:_CONTROL_TOKENS]].to(self.settings.device) for each in (read, data))
            generator = torch.Generator().manual_seed(self.settings.seed)
            sae = make_control(spec.control, sae, x, x if read is data else y, generator)
            read = data if spec.control in AT_THE_OUTPUT else read
        measured = MeasuredSAE(spec, sae, model, place.model, place.model_kwargs, site, source)
        bench = Bench(
            sae,
            model,
            corpus,
            data,
            self.settings,
            include_bos=spec.include_bos,
            progress=self.progress,
            related=RelatedInputs(
                partner=self._partner(spec, sae),
                next_layers=load_related_saes("next_layers", measured, self._read),
                family=load_related_saes("family", measured, self._read),
                **{name: getattr(spec, name) for name in LABELLED_FIELDS},
            ),
            id=spec.id,
            source=read,
        )
        if CONTROL not in spec.tags:
            _check_explains(bench, spec, sae)
        return bench

    def _read(self, spec: SAESpec) -> SAE:
        dtype = spec.dtype or "float32"
        if spec.path is not None:
            return read_sae(spec.path, device=self.settings.device, dtype=dtype)
        assert spec.load is not None
        try:
            loaded = spec.load()
        except SAEBenchError:
            raise
        except Exception as error:
            raise LoadError(
                f"load=... of SAE {spec.id!r} ({spec.origin}) raised {type(error).__name__}: {error}"
            ) from error
        return as_sae(loaded).to(self.settings.device, getattr(torch, dtype))

    def _partner(self, spec: SAESpec, sae: SAE) -> SAE | None:
        if spec.partner is None:
            return None
        partner = read_sae(spec.partner, device=self.settings.device, dtype=spec.dtype or "float32")
        if partner.d_out != sae.d_out:
            raise LoadError(
                f"partner {spec.partner!r} of SAE {spec.id!r} writes vectors of width {partner.d_out}, not "
                f"{sae.d_out}: a partner is an SAE of the same site from another seed"
            )
        return partner

    def _model(self, place: ResolvedSpec) -> Model:
        key = (place.model, tuple(sorted(place.model_kwargs.items())))
        if key not in self._models:
            self._models[key] = load_model(
                place.model, kwargs=place.model_kwargs, device=self.settings.device, dtype=self.settings.dtype
            )
        return self._models[key]

    def _corpus(self, path: str) -> Corpus:
        if path not in self._corpora:
            self._corpora[path] = load_corpus(path)
        return self._corpora[path]


def complete(spec: SAESpec, sae: SAE) -> ResolvedSpec:
    """Return model, site and corpus of an SAE; everything that is missing is listed in one error."""
    model = spec.model or sae.info.model
    site, output = site_names(spec, sae)
    missing = [name for name, value in (("model", model), ("site", site), ("corpus", spec.corpus)) if not value]
    if missing:
        remedy = [f"register_sae(..., {name}=...) or --sae-{name}" for name in missing]
        if "corpus" in missing:
            remedy.append(
                f"pytest-sae-bench corpus build --text FILE --model {model or 'MODEL'} --out FILE makes a corpus"
            )
        raise LoadError(
            f"SAE {spec.id!r} ({spec.origin}) has no {' and no '.join(missing)}, and its config names none: "
            f"give {'; '.join(remedy)}"
        )
    assert model is not None
    assert site is not None
    assert spec.corpus is not None
    kwargs = spec.model_kwargs or sae.info.model_kwargs
    folder = Path(spec.path).parent / model if spec.path and not spec.model else None
    model = str(folder) if folder is not None and folder.is_dir() else model
    return ResolvedSpec(model, kwargs, parse_site(output or site), parse_site(site), spec.corpus)


def _check_explains(bench: Bench, spec: SAESpec, sae: SAE) -> None:
    """Raise a `LoadError` when explained variance is below 0: the SAE was trained on other activations."""
    explained = explained_variance(bench, next(iter(bench.batches())))
    if explained < 0:
        processing = dict(bench.model.identity.get("processing", {})) or "none"
        raise LoadError(
            f"SAE {spec.id!r} explains {explained:.2f} of the variance at {bench.site} of {bench.model.name}: it was "
            f"trained on other activations; check model, site and weight processing (now {processing}, the SAE's "
            f"config says {dict(sae.info.model_kwargs) or 'none'}), or tag it 'control' if it is wrong on purpose"
        )
