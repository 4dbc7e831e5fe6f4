"""Measure a property of a registered SAE and judge it; pytest items and `check_sae` all come through `Run.check`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_bench.engine.settings import Settings
from sae_bench.errors import MeasurementError, SAEBenchError, StoreError
from sae_bench.judge.judge import judge, sparsity_moved
from sae_bench.judge.verdicts import AcceptedProperty, PropertyVerdict, Verdict
from sae_bench.measure.measurement import Measurement, Undefined
from sae_bench.measure.properties import Property, load_property
from sae_bench.registry.spec import SAESpec
from sae_bench.report import baselines, run_folder
from sae_bench.report.convert import PropertyDeclaration, property_result
from sae_bench.report.records import Command, PropertyResult, SAEResult
from sae_bench.report.rerun_commands import RerunCommand
from sae_bench.run.fingerprint import measurement_content
from sae_bench.run.measured_property import MeasuredProperty, noisy, restored, with_noise
from sae_bench.run.noise import check_noise, measured_noise
from sae_bench.run.options import RunOptions
from sae_bench.run.preflight import rules_for

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.engine.site_data import Progress
    from sae_bench.report.timing import Timing
    from sae_bench.run.load import Loader


@dataclass(frozen=True)
class CheckedProperty:
    """One finished item."""

    result: PropertyResult
    verdict: PropertyVerdict
    user_properties: tuple[tuple[str, str], ...]
    failure: str | None
    "The text of the failure; None when the item passes."


class RemoteMeasurer(Protocol):
    """Other processes that measure for this one, which judges."""

    def record(self, sae: str, name: str) -> run_folder.Record:
        """Wait for the record of one property and return it; an error of the other process is an `SAEBenchError`."""
        ...

    def close(self) -> None:
        """Stop the other processes."""
        ...


class Run:
    """Measures and judges; keeps models, activations and SAEs between items."""

    def __init__(
        self,
        options: RunOptions,
        folder: Path | None = None,
        progress: Progress | None = None,
        earlier: Mapping[str, run_folder.Record] | None = None,
        make_loader: Callable[[Settings, Progress | None], Loader] | None = None,
    ) -> None:
        self.options = options
        self.folder = folder
        "Folder of the records; None writes nothing."
        self.progress = progress
        self.earlier: Mapping[str, run_folder.Record] = earlier or {}
        "Records of unfinished runs by what their numbers follow from."
        self.results: dict[tuple[str, str], PropertyResult] = {}
        "Results of this process, by SAE and property."
        self.records: dict[Path, run_folder.Record] = {}
        "Records that this process has written."
        self.descriptions: dict[str, SAEResult] = {}
        "Provenance and load checks of the SAEs that this process has loaded, by id."
        self.unwritten: list[str] = []
        "Errors of records that could not be written."
        self.timings: list[Timing] = []
        "Timed operations; no verdict depends on them."
        self.rerun_command: RerunCommand | None = None
        "Starts this run again; None where no command does that."
        self.remote: RemoteMeasurer | None = None
        "Other processes that measure; None: this one does."
        self.errors: dict[tuple[str, str], str] = {}
        "Errors by SAE and property."
        self._make_loader = make_loader
        self._loader: Loader | None = None
        self._measured: dict[tuple[str, str], MeasuredProperty] = {}
        self._current: SAESpec | None = None

    def check(self, spec: SAESpec, name: str) -> CheckedProperty:
        """Measure one property of one SAE and judge it; what goes wrong becomes the verdict ERROR."""
        declared = load_property(name)
        started = time.perf_counter()
        context: Mapping[str, Any] = {}
        notes: tuple[str, ...] = ()
        measured: MeasuredProperty | str
        try:
            measured = self._measure(spec, declared)
            context = measured.context
            if self.options.selfcheck:
                self._check_noise(spec, declared, measured)
        except SAEBenchError as error:
            if spec.control is not None and isinstance(error, MeasurementError):
                # Controls are read, never judged: what has no value for one of them does not end a run in red.
                return self.undefined(spec, name, str(error))
            measured, notes = str(error), tuple(getattr(error, "__notes__", ()))
        except Exception as error:
            # A defect of ours or of a registered object must not take the other SAEs' results with it.
            measured = f"{name} of {spec.id} stopped with {type(error).__name__}: {error}"
            notes = (traceback.format_exc(),)
        if isinstance(measured, str):
            self.errors[spec.id, name] = measured
        seconds = time.perf_counter() - started
        return self._judged(spec, declared, measured, context, seconds, notes)

    def missing(
        self, sae: str, name: str | None = None, why: str = "nothing in this run measures it"
    ) -> CheckedProperty:
        """Return MISSING for an accepted SAE that is not registered, or an accepted property that nothing measures."""
        path = baselines.accepted_path(self.options.baselines, sae)
        if name is None:
            name = "accepted"
            message = f"{sae} has an accepted report ({path}) but is not registered, so nothing of it was measured"
            removed = "pytest-sae-bench prune"
            restored = f'register it again, register_sae("{sae}", ...), in conftest.py'
        else:
            message = f"{name} of {sae} was accepted ({path}), but {why}"
            removed = f"pytest-sae-bench prune --property {name}"
            restored = f'test_{name} = property_test("{name}") in a test file of this run'
        verdict = PropertyVerdict(property=name, sae=sae, verdict=Verdict.MISSING, message=message)
        commands = (Command("if removed", removed), Command("if lost", restored))
        return self._finished(sae, verdict, PropertyDeclaration(name), None, message, {}, commands=commands)

    def undefined(self, spec: SAESpec, name: str, reason: str) -> CheckedProperty:
        """Return UNDEFINED for a property that cannot be measured with the inputs at hand."""
        declared = load_property(name)
        measurement = Measurement({metric.name: Undefined(reason) for metric in declared.metrics})
        return self._judged(spec, declared, MeasuredProperty(measurement, {}), {}, 0.0, ())

    def close(self) -> None:
        """Release models and activations, and stop other processes."""
        if self.remote is not None:
            self.remote.close()
        self._loader = None
        self._measured.clear()

    def bench(self, spec: SAESpec) -> Bench:
        """Return the bench of ``spec`` and release the previous SAE; an SAE that cannot be loaded is an error."""
        loader = self._load()
        if self._current is not None and self._current.id != spec.id:
            loader.forget(self._current)
        self._current = spec
        return loader.bench(spec)

    def _measure(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        place = (spec.id, declared.name)
        if place not in self._measured:
            measure = self._measure_here if self.remote is None else self._fetch
            self._measured[place] = measure(spec, declared)
        return self._measured[place]

    def _measure_here(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        bench, loader = self.bench(spec), self._load()
        self.descriptions[spec.id] = loader.description(spec)
        key = self._key(loader, spec, declared)
        earlier = self.earlier.get(key) if key is not None else None
        if earlier is not None:
            measured = replace(restored(earlier, self.options.selfcheck), key=key, earlier=earlier)
        else:
            measurement = declared.measure(bench)
            noise = measured_noise(declared, bench, measurement) if self.options.selfcheck else {}
            measured = MeasuredProperty(measurement, noise, key=key)
        settings = dict(measured.measurement.settings)
        return replace(measured, context={**loader.context(spec), "settings": settings, "version": declared.version})

    def _fetch(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        assert self.remote is not None
        record = self.remote.record(spec.id, declared.name)
        self.descriptions[spec.id] = record.about
        return replace(restored(record, self.options.selfcheck), key=record.key)

    def _key(self, loader: Loader, spec: SAESpec, declared: Property) -> str | None:
        if self.folder is None:
            return None
        content = measurement_content(loader, spec, declared)
        return run_folder.content_key({**content, "selfcheck": self.options.selfcheck})

    def _check_noise(self, spec: SAESpec, declared: Property, measured: MeasuredProperty) -> None:
        values = {name: each.value for name, each in measured.measurement.estimates.items()}
        rules = rules_for(spec, declared, self.options.rules)
        check_noise(rules, declared.name, declared.metrics, spec.id, values, measured.noise)

    def _load(self) -> Loader:
        if self._loader is None:
            from sae_bench.run.load import Loader

            self._loader = (self._make_loader or Loader)(self.options.settings(), self._advance)
        return self._loader

    def _advance(self, what: str, done: int, total: int) -> None:
        """Report the progress of a measurement, with the name of its SAE."""
        if self.progress is not None:
            self.progress(f"{what} of {self._current.id}" if self._current is not None else what, done, total)

    def _judged(
        self,
        spec: SAESpec,
        declared: Property,
        measured: MeasuredProperty | str,
        context: Mapping[str, Any],
        seconds: float,
        notes: tuple[str, ...],
    ) -> CheckedProperty:
        measurement = measured if isinstance(measured, str) else measured.measurement
        noise = {} if isinstance(measured, str) else measured.noise
        if not isinstance(measured, str):
            seconds = measured.seconds or seconds
        accepted = with_noise(self._accepted(spec, declared.name), noise)
        verdict = judge(
            declared.name,
            declared.metrics,
            declared.primary_metric,
            measurement,
            accepted,
            sae=spec.id,
            rules=rules_for(spec, declared, self.options.rules),
            context=context,
            known_failures={k: v for k, v in spec.known_failures.items() if k.startswith(f"{declared.name}.")},
            compare=self.options.compare,
            strict=self.options.strict,
            sparsity_moved=self._sparsity_moved(spec, declared, measurement),
        )
        rerun = self.rerun_command
        commands = rerun.commands(verdict.verdicts, declared.name, spec.id) if rerun is not None else ()
        declaration = PropertyDeclaration.of(declared)
        return self._finished(spec.id, verdict, declaration, accepted, measured, context, seconds, notes, commands)

    def _finished(
        self,
        sae: str,
        verdict: PropertyVerdict,
        declared: PropertyDeclaration,
        accepted: AcceptedProperty | None,
        measured: MeasuredProperty | str,
        context: Mapping[str, Any],
        seconds: float | None = None,
        notes: tuple[str, ...] = (),
        commands: Sequence[Command] = (),
    ) -> CheckedProperty:
        """Write the record of a judged property and decide how its item ends."""
        measurement = measured if isinstance(measured, str) else measured.measurement
        result = property_result(
            measurement,
            verdict,
            declared,
            context=context,
            seconds=seconds,
            notes=notes,
            accepted=accepted,
            commands=commands,
        )
        if not isinstance(measured, str):
            result = noisy(result, measured.noise)
        self.results[sae, declared.name] = result
        record = self._write(sae, result, measured)
        # Notes of the measurement say what its numbers do not, such as the input that breaks a contract.
        sentences = measurement.notes if isinstance(measurement, Measurement) else ()
        failure = "\n".join((*result.lines, *(f"  {note}" for note in sentences))) if verdict.fails else None
        return CheckedProperty(result, verdict, user_properties(verdict, record), failure)

    def _write(self, sae: str, result: PropertyResult, measured: MeasuredProperty | str) -> Path | None:
        """Write the record and return its path; None where it cannot be written, which changes no verdict."""
        if self.folder is None:
            return None
        key = taken_from = None
        if not isinstance(measured, str) and result.verdict is not Verdict.ERROR:
            key, taken_from = measured.key, str(measured.earlier.path) if measured.earlier else None
        try:
            record = run_folder.write_record(self.folder, sae, result, key, taken_from, self.descriptions.get(sae))
        except StoreError as error:
            self.unwritten.append(str(error))
            return None
        self.records[record.path] = record
        return record.path

    def _accepted(self, spec: SAESpec, name: str) -> AcceptedProperty | None:
        if not self.options.compare or spec.control is not None:
            return None
        return baselines.accepted_property(self.options.reference or self.options.baselines, spec.accepted_id, name)

    def _sparsity_moved(self, spec: SAESpec, declared: Property, measurement: Measurement | str) -> bool:
        """Return True when L0 left its accepted range: a better fidelity at another sparsity is no improvement."""
        if isinstance(measurement, str) or declared.marker != "fidelity" or declared.name == "sparsity":
            return False
        accepted = self._accepted(spec, "sparsity")
        if accepted is None:
            return False
        sparsity = load_property("sparsity")
        measured = self._measure(spec, sparsity)
        judged = judge(
            sparsity.name,
            sparsity.metrics,
            sparsity.primary_metric,
            measured.measurement,
            accepted,
            sae=spec.id,
            rules=rules_for(spec, sparsity, self.options.rules),
            context=measured.context,
        )
        return sparsity_moved(judged)


def user_properties(verdict: PropertyVerdict, record: Path | None) -> tuple[tuple[str, str], ...]:
    """Return what JUnit shows with the test: scalars as strings, and the path of the record."""
    properties = [(f"{verdict.property}.verdict", str(verdict.verdict))]
    for metric, judgement in verdict.judgements.items():
        if judgement.verdict is not None and judgement.value is not None:
            name = f"{verdict.property}.{metric}"
            properties.append((name, f"{judgement.value:.6g}"))
            if judgement.accepted is not None:
                properties.append((f"{name}.accepted", f"{judgement.accepted:.6g}"))
            properties.append((f"{name}.verdict", str(judgement.verdict)))
    # Empty where nothing could be written: the item is one of ours all the same.
    properties.append((run_folder.RECORD, str(record or "")))
    return tuple(properties)
