"""An engine that measures nothing: numbers drawn from names, and whatever ``toy.json`` says should happen to them.

Runs of it take no time and import no torch, so that everything around measuring can be tried many times: processes,
records, locks, outcomes. ``toy.json`` maps ``sae property`` to a factor, or to ``"nan"``, ``"raise"``, ``"interrupt"``,
``"kill"``, ``"kill in write"`` or ``"drop"`` (its headline metric); ``measured.log`` gets a line for every measurement.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sae_bench.measure.measurement import Exact, Measurement, Ratio, Series, Undefined
from sae_bench.measure.properties import load_property
from sae_bench.report.records import SAEResult

PROPERTIES = ("kl_gap", "reconstruction", "sparsity")
DOCUMENTS = 16
KEPT = ("alive", "dense_groups", "ce_gap", "explained_variance", "l1")
"Metrics beside the headlines: few, so that runs are quick."


@dataclass(frozen=True)
class ToySettings:
    batch_size: int
    seed: int
    order_seed: int | None = None
    documents: int | None = None


@dataclass
class ToyBench:
    """What the properties of this engine read of a `Bench`."""

    sae: Any
    settings: ToySettings


class ToyLoader:
    def __init__(self, options: Any) -> None:
        self.settings = ToySettings(options.batch_size, options.seed, None, options.documents)

    def bench(self, spec: Any) -> ToyBench:
        return ToyBench(SimpleNamespace(id=spec.id), self.settings)

    def forget(self, spec: Any) -> None: ...

    def description(self, spec: Any) -> SAEResult:
        return SAEResult({}, provenance={"architecture": "toy", "neuronpedia_id": f"toy/{spec.id}"})

    def context(self, spec: Any) -> dict[str, Any]:
        return {"corpus": said().get("corpus", "c0ffee"), "site": "blocks.3.hook_resid_pre"}


def said() -> dict[str, Any]:
    path = Path("toy.json")
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def measure(name: str, bench: ToyBench) -> Measurement:
    with Path("measured.log").open("a") as log:
        log.write(f"{bench.sae.id} {name}\n")
    with Path("processes.log").open("a") as log:
        log.write(f"{os.getpid()} {bench.sae.id} {os.environ.get('OMP_NUM_THREADS')}\n")
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    what = said().get(f"{bench.sae.id} {name}", 1.0)
    if what == "raise":
        raise RuntimeError("the engine stopped")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill in write":
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    factor = what if isinstance(what, float) else math.nan if what == "nan" else 1.0
    estimates: dict[str, Any] = {}
    for metric in toy_metrics(name):
        rng = np.random.default_rng(zlib.crc32(f"{bench.sae.id} {name} {metric.name}".encode()))
        values = 0.5 * rng.lognormal(0, 0.3, DOCUMENTS)
        noise = 1 if metric.noise_free else 1 + 0.01 * np.random.default_rng(bench.settings.seed).normal(size=DOCUMENTS)
        estimates[metric.name] = Ratio(values * factor * noise, np.full(DOCUMENTS, 3.0))
    if name == "sparsity":
        estimates |= {"alive": Exact(17.0), "dense_groups": Undefined("no feature is dense")}
    if what == "drop":
        del estimates[load_property(name).primary_metric]
    documents = bench.settings.documents or DOCUMENTS
    kept = {key: _first(each, documents) for key, each in estimates.items()}
    series = {"shape": Series("histogram", {"edges": [0.0, 0.1, 1 / 3], "tokens": [1, 2]}, "A histogram")}
    return Measurement(kept, tuple(range(documents)), series, {"levels": (0.1, 0.2)}, ("a note",))


def _first(estimate: Any, documents: int) -> Any:
    if not isinstance(estimate, Ratio):
        return estimate
    return Ratio(estimate.numerator[:documents], estimate.denominator[:documents])


def toy_metrics(name: str) -> tuple[Any, ...]:
    declared = load_property(name)
    return tuple(metric for metric in declared.metrics if metric.name in (declared.primary_metric, *KEPT))


def toy_property(name: str) -> Any:
    declared = load_property(name)
    limits = (f"{declared.primary_metric}:5%",)
    return replace(declared, measure=lambda bench: measure(name, bench), limits=limits, metrics=toy_metrics(name))


def content(loader: ToyLoader, spec: Any, declared: Any) -> dict[str, Any]:
    return {
        "sae": spec.id,
        "property": declared.name,
        "settings": loader.settings.__dict__,
        "toy": loader.context(spec),
    }


def install(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put the toy in the engine's place."""
    from sae_bench.run import run

    set_attribute(run, "load_property", toy_property)
    set_attribute(run, "measurement_content", content)
    set_attribute(run.Run, "_load", lambda self: ToyLoader(self.options))
