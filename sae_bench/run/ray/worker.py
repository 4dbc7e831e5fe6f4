"""Worker of a Ray task: measure some SAEs of one model and site, and answer per property as soon as it is done.

Records stay on the worker's machine until the task has ended, so that a task whose process died takes up what it had
finished when Ray runs it again there.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sae_bench.engine import noise_floors
from sae_bench.errors import LoadError, SAEBenchError
from sae_bench.measure.properties import EXTENSIONS, Property, register_property
from sae_bench.registry.register import SAES
from sae_bench.registry.spec import SAESpec
from sae_bench.report import run_folder
from sae_bench.run.fingerprint import sources_sha256
from sae_bench.run.options import RunOptions
from sae_bench.run.ray.pinned_files import PinnedPath, local_path, with_local_paths
from sae_bench.run.run import Run


@dataclass(frozen=True)
class TaskRequest:
    """Request of one task."""

    name: str
    "Unique; its records lie under this name."
    work: tuple[tuple[SAESpec, tuple[str, ...]], ...]
    "SAEs and the properties to measure of each, in this order."
    others: tuple[SAESpec, ...]
    "Registered SAEs that those of `work` name: of other layers, of other widths."
    options: RunOptions
    files: Mapping[tuple[str, str], PinnedPath]
    "By field and path of a registration."
    properties: Mapping[str, Property]
    "Those that a ``conftest.py`` registered."
    floors: tuple[noise_floors.NoiseFloor, ...]
    "Noise floors that a ``conftest.py`` registered."
    sources: str
    "Hash of the package that asks."


@dataclass(frozen=True)
class TaskAnswer:
    """Answer about one property of one SAE; one without a property reports that the task is running."""

    sae: str = ""
    property: str = ""
    record: bytes | None = None
    "A record's file."
    error: str = ""
    notes: tuple[str, ...] = ()
    host: str = ""


def measure(request: TaskRequest, fetch: Callable[[Any], bytes]) -> Iterator[TaskAnswer]:
    """Yield every answer of a task; ``fetch`` returns the bytes of a file."""
    yield TaskAnswer(host=socket.gethostname())
    try:
        paths = _prepared(request, fetch)
    except SAEBenchError as error:
        yield from (TaskAnswer(spec.id, name, error=str(error)) for spec, names in request.work for name in names)
        return
    folder = Path(tempfile.gettempdir()) / "sae-bench-ray" / request.name
    run = Run(_unjudged(request.options), folder, earlier=run_folder.earlier_records([folder]))
    for spec, names in request.work:
        unjudged = replace(with_local_paths(spec, paths), known_failures={}, limits=())
        for name in names:
            yield _answer(run, unjudged, name)
    shutil.rmtree(folder, ignore_errors=True)


def _prepared(request: TaskRequest, fetch: Callable[[Any], bytes]) -> dict[tuple[str, str], str]:
    """Return the paths of the request's files on this machine; load the properties of its ``conftest.py``."""
    if request.sources != sources_sha256():
        raise LoadError(
            f"the Ray worker on {socket.gethostname()} has another version of pytest-sae-bench; install the same one"
        )
    # This process may have served another run, whose registrations had the same names.
    EXTENSIONS.registered.clear()
    noise_floors.EXTENSIONS.registered.clear()
    SAES.clear()
    for declared in request.properties.values():
        register_property(declared)
    for floor in request.floors:
        noise_floors.EXTENSIONS.register(floor.name, floor)
    paths = {(field, path): local_path(pinned, field, fetch) for (field, path), pinned in request.files.items()}
    for spec in request.others:
        SAES.add(spec.id, partial(with_local_paths, spec, paths), origin=spec.origin)
    return paths


def _answer(run: Run, spec: SAESpec, name: str) -> TaskAnswer:
    checked = run.check(spec, name)
    if (spec.id, name) in run.errors:
        return TaskAnswer(spec.id, name, error=run.errors[spec.id, name], notes=checked.result.notes)
    path = dict(checked.user_properties)[run_folder.RECORD]
    if not path:
        return TaskAnswer(spec.id, name, error=run.unwritten[-1])
    return TaskAnswer(spec.id, name, record=Path(path).read_bytes())


def _unjudged(options: RunOptions) -> RunOptions:
    """Return options that measure without judging; a GPU that Ray lends is the only one that its task sees."""
    device = "cuda" if options.device.startswith("cuda") else options.device
    return replace(options, device=device, compare=False, reference=None, rules=(), strict=False)
