"""Choose and order the lines of a report; terminal, Markdown, GitHub and HTML show the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sae_bench.report.records import SEVERITY, MetricResult, PropertyResult, Verdict
from sae_bench.report.report import Report
from sae_bench.show import cells

_AT_ONCE = (Verdict.NEW, Verdict.INCOMPARABLE)
WITHOUT_ANY, WITHOUT_SOME = "not measured (undefined)", "undefined metrics"
"Headings of the lists of `undefined`."
NAMED = 4
"Most metrics of a property, and most SAEs, that a line names; the report has all."


@dataclass(frozen=True)
class Row:
    """One line: a metric, or a property that has none because it could not be measured."""

    sae: str
    property_name: str
    metric: str
    "'' for a property without metrics."
    result: MetricResult | None
    verdict: Verdict | None
    exceeds_limit: bool = False
    primary_metric: bool = False
    error: str = ""
    "Cause of a property that could not be measured."
    more: int = 0
    "Metrics of the same property and the same verdict that have no line of their own."
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``property.metric``."""
        return f"{self.property_name}.{self.metric}" if self.metric else self.property_name

    @property
    def rank(self) -> tuple[int, bool]:
        """Larger is worse."""
        return (-1 if self.verdict is None else SEVERITY[self.verdict], self.exceeds_limit)


def all_rows(report: Report) -> Iterator[Row]:
    """Yield every metric of every property, its primary metric first; a property without metrics is one row."""
    for sae, name, result in properties(report):
        yield from property_rows(sae, name, result)


def property_rows(sae: str, name: str, result: PropertyResult) -> Iterator[Row]:
    """Yield the rows of one property of one SAE."""
    if not result.metrics:
        note = result.message or "nothing is recorded about it"
        yield Row(sae, name, "", None, result.verdict, result.exceeds_limit, True, result.error, notes=(note,))
    for metric in sorted(result.metrics, key=lambda each: (each != result.primary_metric, each)):
        each = result.metrics[metric]
        primary = metric == result.primary_metric
        yield Row(sae, name, metric, each, each.verdict, each.exceeds_limit, primary, notes=_notes(each))


def properties(report: Report) -> Iterator[tuple[str, str, PropertyResult]]:
    """Yield SAE id, property name and result, sorted."""
    for sae in sorted(report.saes):
        for name in sorted(report.saes[sae].properties):
            yield sae, name, report.saes[sae].properties[name]


def _notes(metric: MetricResult) -> tuple[str, ...]:
    """Return the sentences that a row needs on top of its numbers."""
    verdict, notes = metric.verdict, []
    if verdict is Verdict.KNOWN and metric.known_reason:
        notes.append(f"known: {metric.known_reason}")
    if verdict is Verdict.INCONCLUSIVE:
        notes.append(cells.documents(metric))
    if verdict in (Verdict.ERROR, Verdict.MISSING, Verdict.INCOMPARABLE):
        notes.append(metric.message or metric.full_reason)
    if verdict is Verdict.UNDEFINED and metric.limits:
        notes.append(metric.full_reason)
    if verdict is Verdict.FAIL and metric.drift is not None:
        notes.append(str(metric.drift))
    if verdict is Verdict.FAIL and metric.stale_known_failure:
        notes.append(f"its hard limits hold, but known_failures names it ({metric.known_reason}): remove this entry")
    return tuple(filter(None, notes))


def worth_showing(report: Report) -> list[Row]:
    """Return primary metrics, and all judged metrics that are not PASS; what is NEW or INCOMPARABLE at once is one row.

    Properties without any value are left to `undefined`, and so are the reasons why a metric has none.
    """
    shown: list[Row] = []
    for sae, name, result in properties(report):
        if unmeasured(result):
            continue
        rows = [_briefly(row) for row in property_rows(sae, name, result) if row.primary_metric or _needs_a_row(row)]
        head = rows[0] if rows and rows[0].primary_metric else None
        if head is not None and head.verdict in _AT_ONCE:
            same = [row for row in rows[1:] if row.verdict is head.verdict]
            rows = [_for_all(head, result, len(same)), *(row for row in rows[1:] if row not in same)]
        shown += rows or [Row(sae, name, "", None, result.verdict, result.exceeds_limit, True)]
    return list(_merged(shown))


def changed(report: Report) -> list[Row]:
    """Return the rows that are not as they were accepted, the worst first.

    A metric that is UNDEFINED had no value when it was accepted, or it would be MISSING: it is listed by `undefined`.
    """
    rows = [row for row in worth_showing(report) if row.verdict not in (None, Verdict.PASS, Verdict.UNDEFINED)]
    return sorted(rows, key=lambda row: (*(-each for each in row.rank), row.sae, row.name))


def _merged(shown: list[Row]) -> Iterator[Row]:
    """Yield rows; properties of one SAE that could not be measured for the same reason become one row."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in shown:
        if row.error:
            groups.setdefault((row.sae, row.error), []).append(row)
    first = {id(group[0]): group for group in groups.values() if len(group) > 1}
    later = {id(row) for group in first.values() for row in group[1:]}
    for row in shown:
        if id(row) in first:
            group = first[id(row)]
            names = ", ".join(each.property_name for each in group)
            yield replace(row, property_name=f"{len(group)} properties", notes=(f"{names}: {row.error}",))
        elif id(row) not in later:
            yield row


def _needs_a_row(row: Row) -> bool:
    if row.verdict is Verdict.UNDEFINED:
        return bool(row.result and row.result.limits)
    return row.verdict not in (None, Verdict.PASS)


def _briefly(row: Row) -> Row:
    return replace(row, notes=()) if row.verdict is Verdict.UNDEFINED else row


def _for_all(head: Row, result: PropertyResult, more: int) -> Row:
    """Return the row of a primary metric, with the number of others of its verdict that have no row."""
    notes = head.notes
    if head.verdict is Verdict.INCOMPARABLE and result.differences:
        notes = tuple(map(str, result.differences))
    return replace(head, more=more, notes=notes)


def unmeasured(result: PropertyResult) -> bool:
    """Return True when no metric of a property has a value, nor an accepted one: a lost value keeps its row."""
    metrics = result.metrics.values()
    return bool(metrics) and all(each.verdict is Verdict.UNDEFINED and each.accepted is None for each in metrics)


def undefined(report: Report) -> dict[str, list[str]]:
    """Return lists of what has no value and why: `WITHOUT_ANY` for whole properties, `WITHOUT_SOME` for metrics.

    One line per reason. Details of a reason, such as numbers of one SAE, are left out where SAEs differ in them.
    """
    groups: dict[tuple[bool, str, bool, str], list[Row]] = {}
    for sae, name, result in properties(report):
        rows = [row for row in property_rows(sae, name, result) if row.verdict is Verdict.UNDEFINED and row.result]
        some, several = not unmeasured(result), len({_reason(row) for row in rows}) > 1
        for row in sorted(rows, key=lambda row: not (row.primary_metric or _needs_a_row(row))):
            groups.setdefault((some, name, some or several, _reason(row)), []).append(row)
    subjects: dict[tuple[bool, str, tuple[str, ...]], list[str]] = {}
    for (some, name, listed, reason), rows in sorted(groups.items(), key=lambda item: item[0][:2]):
        detailed = {row.result.full_reason for row in rows if row.result}
        why = detailed.pop() if len(detailed) == 1 else reason
        subject = f"{name}.{_metrics(rows)}" if listed else name
        subjects.setdefault((some, why, tuple(dict.fromkeys(row.sae for row in rows))), []).append(subject)
    lines: dict[str, list[str]] = {}
    for (some, why, saes), names in subjects.items():
        lines.setdefault(WITHOUT_SOME if some else WITHOUT_ANY, []).append(
            f"{', '.join(names)}{_of(saes, report)}: {why}"
        )
    return lines


def _reason(row: Row) -> str:
    return row.result.reason if row.result else ""


def _metrics(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row.metric for row in rows))
    return names[0] if len(names) == 1 else f"{{{_few(names)}}}"


def _of(saes: Sequence[str], report: Report) -> str:
    if len(report.saes) == 1:
        return ""
    return f" of all {len(saes)} SAEs" if len(saes) == len(report.saes) else f" of {_few(saes)}"


def _few(names: Sequence[str]) -> str:
    more = [f"+{len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def counts(report: Report) -> Counter[Verdict]:
    """Count the verdicts of judged metrics, and of properties that could not be measured at all."""
    tally: Counter[Verdict] = Counter()
    for row in all_rows(report):
        unlimited = row.verdict is Verdict.UNDEFINED and row.result is not None and not row.result.limits
        if row.verdict is not None and not unlimited:
            tally[row.verdict] += 1
    return tally


def acceptable(report: Report) -> dict[str, list[str]]:
    """Return the properties by SAE that are NEW or IMPROVED and in no respect worse, so that they may be accepted."""
    fine = (Verdict.NEW, Verdict.IMPROVED)
    names: dict[str, list[str]] = {}
    for sae, name, result in properties(report):
        verdicts = {each.verdict for each in result.metrics.values()} & set(fine)
        harmless = result.verdict is not None and SEVERITY[result.verdict] <= SEVERITY[Verdict.NEW]
        if verdicts and harmless:
            names.setdefault(sae, []).append(name)
    return names


def accept_commands(report: Report) -> list[str]:
    """Return the commands that accept what is NEW or IMPROVED and nothing worse; SAEs share a line where they can."""
    rerun = report.run.rerun_command
    if rerun is None:
        return []
    by_properties: dict[tuple[str, ...], list[str]] = {}
    for sae, names in acceptable(report).items():
        everything = len(names) == len(report.saes[sae].properties)
        bad = any(
            each.verdict is not None and SEVERITY[each.verdict] > SEVERITY[Verdict.NEW]
            for each in report.saes[sae].properties.values()
        )
        chosen = () if everything or not bad else tuple(names)
        by_properties.setdefault(chosen, []).append(sae)
    return [rerun.accept(saes, chosen) for chosen, saes in by_properties.items()]


def verdict_line(report: Report) -> str:
    """Return ``FAIL: 1 fail · 2 inconclusive · 11 pass``: the worst verdict, and the number of each."""
    if counts(report):
        return f"{worst_word(report)}: {count_line(report)}"
    nothing = not any(True for _ in properties(report))
    return "nothing was measured" if nothing else f"nothing was judged ({len(report.saes)} SAEs)"


def worst_word(report: Report) -> str:
    """Spell the worst verdict of a report's properties; what is better, known or undefined passes."""
    worst = max((result for _, _, result in properties(report)), key=_rank, default=None)
    if worst is None:
        return ""
    if worst.verdict in (Verdict.IMPROVED, Verdict.KNOWN, Verdict.UNDEFINED):
        return cells.verdict_word(Verdict.PASS)
    return cells.verdict_word(worst.verdict, worst.exceeds_limit) or "not judged"


def needs_attention(report: Report) -> bool:
    """Return True when a property of the report fails its pytest item."""
    return any(cells.needs_attention(result.verdict, result.exceeds_limit) for _, _, result in properties(report))


def _rank(result: PropertyResult) -> tuple[int, bool]:
    return (-1 if result.verdict is None else SEVERITY[result.verdict], result.exceeds_limit)


def count_line(report: Report) -> str:
    """Return ``1 fail · 2 inconclusive · 11 pass``, the worst first."""
    tally = counts(report)
    ordered = sorted(tally, key=lambda each: -SEVERITY[each])
    return " · ".join(f"{tally[verdict]} {verdict.value.lower()}" for verdict in ordered) or "nothing was judged"
