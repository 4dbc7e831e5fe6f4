"""One pytest session's share of the work: what was chosen, what was found, and how the session ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sae_bench import accepting, baselines, store
from sae_bench.errors import SAEBenchError, StoreError, UsageError, near
from sae_bench.limits import Rule, parse_rule
from sae_bench.options import Resolved, given_limits
from sae_bench.outcome import NOTHING_MEASURED_EXIT
from sae_bench.progress import ProgressLine
from sae_bench.properties import property_names
from sae_bench.provenance import Provenance, author, utc
from sae_bench.registration import SAES, TargetDefaults, load_entry_points, select
from sae_bench.render import terminal
from sae_bench.report import Report, SAEResult, load_report, write_report
from sae_bench.run import Run, RunOptions, check_words
from sae_bench.spec import SAESpec

TESTS_FAILED = int(pytest.ExitCode.TESTS_FAILED)
JUDGED = (int(pytest.ExitCode.OK), TESTS_FAILED, int(pytest.ExitCode.NO_TESTS_COLLECTED))
"pytest's own outcomes that ours may replace; interruptions and internal errors stay."


class Session:
    """What one run of pytest chose, measured and wrote."""

    def __init__(self, config: pytest.Config, resolved: Resolved) -> None:
        self.config = config
        self.resolved = resolved
        self.started = time.time()
        self.options = _run_options(config, resolved)
        self.specs = _chosen(resolved)
        self.properties = _properties(resolved["sae_property"])
        check_words(self.specs, self.options.rules)
        self.narrowed = bool(resolved["sae"] or resolved["sae_property"] or resolved["sae_no_compare"])
        self.collected = False
        self.failed_items = 0
        self.records: list[Path] = []
        self.written: list[str] = []
        self.report: Report | None = None
        worker = getattr(config, "workerinput", {})
        folder = worker.get("sae_bench_folder")
        self.folder = Path(folder) if folder else store.run_folder(self._path("sae_report_dir"), config.rootpath)
        self.run = Run(self.options, self.folder)

    def _path(self, dest: str) -> Path:
        return Path(self.config.rootpath) / str(self.resolved[dest])

    def show_progress(self) -> None:
        """Say how far a long measurement is, where somebody can see it."""
        if not hasattr(self.config, "workerinput"):
            self.run.progress = ProgressLine.for_pytest(self.config)

    def vanished(self) -> list[str]:
        """Accepted SAEs that are registered no more."""
        if not self.options.compare or self.options.reference is not None:
            return []
        return list(baselines.vanished(self.options.baselines, SAES))

    def collect(self, record: Path, failed: bool) -> None:
        """Take in the record of a finished item."""
        self.records.append(record)
        self.failed_items += failed

    def finish(self, exitstatus: int, failed_otherwise: bool) -> int:
        """Write the report, accept if asked to, and say with which exit code the session ends."""
        try:
            self.report = self._report()
            self._write(self.report)
        except SAEBenchError as error:
            self.written.append(f"ERROR: the report was not written: {error}")
            return exitstatus if exitstatus not in JUDGED else TESTS_FAILED
        if exitstatus not in JUDGED:
            return exitstatus
        results = [result for sae in self.report.saes.values() for result in sae.properties.values()]
        if not results and not failed_otherwise:
            self.written.append("nothing was measured: register an SAE in conftest.py, or name one with --sae")
            return NOTHING_MEASURED_EXIT
        code = TESTS_FAILED if failed_otherwise else self.report.exit_code(self.options.strict)
        if self.resolved["sae_accept"] or self.resolved["sae_accept_new"]:
            self._accept(self.report)
        return code

    def summarise(self, reporter: Any) -> None:
        """Print the table and where everything was written."""
        if self.report is not None and self.report.saes:
            reporter.write_line("")
            for line in terminal.summary(
                self.report,
                width=reporter._tw.fullwidth,
                color=reporter._tw.hasmarkup,
                report_path=str(_shown(self.folder / "report.json")),
                baselines=str(self.resolved["sae_baselines"]),
            ).splitlines():
                reporter.write_line(line)
        for line in self.written:
            reporter.write_line(line)

    def _report(self) -> Report:
        saes = {
            sae: SAEResult(dict(sorted(results.items())), tags=self._tags(sae))
            for sae, results in store.gather(self.records).items()
        }
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
            },
        )
        return Report(run=run, saes=saes)

    def _tags(self, sae: str) -> tuple[str, ...]:
        return next((spec.tags for spec in self.specs if spec.id == sae), ())

    def _write(self, report: Report) -> None:
        write_report(report, self.folder / "report.json")
        write_report(report, self.folder.parent / "latest.json")
        if self.resolved["sae_json"]:
            write_report(report, Path(self.config.invocation_params.dir) / self.resolved["sae_json"])

    def _accept(self, report: Report) -> None:
        try:
            changes = accepting.accept(
                report,
                self.options.baselines,
                reason=self.resolved["sae_accept_reason"],
                who=author(Path(self.config.rootpath)),
                when=utc(time.time()),
                new_only=bool(self.resolved["sae_accept_new"]) and not self.resolved["sae_accept"],
                in_ci=bool(self.resolved["sae_accept_in_ci"]),
            )
        except SAEBenchError as error:
            self.written.append(f"not accepted: {error}")
        else:
            self.written += [f"accepted under {self.resolved['sae_baselines']}/:", *accepting.describe(changes)]


def _shown(path: Path) -> Path:
    """Relative to where the user is, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _run_options(config: pytest.Config, resolved: Resolved) -> RunOptions:
    root = Path(config.rootpath)
    reference = Path(config.invocation_params.dir) / resolved["sae_compare"] if resolved["sae_compare"] else None
    if reference is not None:
        try:
            load_report(reference)
        except StoreError as error:
            raise UsageError(f"--sae-compare: {error}") from None
    return RunOptions(
        tier=resolved["sae_tier"],
        documents=resolved["sae_docs"],
        seed=resolved["sae_seed"],
        device=resolved["sae_device"],
        dtype=resolved["sae_dtype"],
        batch_size=max(1, resolved["sae_batch_size"]),
        baselines=root / resolved["sae_baselines"],
        reference=reference,
        compare=not resolved["sae_no_compare"],
        rules=_rules(config),
        strict=resolved["sae_strict"],
    )


def _rules(config: pytest.Config) -> tuple[Rule, ...]:
    return tuple(parse_rule(text, source) for text, source in given_limits(config.getoption, config.getini))


def _chosen(resolved: Resolved) -> list[SAESpec]:
    load_entry_points()
    SAES.freeze("SAEs were chosen")
    defaults = TargetDefaults(resolved["sae_model"], resolved["sae_site"], resolved["sae_corpus"])
    return select(resolved["sae"], defaults, SAES)


def _properties(patterns: list[str]) -> list[str]:
    from fnmatch import fnmatchcase

    names = property_names()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--sae-property {pattern!r} matches no property{near(pattern, names)}")
    return [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
