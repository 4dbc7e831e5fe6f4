"""Client of a Ray cluster: group SAEs into tasks, wait for answers, report tasks that find no place."""

from __future__ import annotations

import inspect
import logging
import socket
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sae_bench.engine import noise_floors
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.measure.properties import EXTENSIONS
from sae_bench.registry.register import SAES
from sae_bench.registry.spec import SAESpec
from sae_bench.report import run_folder
from sae_bench.run.fingerprint import sources_sha256
from sae_bench.run.options import RunOptions
from sae_bench.run.ray import pinned_files
from sae_bench.run.ray.worker import TaskAnswer, TaskRequest, measure

RETRIES = 3
"Times that Ray runs a task again whose process or machine died."
CONNECT_SECONDS = 10.0
"Seconds in which the cluster's address must answer."
INTERPRETER_BYTES = 1 << 30
"Memory of a task for the interpreter and its libraries."
Pair = tuple[SAESpec, str]


@dataclass
class RayTask:
    """One task of the cluster."""

    request: TaskRequest
    needs: dict[str, float]
    "As Ray's options: ``num_cpus``, ``num_gpus``, ``memory`` in bytes."
    answers: Any = None
    "Ray's generator; None when the task has ended."
    placed: bool = False


class RayMeasurer:
    """Measurer on a Ray cluster, for the pytest process that judges."""

    def __init__(self, address: str, wait: float, root: Path, progress: Callable[[str, int, int], None]) -> None:
        self.address, self.wait, self.root, self.progress = address, wait, root, progress
        self.ray, self._connected_here = _connect(address)
        self._tasks: list[RayTask] = []
        self._answers: dict[tuple[str, str], TaskAnswer] = {}
        self._asked = 0
        self._last_answer = time.monotonic()

    def submit(self, pairs: Sequence[Pair], options: RunOptions) -> None:
        """Start measuring; `record` returns the results."""
        work: dict[str, tuple[SAESpec, list[str]]] = {}
        for spec, name in pairs:
            work.setdefault(spec.id, (spec, []))[1].append(name)
        self._asked = len(pairs)
        specs = [spec for spec, _ in work.values()]
        related = {name for spec in specs for name in (*spec.next_layers, *spec.family) if name in SAES}
        others = tuple(SAES[name] for name in sorted(related))
        self._pickle_by_value([spec.load for spec in (*specs, *others)])
        registered = {name: EXTENSIONS.load(name) for name in EXTENSIONS.registered}
        self._pickle_by_value([each.measure for each in registered.values()])
        floors = tuple(noise_floors.EXTENSIONS.load(name) for name in noise_floors.EXTENSIONS.registered)
        self._pickle_by_value([floor.replacement for floor in floors])
        pinned = self._pinned([*specs, *others])
        gpus = int(options.device.startswith("cuda"))
        groups = divide_saes(specs, self._places(gpus))
        cpus = max(1, int(self._total("CPU")) // max(len(groups), self._places(0)))
        for group in groups:
            request = TaskRequest(
                name=uuid.uuid4().hex,
                work=tuple((spec, tuple(work[spec.id][1])) for spec in group),
                others=others,
                options=options,
                files=pinned,
                properties=registered,
                floors=floors,
                sources=sources_sha256(),
            )
            self._start(RayTask(request, {"num_cpus": cpus, "num_gpus": gpus, "memory": bytes_needed(group, options)}))

    def record(self, sae: str, name: str) -> run_folder.Record:
        """Wait for the record of one property; an error of the task or its placing is a `MeasurementError`."""
        while (sae, name) not in self._answers:
            self._step()
            self.progress(f"Ray tasks at {self.address}", min(len(self._answers), self._asked - 1), self._asked)
        answer = self._answers[sae, name]
        if answer.record is None:
            error = MeasurementError(answer.error)
            for note in answer.notes:
                error.add_note(note)
            raise error
        with tempfile.TemporaryDirectory(prefix="sae-bench-") as folder:
            path = Path(folder) / "record.json"
            path.write_bytes(answer.record)
            return run_folder.read_record(path)

    def close(self) -> None:
        """Cancel the remaining tasks, and disconnect if the connection is ours."""
        for task in self._open():
            self.ray.cancel(task.answers, force=True)
        self._tasks.clear()
        if self._connected_here:
            self.ray.shutdown()

    def _start(self, task: RayTask) -> None:
        remote = self.ray.remote(measure).options(
            num_returns="streaming", max_retries=RETRIES, name=f"sae_bench {task.request.work[0][0].id}", **task.needs
        )
        task.answers = remote.remote(task.request, self.ray.get)
        self._tasks.append(task)

    def _open(self) -> list[RayTask]:
        return [task for task in self._tasks if task.answers is not None]

    def _step(self) -> None:
        """Take the next answer of any task; end all tasks when none was placed in time."""
        tasks = self._open()
        ready = self.ray.wait([task.answers for task in tasks], num_returns=1, timeout=0.5)[0] if tasks else []
        for task in tasks:
            if any(task.answers is each for each in ready):
                self._take(task)
        if ready or any(task.placed for task in self._open()):
            self._last_answer = time.monotonic()
        elif time.monotonic() - self._last_answer > self.wait:
            for task in self._open():
                self.ray.cancel(task.answers, force=True)
                where = f"no place on the Ray cluster at {self.address} within {self.wait:g} s"
                self._end(task, f"{where}: {self._why(task)}")

    def _take(self, task: RayTask) -> None:
        try:
            answer: TaskAnswer = self.ray.get(next(task.answers))
        except StopIteration:
            self._end(task, "its Ray task ended without an answer")
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            self._end(task, f"its Ray task failed with {type(error).__name__}: {lines[-1] if lines else 'no message'}")
        else:
            task.placed = True
            if answer.property:
                self._answers[answer.sae, answer.property] = answer

    def _end(self, task: RayTask, why: str) -> None:
        """End a task: every property without an answer becomes an error."""
        task.answers = None
        for spec, names in task.request.work:
            for name in names:
                self._answers.setdefault((spec.id, name), TaskAnswer(spec.id, name, error=why))

    def _why(self, task: RayTask) -> str:
        needs = task.needs
        gpu = f"{needs['num_gpus']:g} GPU, " if needs["num_gpus"] else ""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        has = "; ".join(
            f"{node.get('GPU', 0):g} GPU, {node.get('CPU', 0):g} CPU, {node.get('memory', 0) / 1e9:.1f} GB"
            for node in nodes
        )
        return f"a task needs {gpu}{needs['num_cpus']:g} CPU and {needs['memory'] / 1e9:.1f} GB, nodes have {has}"

    def _pinned(self, specs: Sequence[SAESpec]) -> dict[tuple[str, str], pinned_files.PinnedPath]:
        """Return the files that registrations name, each read once; a cluster on this machine alone has them."""
        ours = self.ray.util.get_node_ip_address()
        alone = all(node["NodeManagerAddress"] == ours for node in self.ray.nodes() if node["Alive"])
        paths = {
            (field, path)
            for spec in specs
            for field in pinned_files.FIELDS
            for path in pinned_files.named_paths(spec, field)
        }
        paths = {(field, path) for field, path in paths if path not in SAES}
        resolved = {
            (field, path): pinned_files.pin_path(path, field, None if alone else self.ray.put) for field, path in paths
        }
        return {key: pinned for key, pinned in resolved.items() if pinned is not None}

    def _places(self, gpus: int) -> int:
        """Return the number of tasks that can run at once: one per GPU, else one per machine, with its cores."""
        if gpus:
            return max(1, int(self._total("GPU")))
        return max(
            1, len([node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1])
        )

    def _total(self, resource: str) -> float:
        total: float = self.ray.cluster_resources().get(resource, 0)
        return total

    def _pickle_by_value(self, functions: Sequence[Any]) -> None:
        """Send functions of this repository's own files with their code: workers cannot import a conftest.py."""
        for function in functions:
            module = sys.modules.get(getattr(inspect.unwrap(function), "__module__", "")) if function else None
            file = getattr(module, "__file__", None)
            ours = file is not None and Path(file).is_relative_to(self.root)
            if module is not None and ours and module.__name__.partition(".")[0] != "sae_bench":
                self.ray.cloudpickle.register_pickle_by_value(module)


def divide_saes(specs: Sequence[SAESpec], places: int) -> list[list[SAESpec]]:
    """Return groups of SAEs of one model and site, as many as there are places, so that none stays empty."""
    groups: dict[tuple[Any, ...], list[SAESpec]] = defaultdict(list)
    for spec in specs:
        # What an SAE's own config says is not known before it is read; those of one folder belong together.
        folder = None if spec.model and spec.site else str(Path(spec.path or "").parent)
        groups[spec.model, spec.site, spec.output_site, spec.corpus, spec.include_bos, folder].append(spec)
    parts = []
    for group in groups.values():
        share = max(1, min(len(group), places // len(groups)))
        ends = [index * len(group) // share for index in range(share + 1)]
        parts += [group[start:stop] for start, stop in pairwise(ends)]
    return parts


def bytes_needed(group: Sequence[SAESpec], options: RunOptions) -> int:
    """Return the bytes that a task may need: model, widest SAE with partner and copies, activations, interpreter."""
    widest = max(3 * pinned_files.bytes_of(spec, "path") + pinned_files.bytes_of(spec, "partner") for spec in group)
    model = max(pinned_files.bytes_of(spec, "model") for spec in group)
    return 2 * model + widest + options.settings().memory_bytes + INTERPRETER_BYTES


def _connect(address: str) -> tuple[Any, bool]:
    """Connect to Ray; return the module, and whether the connection is new."""
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError:
        raise UsageError("--sae-ray needs Ray, which is not installed: pip install 'pytest-sae-bench[ray]'") from None
    if ray.is_initialized():
        return ray, False
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "/" not in host:
            # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"--sae-ray {address}: no Ray cluster answers there ({lines[0] if lines else type(error).__name__}); "
            f"start one with 'ray start --head', or give the address of one"
        ) from None
    return ray, True
