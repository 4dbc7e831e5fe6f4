"""The one orchestrator: from a registered SAE and a property to a judged result, and from results to a report.

pytest items, `check_sae` and the command line all come through `Run.check`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench import baselines, store
from sae_bench.conversion import Declared
from sae_bench.errors import SAEBenchError, UsageError
from sae_bench.limits import Rule, check_known_failures, check_rules, parse_rule
from sae_bench.measurement import Measurement, Metric
from sae_bench.properties import Property, load_property, property_names
from sae_bench.provenance import Provenance
from sae_bench.report import PropertyResult, Report, property_result
from sae_bench.spec import SAESpec
from sae_bench.verdict import AcceptedProperty, PropertyVerdict, judge, sparsity_moved

if TYPE_CHECKING:
    from sae_bench.loading import Loader

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how many documents are done, and how many there are."""


@dataclass(frozen=True)
class RunOptions:
    """What a run measures with and judges against."""

    tier: str = "standard"
    documents: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 32
    baselines: Path = Path("baselines")
    reference: Path | None = None
    "A report to compare with instead of the accepted ones."
    compare: bool = True
    rules: tuple[Rule, ...] = ()
    "From the command line and the ini file."
    strict: bool = False


@dataclass(frozen=True)
class Checked:
    """One finished item."""

    result: PropertyResult
    verdict: PropertyVerdict
    user_properties: tuple[tuple[str, str], ...]
    failure: str | None
    "The text of the failure; None when the item passes."


@dataclass(frozen=True)
class _Vanished:
    """What stands in a report for an accepted SAE that was not measured."""

    name: str = "accepted"
    metrics: tuple[Metric, ...] = ()
    version: int = 1


class Run:
    """Measures and judges; keeps models, activations and SAEs between items."""

    def __init__(self, options: RunOptions, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.options = options
        self.folder = folder
        "Where records go; None writes nothing."
        self.progress = progress
        self._loader: Loader | None = None
        self._measured: dict[tuple[str, str], Measurement] = {}
        self._current: SAESpec | None = None

    def check(self, spec: SAESpec, name: str) -> Checked:
        """Measure one property of one SAE and judge it; what goes wrong becomes the verdict ERROR."""
        declared = load_property(name)
        started = time.perf_counter()
        context: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        found: Measurement | str
        try:
            found = self._measure(spec, declared)
            context = self._context(spec, declared, found)
        except SAEBenchError as error:
            found = str(error)
        except Exception as error:
            # A defect of ours or of a registered object must not take the other SAEs' results with it.
            found = f"{name} of {spec.id} stopped with {type(error).__name__}: {error}"
            notes = (traceback.format_exc(),)
        seconds = time.perf_counter() - started
        return self._judged(spec, declared, found, context, seconds, notes)

    def missing(self, sae: str) -> Checked:
        """MISSING, for an SAE that has an accepted report and is registered no more."""
        verdict = baselines.vanished_verdict(sae, self.options.baselines)
        return self._finished(sae, verdict, _Vanished(), None, verdict.lines[0], {})

    def close(self) -> None:
        """Let go of models and activations."""
        self._loader = None
        self._measured.clear()

    def _measure(self, spec: SAESpec, declared: Property) -> Measurement:
        key = (spec.id, declared.name)
        if key not in self._measured:
            loader = self._load()
            if self._current is not None and self._current.id != spec.id:
                loader.forget(self._current)
            self._current = spec
            self._measured[key] = declared.measure(loader.bench(spec))
        return self._measured[key]

    def _context(self, spec: SAESpec, declared: Property, found: Measurement) -> dict[str, Any]:
        """What decides whether the result may be compared with an accepted one."""
        return {**self._load().context(spec), "settings": dict(found.settings), "version": declared.version}

    def _load(self) -> Loader:
        if self._loader is None:
            from sae_bench.bench import TIERS, Settings
            from sae_bench.loading import Loader

            settings = Settings(
                tier=TIERS[self.options.tier],
                documents=self.options.documents,
                seed=self.options.seed,
                batch_size=self.options.batch_size,
                device=self.options.device,
                dtype=self.options.dtype,
            )
            self._loader = Loader(settings, self.progress)
        return self._loader

    def _judged(
        self,
        spec: SAESpec,
        declared: Property,
        found: Measurement | str,
        context: Mapping[str, Any],
        seconds: float,
        notes: tuple[str, ...],
    ) -> Checked:
        accepted = self._accepted(spec, declared.name)
        verdict = judge(
            declared.name,
            declared.metrics,
            declared.headline,
            found,
            accepted,
            sae=spec.id,
            rules=rules_for(spec, declared, self.options.rules),
            context=context,
            known_failures={k: v for k, v in spec.known_failures.items() if k.startswith(f"{declared.name}.")},
            compare=self.options.compare,
            strict=self.options.strict,
            sparsity_moved=self._sparsity_moved(spec, declared, found),
        )
        return self._finished(spec.id, verdict, declared, accepted, found, context, seconds, notes)

    def _finished(
        self,
        sae: str,
        verdict: PropertyVerdict,
        declared: Declared,
        accepted: AcceptedProperty | None,
        found: Measurement | str,
        context: Mapping[str, Any],
        seconds: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> Checked:
        """Write the record of a judged property and say how its item ends."""
        result = property_result(
            found, verdict, declared, context=context, seconds=seconds, notes=notes, accepted=accepted
        )
        record = store.write_record(self.folder, sae, declared.name, result) if self.folder is not None else None
        failure = "\n".join(verdict.lines) if verdict.fails else None
        return Checked(result, verdict, user_properties(verdict, record), failure)

    def _accepted(self, spec: SAESpec, name: str) -> AcceptedProperty | None:
        if not self.options.compare:
            return None
        return baselines.accepted_property(
            self.options.reference or self.options.baselines, spec.judged_as, name
        )

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
            sparsity.headline,
            measured,
            accepted,
            sae=spec.id,
            rules=rules_for(spec, sparsity, self.options.rules),
            context=self._context(spec, sparsity, measured),
        )
        return sparsity_moved(judged)


def rules_for(spec: SAESpec, declared: Property, given: Sequence[Rule]) -> tuple[Rule, ...]:
    """All limits that may concern a property of an SAE, weakest source first."""
    rules = [parse_rule(f"{declared.name}.{limit}", "property") for limit in declared.limits]
    rules += [parse_rule(limit, "registration") for limit in spec.limits]
    if spec.l0 is not None:
        rules += [
            parse_rule(f"sparsity.l0:{kind}:{spec.l0 * share}", "registration")
            for kind, share in (("min", 0.9), ("max", 1.1))
        ]
    return (*rules, *given)


def check_words(specs: Sequence[SAESpec], rules: Sequence[Rule]) -> None:
    """Every limit and known failure must name a declared metric; anything else is a `UsageError` before the run."""
    declared = [load_property(name) for name in property_names()]
    known = [f"{each.name}.{metric.name}" for each in declared for metric in each.metrics]
    check_rules(rules, known)
    for spec in specs:
        check_rules([parse_rule(limit, "registration") for limit in spec.limits], known)
        check_known_failures(spec.known_failures, known, spec.origin)


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
    if record is not None:
        properties.append((store.RECORD, str(record)))
    return tuple(properties)


def check_one(sae: Any, properties: Sequence[str] | None, options: Mapping[str, Any]) -> Report:
    """Measure one SAE outside pytest; see `sae_bench.check_sae`."""
    run_fields = {name: value for name, value in options.items() if name in RunOptions.__dataclass_fields__}
    rest = {name: value for name, value in options.items() if name not in run_fields}
    unknown = sorted(set(rest) - set(SAESpec.__dataclass_fields__))
    if unknown:
        raise UsageError(f"check_sae does not know the option {unknown[0]!r}")
    where = {"path": str(sae)} if isinstance(sae, (str, Path)) else {"load": lambda: sae}
    spec = SAESpec(**{"id": "sae", **where, "origin": "check_sae", **rest})
    run = Run(replace(RunOptions(**run_fields), compare=False))
    started = time.time()
    results = {name: run.check(spec, name).result for name in properties or property_names()}
    return Report.of({spec.id: results}, Provenance.collect(Path.cwd(), started=started))
