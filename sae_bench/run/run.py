"""The one orchestrator: from a registered SAE and a property to a judged result, and from results to a report.

pytest items, `check_sae` and the command line all come through `Run.check`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sae_bench.engine.settings import Settings
from sae_bench.errors import MeasurementError, SAEBenchError, StoreError
from sae_bench.judge.judge import judge, sparsity_moved
from sae_bench.judge.verdicts import AcceptedProperty, PropertyVerdict, Verdict
from sae_bench.measure.measurement import Measurement, Metric, Undefined
from sae_bench.measure.properties import Property, load_property
from sae_bench.registry.spec import SAESpec
from sae_bench.report import baselines, run_folder
from sae_bench.report.convert import PropertyDeclaration, property_result
from sae_bench.report.records import PropertyResult
from sae_bench.report.rerun_commands import RerunCommand
from sae_bench.run.fingerprint import content_of
from sae_bench.run.measured_property import MeasuredProperty, noisy, restored, with_noise
from sae_bench.run.noise import check_noise, measured_noise
from sae_bench.run.options import RunOptions
from sae_bench.run.preflight import rules_for

if TYPE_CHECKING:
    from sae_bench.engine.bench import Bench
    from sae_bench.report.timing import Timing
    from sae_bench.run.load import Loader

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how many documents are done, and how many there are."""


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
        """What was found there; waits for it. What went wrong there is raised as an `SAEBenchError`."""
        ...

    def close(self) -> None:
        """Nothing more is asked."""
        ...


@dataclass(frozen=True)
class _MissingProperty:
    """What stands in a report for something accepted that was not measured."""

    name: str
    metrics: tuple[Metric, ...] = ()
    version: int = 1


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
        "Where records go; None writes nothing."
        self.progress = progress
        self.earlier: Mapping[str, run_folder.Record] = earlier or {}
        "Records of unfinished runs by what their numbers follow from."
        self.results: dict[tuple[str, str], PropertyResult] = {}
        "Everything found by this process, by SAE and property."
        self.provenance: dict[str, Mapping[str, str]] = {}
        "What kinds of SAEs this process has loaded, by id."
        self.unwritten: list[str] = []
        "Why records could not be written."
        self.timings: list[Timing] = []
        "What was timed; no verdict knows of it."
        self.again: RerunCommand | None = None
        "How what is judged can be run again; None where no command does that."
        self.elsewhere: RemoteMeasurer | None = None
        "Other processes that measure; None: this one does."
        self.errors: dict[tuple[str, str], str] = {}
        "What went wrong, by SAE and property."
        self._make_loader = make_loader
        self._loader: Loader | None = None
        self._found: dict[tuple[str, str], MeasuredProperty] = {}
        self._current: SAESpec | None = None

    def check(self, spec: SAESpec, name: str) -> CheckedProperty:
        """Measure one property of one SAE and judge it; what goes wrong becomes the verdict ERROR."""
        declared = load_property(name)
        started = time.perf_counter()
        context: Mapping[str, Any] = {}
        notes: tuple[str, ...] = ()
        found: MeasuredProperty | str
        try:
            found = self._measure(spec, declared)
            context = found.context
            if self.options.selfcheck:
                self._check_noise(spec, declared, found)
        except SAEBenchError as error:
            if spec.control is not None and isinstance(error, MeasurementError):
                # Controls are read, never judged: what has no value for one of them does not end a run in red.
                return self.undefined(spec, name, str(error))
            found, notes = str(error), tuple(getattr(error, "__notes__", ()))
        except Exception as error:
            # A defect of ours or of a registered object must not take the other SAEs' results with it.
            found = f"{name} of {spec.id} stopped with {type(error).__name__}: {error}"
            notes = (traceback.format_exc(),)
        if isinstance(found, str):
            self.errors[spec.id, name] = found
        seconds = time.perf_counter() - started
        return self._judged(spec, declared, found, context, seconds, notes)

    def missing(
        self, sae: str, name: str | None = None, why: str = "nothing in this run measures it"
    ) -> CheckedProperty:
        """MISSING, for an accepted SAE that is registered no more, or an accepted property that nothing measures."""
        if name is None:
            verdict = baselines.vanished_verdict(sae, self.options.baselines)
        else:
            lines = (
                f"{name} of {sae} was accepted ({baselines.accepted_path(self.options.baselines, sae)}), but {why}",
                f"  if removed: pytest-sae-bench prune --property {name}",
                f'  if lost:    test_{name} = property_test("{name}") in a test file of this run',
            )
            verdict = PropertyVerdict(name, sae, Verdict.MISSING, False, "", (), lines, 0.98)
        return self._finished(sae, verdict, _MissingProperty(verdict.property), None, verdict.lines[0], {})

    def undefined(self, spec: SAESpec, name: str, why: str) -> CheckedProperty:
        """UNDEFINED, for a property that cannot be measured with what there is."""
        declared = load_property(name)
        found = MeasuredProperty(Measurement({metric.name: Undefined(why) for metric in declared.metrics}), {})
        return self._judged(spec, declared, found, {}, 0.0, ())

    def close(self) -> None:
        """Let go of models and activations, and of other processes."""
        if self.elsewhere is not None:
            self.elsewhere.close()
        self._loader = None
        self._found.clear()

    def bench(self, spec: SAESpec) -> Bench:
        """What ``spec`` is measured with; the SAE before it is let go. Raises what is wrong with the SAE."""
        loader = self._load()
        if self._current is not None and self._current.id != spec.id:
            loader.forget(self._current)
        self._current = spec
        return loader.bench(spec)

    def _measure(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        place = (spec.id, declared.name)
        if place not in self._found:
            here = self.elsewhere is None
            self._found[place] = self._measure_here(spec, declared) if here else self._fetch(spec, declared)
        return self._found[place]

    def _measure_here(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        bench, loader = self.bench(spec), self._load()
        self.provenance[spec.id] = loader.provenance(spec)
        key = self._key(loader, spec, declared)
        earlier = self.earlier.get(key) if key is not None else None
        if earlier is not None:
            found = replace(restored(earlier, self.options.selfcheck), key=key, earlier=earlier)
        else:
            measurement = declared.measure(bench)
            noise = measured_noise(declared, bench, measurement) if self.options.selfcheck else {}
            found = MeasuredProperty(measurement, noise, key=key)
        settings = dict(found.measurement.settings)
        return replace(found, context={**loader.context(spec), "settings": settings, "version": declared.version})

    def _fetch(self, spec: SAESpec, declared: Property) -> MeasuredProperty:
        assert self.elsewhere is not None
        record = self.elsewhere.record(spec.id, declared.name)
        self.provenance[spec.id] = dict(record.provenance)
        return replace(restored(record, self.options.selfcheck), key=record.key)

    def _key(self, loader: Loader, spec: SAESpec, declared: Property) -> str | None:
        if self.folder is None:
            return None
        content = content_of(loader, spec, declared)
        return run_folder.content_key({**content, "selfcheck": self.options.selfcheck})

    def _check_noise(self, spec: SAESpec, declared: Property, found: MeasuredProperty) -> None:
        values = {name: each.value for name, each in found.measurement.estimates.items()}
        rules = rules_for(spec, declared, self.options.rules)
        check_noise(rules, declared.name, declared.metrics, spec.id, values, found.noise)

    def _load(self) -> Loader:
        if self._loader is None:
            from sae_bench.run.load import Loader

            self._loader = (self._make_loader or Loader)(self.options.settings(), self._advance)
        return self._loader

    def _advance(self, what: str, done: int, total: int) -> None:
        """Tell how far the measurement is, with the SAE that it is about."""
        if self.progress is not None:
            self.progress(f"{what} of {self._current.id}" if self._current is not None else what, done, total)

    def _judged(
        self,
        spec: SAESpec,
        declared: Property,
        found: MeasuredProperty | str,
        context: Mapping[str, Any],
        seconds: float,
        notes: tuple[str, ...],
    ) -> CheckedProperty:
        measurement = found if isinstance(found, str) else found.measurement
        noise = {} if isinstance(found, str) else found.noise
        if not isinstance(found, str):
            seconds = found.seconds or seconds
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
        if self.again is not None:
            commands = self.again.lines(verdict.given, declared.name, spec.id)
            verdict = replace(verdict, lines=(*verdict.lines, *commands))
        return self._finished(spec.id, verdict, declared, accepted, found, context, seconds, notes)

    def _finished(
        self,
        sae: str,
        verdict: PropertyVerdict,
        declared: PropertyDeclaration,
        accepted: AcceptedProperty | None,
        found: MeasuredProperty | str,
        context: Mapping[str, Any],
        seconds: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> CheckedProperty:
        """Write the record of a judged property and say how its item ends."""
        measurement = found if isinstance(found, str) else found.measurement
        result = property_result(
            measurement, verdict, declared, context=context, seconds=seconds, notes=notes, accepted=accepted
        )
        if not isinstance(found, str):
            result = noisy(result, found.noise)
        self.results[sae, declared.name] = result
        record = self._write(sae, result, found)
        # What the numbers do not say, such as the input that breaks a contract.
        said = measurement.notes if isinstance(measurement, Measurement) else ()
        failure = "\n".join((*verdict.lines, *(f"  {note}" for note in said))) if verdict.fails else None
        return CheckedProperty(result, verdict, user_properties(verdict, record), failure)

    def _write(self, sae: str, result: PropertyResult, found: MeasuredProperty | str) -> Path | None:
        """The record's path; None where it cannot be written: the verdict stands all the same."""
        if self.folder is None:
            return None
        key = earlier = None
        if not isinstance(found, str) and result.verdict is not Verdict.ERROR:
            key, earlier = found.key, found.earlier
        try:
            about = self.provenance.get(sae, {})
            return run_folder.write_record(self.folder, sae, result, key, str(earlier.path) if earlier else None, about)
        except StoreError as error:
            self.unwritten.append(str(error))
            return None

    def _accepted(self, spec: SAESpec, name: str) -> AcceptedProperty | None:
        if not self.options.compare or spec.control is not None:
            return None
        return baselines.accepted_property(self.options.reference or self.options.baselines, spec.accepted_id, name)

    def _sparsity_moved(self, spec: SAESpec, declared: Property, found: Measurement | str) -> bool:
        """True when L0 left its accepted range: a better fidelity at another sparsity is no improvement."""
        if isinstance(found, str) or declared.marker != "fidelity" or declared.name == "sparsity":
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
    """What JUnit shows beside the test: scalars as strings, and where the record is."""
    properties = [(f"{verdict.property}.verdict", str(verdict.verdict))]
    for judgement in verdict.judgements:
        if judgement.verdict is not None and judgement.value is not None:
            name = f"{verdict.property}.{judgement.metric}"
            properties.append((name, f"{judgement.value:.6g}"))
            if judgement.accepted is not None:
                properties.append((f"{name}.accepted", f"{judgement.accepted:.6g}"))
            properties.append((f"{name}.verdict", str(judgement.verdict)))
    # Empty where nothing could be written: the item is one of ours all the same.
    properties.append((run_folder.RECORD, str(record or "")))
    return tuple(properties)
