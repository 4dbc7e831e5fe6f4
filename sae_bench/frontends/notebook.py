"""Measure an SAE in a notebook or a training script, without pytest: the work behind `check_sae`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_bench.engine.corpus import Corpus
from sae_bench.engine.devices import check_device
from sae_bench.engine.settings import TIERS
from sae_bench.errors import UsageError, near
from sae_bench.frontends.in_memory import (
    Activations,
    ActivationsLoader,
    InMemoryModelLoader,
    as_documents,
    corpus_of_activations,
    corpus_of_tokens,
)
from sae_bench.measure.properties import NO_MODEL, load_property, property_names
from sae_bench.model.language_model import Model
from sae_bench.model.load import wrap_model
from sae_bench.registry.spec import SAESpec
from sae_bench.report.provenance import Provenance
from sae_bench.report.records import PropertyResult
from sae_bench.report.report import Report
from sae_bench.run.options import RunOptions
from sae_bench.run.preflight import check_accepted_reports, check_names
from sae_bench.run.run import Run

OPTIONS = ("tier", "documents", "seed", "device", "dtype", "batch_size", "memory_bytes", "strict", "selfcheck")
_OWN = ("id", "path", "load", "model", "site", "corpus", "dtype", "origin", "baseline_id", "command_options", "control")
FIELDS = tuple(each.name for each in fields(SAESpec) if each.name not in _OWN)
"Options of `check_sae` that a registration takes unchanged."


def measure_and_judge(
    sae: Any,
    *,
    id: str,
    model: Any,
    site: str | None,
    corpus: Any,
    tokens: Any,
    activations: Tensor | None,
    properties: Sequence[str] | None,
    baselines: str | Path | None,
    options: Mapping[str, Any],
) -> Report:
    """Measure one SAE and judge it, as `sae_bench.check_sae` describes."""
    started = time.time()
    settings = {name: value for name, value in options.items() if name in OPTIONS}
    rest = {name: value for name, value in options.items() if name not in OPTIONS}
    for name in rest:
        if name not in FIELDS:
            raise UsageError(f"check_sae does not know the option {name!r}{near(name, (*OPTIONS, *FIELDS))}")
    if settings.get("tier", "standard") not in TIERS:
        raise UsageError(f"tier {settings['tier']!r} must be one of {', '.join(TIERS)}")
    chosen = _chosen(properties)
    in_memory = corpus_of_tokens(corpus, tokens)
    spec = _spec(sae, id, model, site, corpus if in_memory is None else "given", rest)
    settings["device"] = _device(settings.get("device"), model, activations)
    judged = RunOptions(**settings, compare=baselines is not None, baselines=Path(baselines or "baselines"))
    check_names([spec], ())
    check_accepted_reports([spec], chosen, judged)
    run = Run(
        judged,
        make_loader=lambda settings, progress: InMemoryModelLoader(
            settings, progress, _wrapped_model(model), in_memory
        ),
    )
    if activations is None:
        results = {name: run.check(spec, name).result for name in chosen}
    else:
        results = _on_activations(run, spec, chosen, activations, in_memory, model, explicit=properties is not None)
    return Report.of({spec.id: results}, Provenance.collect(Path.cwd(), started=started))


def _on_activations(
    run: Run,
    spec: SAESpec,
    chosen: Sequence[str],
    activations: Tensor,
    corpus: Corpus | None,
    model: Any,
    explicit: bool,
) -> dict[str, PropertyResult]:
    """Measure what needs no model on the activations, and the rest with the model, if there is one."""
    x, lengths = as_documents(activations)
    if corpus is not None and x.shape[:2] != corpus.tokens.shape:
        raise UsageError(
            f"activations are of {tuple(x.shape[:2])} documents and positions, and the token ids of "
            f"{tuple(corpus.tokens.shape)}: they must be of the same documents"
        )
    in_memory = Activations(x, corpus or corpus_of_activations(x, lengths), is_matrix=activations.ndim == 2)
    run_in_memory = Run(
        run.options, make_loader=lambda settings, progress: ActivationsLoader(settings, progress, in_memory)
    )
    can_run = model is not None and corpus is not None
    results = {}
    for name in chosen:
        if not load_property(name).needs_model:
            results[name] = run_in_memory.check(spec, name).result
        elif can_run:
            results[name] = run.check(spec, name).result
        elif explicit:
            raise UsageError(
                f"{name} needs the model, and check_sae has activations only; add model= and tokens=, "
                f"or leave {name} out"
            )
        else:
            results[name] = run_in_memory.undefined(spec, name, f"{NO_MODEL}; add model= and tokens=").result
    return results


def _chosen(properties: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(properties, str):
        raise UsageError(f"properties={properties!r} must be a list of names, such as [{properties!r}]")
    if properties is not None and not properties:
        raise UsageError("properties=[] measures nothing; leave it out to measure all of them")
    chosen = tuple(properties or property_names())
    for name in chosen:
        load_property(name)
    return chosen


def _spec(
    sae: Any, id: str, model: Any, site: str | None, corpus: str | Path | None, rest: Mapping[str, Any]
) -> SAESpec:
    if isinstance(sae, SAESpec):
        return sae
    where: dict[str, Any] = {"path": str(sae)} if isinstance(sae, str | Path) else {"load": lambda: sae}
    named = str(model) if isinstance(model, str | Path) else None if model is None else "given"
    place = {"model": named, "site": site, "corpus": str(corpus) if corpus is not None else None}
    return SAESpec(**{"id": id, **where, **place, "origin": "check_sae", **rest})


def _device(device: str | None, model: Any, activations: Tensor | None) -> str:
    """Return the device to measure on: the one asked for, else that of the model or of the activations."""
    weight = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    if weight is None:
        return device or (str(activations.device) if activations is not None else RunOptions.device)
    here = weight.device
    if device is not None:
        check_device(device)
        if torch.device(device) not in (here, torch.device(here.type)):
            raise UsageError(f"the model given is on {here}: leave out device={device!r}, or move the model there")
    return str(here)


def _wrapped_model(model: Any) -> Model | None:
    return None if model is None or isinstance(model, str | Path) else wrap_model(model)
