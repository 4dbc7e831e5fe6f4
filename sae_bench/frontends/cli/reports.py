"""Commands ``compare``, ``accept`` and ``show``. A report holds enough about its metrics to be judged again."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from sae_bench.errors import UsageError
from sae_bench.frontends.cli.parser import Commands
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import Rule, check_rules, parse_rule
from sae_bench.report import accept as accepting
from sae_bench.report import baselines
from sae_bench.report.convert import declaration_from, measurement_from, property_result
from sae_bench.report.declared_limits import rules_of
from sae_bench.report.provenance import author, utc
from sae_bench.report.records import PropertyResult, Verdict
from sae_bench.report.report import Report, load_report
from sae_bench.show import terminal


def add(commands: Commands) -> None:
    """Declare the commands."""
    compare = commands.add_parser("compare", help="judge a report against an accepted one")
    compare.add_argument("accepted", type=Path, help="report to compare with, or folder of accepted reports")
    compare.add_argument("now", type=Path, help="report to judge")
    compare.add_argument("--limit", action="append", default=[], help="property.metric:LIMIT[@sae-glob]; repeatable")
    compare.add_argument("--strict", action="store_true", help="NEW and INCONCLUSIVE end with exit code 11")
    compare.set_defaults(command=_compare)

    accept = commands.add_parser("accept", help="accept the values of a report, for later runs to compare with")
    accept.add_argument("report", type=Path, help="report.json of a run")
    accept.add_argument("--reason", required=True, help="why the new values are right")
    accept.add_argument(
        "--only", action="append", default=None, metavar="GLOB", help="accept only these properties; repeatable"
    )
    accept.add_argument("--new", action="store_true", help="accept only properties that have no accepted values")
    accept.add_argument("--reanchor", action="store_true", help="drift is measured from these values on")
    accept.add_argument("--in-ci", action="store_true", help="allow accepting where CI=true")
    accept.add_argument("--baselines", type=Path, default=Path("baselines"), help="folder of accepted reports")
    accept.set_defaults(command=_accept)

    show = commands.add_parser("show", help="print a report as its run did")
    show.add_argument("report", type=Path, help="report.json of a run, or an accepted report")
    show.set_defaults(command=_show)


def _compare(options: argparse.Namespace) -> int:
    now = _own_report(options.now)
    rules = [parse_rule(text, "command line") for text in options.limit]
    results = [each for sae in now.saes.values() for each in sae.properties.items()]
    check_rules(rules, [f"{name}.{metric}" for name, result in results for metric in result.metrics])
    judged = {
        sae: replace(
            results,
            properties={
                name: _judge(sae, result, options.accepted, rules, options.strict)
                for name, result in results.properties.items()
            },
        )
        for sae, results in now.saes.items()
    }
    report = Report(now.run, judged)
    _print(report, str(options.now), str(options.accepted))
    return report.exit_code(options.strict)


def _judge(sae: str, result: PropertyResult, where: Path, rules: Sequence[Rule], strict: bool) -> PropertyResult:
    """Judge one property of a report against the accepted one, by its own limits and those of the command."""
    accepted = baselines.accepted_property(where, sae, result.name)
    measurement, declared = measurement_from(result), declaration_from(result)
    verdict = judge(
        declared.name,
        declared.metrics,
        declared.primary_metric,
        measurement,
        accepted,
        sae=sae,
        rules=_rules(sae, result, rules),
        context=result.context,
        known_failures=_known_failures(result),
        strict=strict,
    )
    return property_result(measurement, verdict, declared, context=result.context, accepted=accepted)


def _known_failures(result: PropertyResult) -> dict[str, str]:
    """Return the metrics that the run's registration excused, with the reason."""
    return {
        name: each.known_reason
        for name, each in result.metrics.items()
        if each.known_reason or each.verdict is Verdict.KNOWN
    }


def _rules(sae: str, result: PropertyResult, of_command: Sequence[Rule]) -> Sequence[Rule]:
    """Return the limits that a result carries, and those of the command."""
    rules = rules_of(result)
    if result.acceptance is not None:
        # The hard ones were judged then. Here they only count: error rates depend on how many metrics are declared.
        rules = [replace(rule, sae="") if rule.limit.hard else rule for rule in rules]
        without_limits = any(each.anchor is not None for each in result.metrics.values()) and not rules
        if without_limits and not any(fnmatchcase(result.name, rule.property) for rule in of_command):
            raise UsageError(
                f"{result.name} of {sae} cannot be judged: it was accepted when accepted files held no limits; "
                f"accept it again, or add --limit '{result.name}.{result.primary_metric}:5%'"
            )
    return [*rules, *of_command]


def _own_report(path: Path) -> Report:
    """Load a report of this package; results of other tools follow other formulas under the same names."""
    report = load_report(path)
    for results in report.saes.values():
        for result in results.properties.values():
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


def _show(options: argparse.Namespace) -> int:
    _print(load_report(options.report), str(options.report), "baselines")
    return 0


def _print(report: Report, path: str, accepted: str) -> None:
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    text = terminal.summary(report, width=width, color=sys.stdout.isatty(), report_path=path, baselines=accepted)
    sys.stdout.write(text.rstrip("\n") + "\n")
