"""Fingerprint of a measurement: contents, settings and versions that its numbers follow from, never a name or path.

Two runs with equal fingerprints would measure the same to the last bit, so one may use the results that the other
finished before it was interrupted.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench.engine.noise_floors import added_floors
from sae_bench.registry.file_hash import file_sha256
from sae_bench.registry.spec import LABELLED_FIELDS
from sae_bench.report.provenance import hardware

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.measure.properties import Property
    from sae_bench.registry.spec import SAESpec
    from sae_bench.run.load import Loader

_PACKAGES = ("torch", "transformer-lens", "transformers", "numpy", "scipy", "scikit-learn")


def measurement_content(loader: Loader, spec: SAESpec, declared: Property) -> dict[str, Any]:
    """Return everything that one property of one SAE follows from, as JSON values."""
    from sae_bench.sae import weights_sha256

    bench = loader.bench(spec)
    related = bench.related
    return {
        "property": [declared.name, declared.version, {metric.name: metric.version for metric in declared.metrics}],
        "context": loader.context(spec),
        "weights": loader.weights(spec),
        "behaviour": _behaviour(bench),
        "related": [[each.sha256, str(each.site)] for each in (*related.next_layers, *related.family)],
        "partner": None if related.partner is None else weights_sha256(related.partner),
        "labelled": {name: _files_sha256(getattr(related, name)) for name in LABELLED_FIELDS},
        "settings": asdict(loader.settings),
        "packages": {name: _version(name) for name in _PACKAGES},
        "hardware": hardware(),
        "sources": [sources_sha256(), _own_source(declared.measure)],
        "floors": {floor.name: [floor.version, _own_source(floor.replacement)] for floor in added_floors()},
    }


@cache
def sources_sha256(package: Path = Path(__file__).parents[1]) -> str:
    """Return the hash of this package's code, demo and rendering left out."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in ("demo", "show"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _own_source(function: Callable[..., object]) -> str | None:
    """Return the hash of the file of another package's property or noise floor; None where there is no file."""
    try:
        path = inspect.getsourcefile(function)
    except TypeError:
        return None
    return file_sha256(Path(path)) if path and Path(path).is_file() else None


def _behaviour(bench: Bench) -> str | None:
    """Return the hash of a user object's reconstructions: its tensors need not be all that decides."""
    if bench.sae.info.format != "object":
        return None
    reconstruction = bench.reconstruct(bench.batch(tuple(range(min(2, bench.n_documents)))))
    return hashlib.sha256(reconstruction.float().cpu().numpy().tobytes()).hexdigest()


def _files_sha256(path: str | None) -> dict[str, str] | None:
    """Return the hashes of a labelled dataset and of its variants next to it."""
    if path is None:
        return None
    named = Path(path)
    files = sorted(named.parent.glob(f"{named.stem}*{named.suffix}"))
    return {file.name.removeprefix(named.stem): file_sha256(file) for file in files}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
