"""``compare``, ``accept``, ``prune`` and ``show``: a report says enough about its own metrics to be judged again."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from sae_bench import accepting, baselines
from sae_bench.cli.parser import Commands
from sae_bench.conversion import measurement_from, metrics_from, property_result, rules_from
from sae_bench.errors import SAEBenchError, UsageError
from sae_bench.limits import Rule, check_rules, parse_rule
from sae_bench.measurement import Metric
from sae_bench.outcome import Verdict
from sae_bench.properties import load_property, property_names
from sae_bench.provenance import author, utc
from sae_bench.render import terminal
from sae_bench.render.rows import known_reason
from sae_bench.report import load_report
from sae_bench.results import PropertyResult, Report
from sae_bench.spec import SAESpec
from sae_bench.verdict import judge


def add(commands: Commands) -> None:
    """Declare the commands."""
    compare = commands.add_parser("compare", help="judge one report against another")
    compare.add_argument("accepted", type=Path, help="the report to compare with, or a folder of accepted reports")
    compare.add_argument("now", type=Path, help="the report to judge")
    compare.add_argument("--limit", action="append", default=[], help="property.metric:LIMIT[@sae-glob], repeatable")
    compare.add_argument("--strict", action="store_true", help="NEW and INCONCLUSIVE end with exit code 11")
    compare.set_defaults(command=_compare)

    accept = commands.add_parser("accept", help="take a report's values as the ones to compare with")
    accept.add_argument("report", type=Path)
    accept.add_argument("--reason", required=True, help="why the new values are right")
    accept.add_argument("--only", action="append", default=None, metavar="GLOB", help="only these properties")
    accept.add_argument("--new", action="store_true", help="only what has no accepted entry")
    accept.add_argument("--reanchor", action="store_true", help="measure drift from these values on")
    accept.add_argument("--in-ci", action="store_true", help="allow it where CI=true")
    _folder(accept)
    accept.set_defaults(command=_accept)

    prune = commands.add_parser("prune", help="remove accepted values that nothing stands behind any more")
    prune.add_argument("--keep", action="append", default=None, metavar="ID", help="ids that are still registered")
    prune.add_argument("--conftest", type=Path, default=Path("conftest.py"), help="where SAEs are registered")
    prune.add_argument("--property", action="append", default=[], metavar="GLOB", help="properties that are gone, too")
    prune.add_argument("--yes", action="store_true", help="remove what is listed")
    _folder(prune)
    prune.set_defaults(command=_prune)

    show = commands.add_parser("show", help="print a report as the run did")
    show.add_argument("report", type=Path)
    show.set_defaults(command=_show)


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baselines", type=Path, default=Path("baselines"), help="folder of accepted reports")


def _compare(options: argparse.Namespace) -> int:
    now = _own_report(options.now)
    rules = [parse_rule(text, "command line") for text in options.limit]
    results = [each for sae in now.saes.values() for each in sae.properties.items()]
    check_rules(rules, [f"{name}.{metric}" for name, result in results for metric in result.metrics])
    judged = {
        sae: replace(
            found,
            properties={
                name: _judge_again(sae, name, result, options.accepted, rules, options.strict)
                for name, result in found.properties.items()
            },
        )
        for sae, found in now.saes.items()
    }
    _print(Report(now.run, judged), str(options.now), str(options.accepted))
    return Report(now.run, judged).exit_code(options.strict)


def _judge_again(
    sae: str, name: str, result: PropertyResult, where: Path, rules: list[Rule], strict: bool
) -> PropertyResult:
    """One property of a report against the accepted side, by the limits that it carries and those given now."""
    accepted = baselines.accepted_property(where, sae, name)
    measurement, metrics = measurement_from(result), metrics_from(result)
    verdict = judge(
        name,
        metrics,
        result.headline,
        measurement,
        accepted,
        sae=sae,
        rules=[*(rules_from(result) if result.acceptance is None else _declared_limits(result)), *rules],
        context=result.context,
        known_failures=_known_failures(result),
        strict=strict,
    )
    return property_result(
        measurement, verdict, _Declared(name, metrics, result.version), context=result.context, accepted=accepted
    )


def _known_failures(result: PropertyResult) -> dict[str, str]:
    """What the run excused, with its reason, as its registration said; that is not at hand."""
    excused = {name: each for name, each in result.metrics.items() if each.verdict is Verdict.KNOWN}
    return {name: known_reason(each) for name, each in excused.items()}


def _declared_limits(result: PropertyResult) -> list[Rule]:
    """Limits on change of its property: an accepted report keeps no limits, and its hard ones were judged then."""
    declared = load_property(result.name).limits if result.name in property_names() else ()
    rules = [parse_rule(f"{result.name}.{limit}", "property") for limit in declared]
    return [rule for rule in rules if rule.metric in result.metrics and not rule.limit.hard]


@dataclass(frozen=True)
class _Declared:
    """What a report says about one of its properties."""

    name: str
    metrics: Sequence[Metric]
    version: int


def _own_report(path: Path) -> Report:
    """A report of this package; results of other tools follow other formulas under the same names."""
    report = load_report(path)
    for found in report.saes.values():
        for result in found.properties.values():
            if owner := result.context.get("formulas_of"):
                raise UsageError(f"{path} holds results of {owner}, which can be shown but never compared or accepted")
    return report


def _accept(options: argparse.Namespace) -> int:
    changes = accepting.accept(
        _own_report(options.report),
        options.baselines,
        reason=options.reason,
        who=author(Path.cwd()),
        when=utc(time.time()),
        only=options.only,
        new_only=options.new,
        reanchor=options.reanchor,
        in_ci=options.in_ci,
    )
    sys.stdout.write("\n".join([f"accepted under {options.baselines}:", *accepting.describe(changes)]) + "\n")
    return 0


def _prune(options: argparse.Namespace) -> int:
    registered = options.keep if options.keep is not None else [spec.id for spec in registered_by(options.conftest)]
    declared = {name: _metric_names(name) for name in property_names() if not _named(name, options.property)}
    gone = baselines.prune(options.baselines, registered, declared, write=options.yes)
    if not gone:
        sys.stdout.write("nothing to prune: every accepted value has a registered SAE and a declared metric\n")
        return 0
    verb = "removed" if options.yes else "would be removed (add --yes)"
    sys.stdout.write("\n".join([f"{verb}:", *(f"  {entry}" for entry in gone)]) + "\n")
    return 0


def _metric_names(name: str) -> list[str]:
    return [metric.name for metric in load_property(name).metrics]


def _named(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in globs)


def registered_by(conftest: Path) -> list[SAESpec]:
    """SAEs that a conftest and the installed packages register."""
    import runpy

    from sae_bench.registration import SAES, load_entry_points

    if not conftest.is_file():
        raise UsageError(
            f"there is no {conftest} that registers SAEs; name it with --conftest, or list ids with --keep"
        )
    load_entry_points()
    sys.path.insert(0, str(conftest.parent.resolve()))
    try:
        runpy.run_path(str(conftest))
    except (SAEBenchError, ImportError):
        raise
    except Exception as error:
        raise UsageError(f"{conftest} cannot be run: {type(error).__name__}: {error}; list ids with --keep") from error
    return list(SAES.values())


def _show(options: argparse.Namespace) -> int:
    _print(load_report(options.report), str(options.report), "baselines")
    return 0


def _print(report: Report, path: str, accepted: str) -> None:
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    text = terminal.summary(report, width=width, color=sys.stdout.isatty(), report_path=path, baselines=accepted)
    sys.stdout.write(text.rstrip("\n") + "\n")
