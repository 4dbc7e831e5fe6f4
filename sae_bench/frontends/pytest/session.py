"""State of one pytest session: selection, run folder, results, report and exit code."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_bench.errors import SAEBenchError, StoreError
from sae_bench.frontends.pytest.options import Resolved
from sae_bench.frontends.pytest.progress import ProgressLine
from sae_bench.frontends.pytest.scheduling import device_of, share_cores
from sae_bench.frontends.pytest.selection import chosen_properties, chosen_saes, narrowed_by, run_options, speed_chosen
from sae_bench.judge.verdicts import NOTHING_MEASURED_EXIT
from sae_bench.measure.properties import load_property
from sae_bench.registry.register import SAES
from sae_bench.registry.spec import SAESpec
from sae_bench.report import accept, baselines, run_folder
from sae_bench.report.declared_limits import with_overruled
from sae_bench.report.provenance import Provenance, author, utc
from sae_bench.report.records import PropertyResult, SAEResult
from sae_bench.report.report import Report, write_report
from sae_bench.report.rerun_commands import SAME, RerunCommand
from sae_bench.run.preflight import check_accepted_reports, check_names, rules_for
from sae_bench.run.run import Run
from sae_bench.show import github, terminal
from sae_bench.show.speed_lines import speed_lines
from sae_bench.show.write_files import accepted_results, write_files

TESTS_FAILED = int(pytest.ExitCode.TESTS_FAILED)
JUDGED = (int(pytest.ExitCode.OK), TESTS_FAILED, int(pytest.ExitCode.NO_TESTS_COLLECTED))
"pytest's own outcomes that ours may replace; interruptions and internal errors stay."
FOLDER, EARLIER, NAME = "sae_bench_folder", "sae_bench_earlier", "sae_bench_name"
"Input of an xdist worker: folder of records, unfinished runs that it may take up, name of the run."


class Session:
    """One run of pytest: its selection, its results and its report."""

    def __init__(self, config: pytest.Config, resolved: Resolved) -> None:
        self.config = config
        self.resolved = resolved
        self.started = time.time()
        self.options = run_options(config, resolved)
        self.specs = chosen_saes(resolved)
        self.properties = chosen_properties(resolved["sae_property"])
        self.speed = speed_chosen(resolved["sae_property"])
        "True when SAEs are timed."
        check_names(self.specs, self.options.rules, list(SAES))
        check_accepted_reports(self.specs, self.properties, self.options)
        self.narrowed = bool(resolved["sae"] or resolved["sae_property"] or resolved["sae_no_compare"])
        self.collected = False
        self.failed_items = 0
        self.records: list[Path] = []
        "Paths of the records of finished items, of this process and of workers."
        self.finished: list[run_folder.Record] = []
        "Records that the report is made of."
        self.written: list[str] = []
        self.troubles: list[str] = []
        "Files that were not written, and why: shown in red at the end, never green."
        self.report: Report | None = None
        self.run = Run(self.options)
        named = {spec.id: spec.selection_options for spec in self.specs if spec.selection_options is not None}
        self.run.rerun_command = self.rerun_command = RerunCommand("", named, tuple(resolved.typed(SAME)))
        self.name = run_folder.run_name(config.rootpath)
        self._locked: run_folder.LockedRunFolder | None = None
        self._earlier: list[run_folder.LockedRunFolder] = []
        self._opened = False

    @property
    def folder(self) -> Path | None:
        """Folder of this run; None where nothing can be written."""
        return self.run.folder

    def open(self) -> None:
        """Make this run's folder and lock those of unfinished runs; called before the first measurement."""
        if self._opened:
            return
        self._opened = True
        worker = getattr(self.config, "workerinput", None)
        if worker is not None:
            self._follow(worker)
            return
        reports = self._path("sae_report_dir")
        try:
            # Before this run has a folder of its own, which is unfinished, too.
            self._earlier = run_folder.unfinished(reports)
            self._locked = run_folder.new_run_folder(reports, self.name)
            self.run.folder = self._locked.path
        except StoreError as error:
            self.troubles.append(f"{error}; verdicts are valid, results stay in memory until this run ends")
        if self.resolved["sae_fresh"]:
            for dead in self._earlier:
                run_folder.forget_run(dead.path)
                dead.release()
            self._earlier = []
        self.run.earlier = run_folder.earlier_records(folder.path for folder in self._earlier)

    def _follow(self, worker: dict[str, str]) -> None:
        """Use the folder that the controlling process chose; its name, where that process measures nothing itself."""
        share_cores(int(worker["workercount"]))
        self.options = replace(self.options, device=device_of(worker["workerid"], self.options.device))
        self.run.options = self.options
        if FOLDER in worker:
            self.run.folder = Path(worker[FOLDER]) if worker[FOLDER] else None
            self.run.earlier = run_folder.earlier_records(map(Path, worker[EARLIER].splitlines()))
        else:
            self.run.folder = self._path("sae_report_dir") / worker[NAME]

    def locate(self, place: str) -> None:
        """Set the path of this run's tests in the commands that start it again."""
        self.run.rerun_command = self.rerun_command = replace(self.rerun_command, place=place)

    def adopt(self, name: str) -> None:
        """Use the workers' folder, where only they knew that SAEs would be measured."""
        if not self._opened:
            self._opened = True
            self.run.folder = self._path("sae_report_dir") / name

    def worker_input(self) -> dict[str, str]:
        """Return what a worker's `_follow` needs."""
        self.open()
        return {FOLDER: str(self.folder or ""), EARLIER: "\n".join(str(folder.path) for folder in self._earlier)}

    def _path(self, dest: str) -> Path:
        return Path(self.config.rootpath) / str(self.resolved[dest])

    def show_progress(self) -> None:
        """Show the progress of long measurements, where somebody can see it."""
        if not hasattr(self.config, "workerinput"):
            self.run.progress = ProgressLine.for_pytest(self.config)

    def distribute(self, pairs: Sequence[tuple[SAESpec, str]]) -> None:
        """Let a Ray cluster measure what was collected, if ``--sae-ray`` names one; this process judges it."""
        if not pairs or not self.resolved["sae_ray"]:
            return
        from sae_bench.run.ray.client import RayMeasurer

        measurer = RayMeasurer(
            self.resolved["sae_ray"],
            wait=self.resolved["sae_ray_wait"],
            root=Path(self.config.rootpath),
            progress=lambda *step: self.run.progress(*step) if self.run.progress is not None else None,
        )
        # Fidelity is judged at equal sparsity, which needs L0 of every SAE that has an accepted one.
        sparsity = [(spec, "sparsity") for spec, _ in pairs if self.is_accepted(spec, "sparsity")]
        requested = {(spec.id, name): (spec, name) for spec, name in (*pairs, *sparsity)}
        measurer.submit(list(requested.values()), self.options)
        self.run.remote = measurer

    def vanished(self) -> list[str]:
        """Return the accepted SAEs that are registered no more."""
        if not self.options.compare or self.options.reference is not None:
            return []
        return list(baselines.vanished(self.options.baselines, SAES))

    def unmeasured(self, collected: set[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return accepted properties that no collected item measures; none where test files were chosen by hand."""
        if not self.options.compare or self.options.reference is not None:
            return []
        if any("::" in argument or argument.endswith(".py") for argument in self.config.args):
            return []
        accepted = [(spec.id, baselines.load_accepted(self.options.baselines, spec.accepted_id)) for spec in self.specs]
        pairs = {(sae, name) for sae, file in accepted if file is not None for name in file.result.properties}
        return sorted(pairs - collected)

    def is_accepted(self, sae: SAESpec, name: str) -> bool:
        """Return True when this run compares a property with an accepted one."""
        where = self.options.reference or self.options.baselines
        return self.options.compare and baselines.accepted_property(where, sae.accepted_id, name) is not None

    def collect(self, record: str, failed: bool) -> None:
        """Add the record of a finished item; an empty path where it could not be written."""
        if record:
            self.records.append(Path(record))
        self.failed_items += failed
        self.collected = True

    def finish(self, exitstatus: int, failed_otherwise: bool) -> int:
        """Write the report, accept if asked to, and return the exit code of the session."""
        ended = exitstatus in JUDGED
        self.troubles += dict.fromkeys(self.run.unwritten)
        results = self._results()
        if results:
            self.report = self._report(results, ended)
            self._save(self.report)
        code = self._code(exitstatus, failed_otherwise) if ended else exitstatus
        if self.resolved["sae_accept"] or self.resolved["sae_accept_new"]:
            self._accept_or_say_why(ended)
        self.close(ended)
        return code

    def close(self, ended: bool) -> None:
        """Unlock the folders: records that a finished run has used are removed; an interrupted one may be taken up."""
        keys = {record.key for record in self.finished}
        for earlier in self._earlier:
            # While it is still locked: another run must not take what this one has used.
            if ended and not self.troubles:
                run_folder.forget_records(earlier.path, keys)
            earlier.release()
        if self._locked is not None:
            self._locked.finish() if ended or not self.records else self._locked.release()
        self._locked, self._earlier = None, []

    def _results(self) -> dict[str, dict[str, PropertyResult]]:
        """Return all results by SAE, in the order of registration, and property.

        Those of this process are in memory; only the records of workers are read from disk.
        """
        results: dict[tuple[str, str], PropertyResult] = dict(self.run.results)
        for path in self.records:
            try:
                record = self.run.records.get(path) or run_folder.read_record(path)
            except StoreError as error:
                self.troubles.append(str(error))
                continue
            results[record.sae, record.result.name] = record.result
            self.finished.append(record)
        results = {(sae, name): self._with_overruled(sae, each) for (sae, name), each in results.items()}
        order = [*(spec.id for spec in self.specs), *sorted({sae for sae, _ in results})]
        return {
            sae: {name: results[owner, name] for owner, name in sorted(results) if owner == sae}
            for sae in dict.fromkeys(order)
            if any(owner == sae for owner, _ in results)
        }

    def _with_overruled(self, sae: str, result: PropertyResult) -> PropertyResult:
        """Return a result with the declared limits that this run overruled, so that it can be accepted."""
        spec = next((spec for spec in self.specs if spec.id == sae), None)
        if spec is None or not result.metrics:
            return result
        return with_overruled(result, rules_for(spec, load_property(result.name), self.options.rules), sae)

    def _code(self, exitstatus: int, failed_otherwise: bool) -> int:
        if self.report is None:
            if self.troubles:
                self.troubles.append("with -n, results stay in the workers: only the outcomes of the items are known")
            if exitstatus == TESTS_FAILED or self.troubles:
                return TESTS_FAILED
            if self.run.timings:
                return exitstatus
            self.written.append("nothing was measured: register an SAE in conftest.py, or name one with --sae")
            return NOTHING_MEASURED_EXIT
        code = TESTS_FAILED if failed_otherwise else self.report.exit_code(self.options.strict)
        return code or (TESTS_FAILED if self.troubles else 0)

    def _save(self, report: Report) -> None:
        try:
            self._write(report)
        except SAEBenchError as error:
            self.troubles.append(f"the report was not written: {error}")

    def _accept_or_say_why(self, ended: bool) -> None:
        if self.report is None or not ended or self.troubles:
            why = "the run was interrupted" if not ended else "not everything was written or measured"
            self.written.append(f"not accepted: {why}")
        else:
            self._accept(self.report)

    def summarise(self, reporter: Any) -> None:
        """Print timings, the table and the paths of the files."""
        for line in speed_lines(self.run.timings):
            reporter.write_line(line)
        if self.report is not None and self.report.saes:
            reporter.write_line("")
            for line in terminal.summary(
                self.report,
                width=reporter._tw.fullwidth,
                color=reporter._tw.hasmarkup,
                report_path=str(_shown(self.folder / "report.html")) if self.folder else "not written",
                baselines=str(self.resolved["sae_baselines"]),
            ).splitlines():
                reporter.write_line(line)
            self._publish(reporter)
        for line in self.written:
            reporter.write_line(line)
        for trouble in self.troubles:
            reporter.write_line(f"ERROR: {trouble}", red=True, bold=True)

    def _publish(self, reporter: Any) -> None:
        """Write the job's summary and annotations, where the run is one of GitHub Actions."""
        assert self.report is not None
        try:
            github.publish(
                self.report,
                environ=os.environ,
                write=reporter.write_line,
                report_path=str(_shown(self.folder / "report.html")) if self.folder else None,
                baselines=_shown(self.options.baselines),
                annotate=not self.config.pluginmanager.hasplugin("github-actions-annotate-failures"),
            )
        except (SAEBenchError, OSError) as error:
            self.troubles.append(f"the job's summary was not written: {error}")

    def _report(self, results: dict[str, dict[str, PropertyResult]], ended: bool) -> Report:
        about = {**{record.sae: record.about for record in self.finished}, **self.run.descriptions}
        saes = {
            sae: replace(about.get(sae, SAEResult({})), properties=properties, tags=self._tags(sae))
            for sae, properties in results.items()
        }
        taken = sum(record.taken_from is not None for record in self.finished)
        if not ended:
            self.written.append("interrupted: the report has what was finished; the same command continues from there")
        if taken:
            self.written.append(f"{taken} of {len(self.finished)} results were taken from a run that did not finish")
        run = Provenance.collect(
            Path(self.config.rootpath),
            started=self.started,
            command=["pytest", *map(str, self.config.invocation_params.args)],
            options={
                "tier": self.options.tier,
                "seed": self.options.seed,
                "batch_size": self.options.batch_size,
                "device": self.options.device,
                "given": self.resolved.from_user(),
                **({"taken_from_unfinished_runs": taken} if taken else {}),
            },
            rerun_command=self.rerun_command,
            interrupted=not ended,
            narrowed_by=narrowed_by(self.config),
        )
        return Report(run=run, saes=saes)

    def _tags(self, sae: str) -> tuple[str, ...]:
        return next((spec.tags for spec in self.specs if spec.id == sae), ())

    def _write(self, report: Report) -> None:
        if self.folder is not None:
            write_report(report, self.folder / "report.json")
            write_report(report, self.folder.parent / "latest.json")
            accepted_id = {spec.id: spec.accepted_id for spec in self.specs}
            accepted = accepted_results(report, self.options.reference or self.options.baselines, accepted_id)
            write_files(report, self.folder, accepted)
        if self.resolved["sae_json"]:
            write_report(report, Path(self.config.invocation_params.dir) / self.resolved["sae_json"])

    def _accept(self, report: Report) -> None:
        try:
            changes = accept.accept(
                report,
                self.options.baselines,
                reason=self.resolved["sae_accept_reason"],
                who=author(Path(self.config.rootpath)),
                when=utc(time.time()),
                new_only=bool(self.resolved["sae_accept_new"]) and not self.resolved["sae_accept"],
                in_ci=bool(self.resolved["sae_accept_in_ci"]),
                reanchor=bool(self.resolved["sae_reanchor"]),
            )
        except SAEBenchError as error:
            self.written.append(f"not accepted: {error}")
        else:
            self.written += [f"accepted under {self.resolved['sae_baselines']}/:", *accept.describe(changes)]


def _shown(path: Path) -> Path:
    """Return a path relative to the current folder, if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
