"""What is worth a line of a report, in which order: the same answer for terminal, Markdown, GitHub and HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sae_bench.judge.verdicts import SEVERITY, Verdict
from sae_bench.report.records import MetricResult, PropertyResult
from sae_bench.report.report import Report
from sae_bench.report.rerun_commands import RerunCommand
from sae_bench.show import cells

NOT_MEASURED = " could not be measured: "
_AT_ONCE = (Verdict.NEW, Verdict.INCOMPARABLE)
WITHOUT_ANY, WITHOUT_SOME = "not measured (undefined)", "undefined metrics"
"Headings of what `undefined` tells."
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
    """Every metric of every property; headlines first, then by name. Properties without metrics are one row."""
    for sae, name, result in properties(report):
        yield from property_rows(sae, name, result)


def property_rows(sae: str, name: str, result: PropertyResult) -> Iterator[Row]:
    """The rows of one property of one SAE."""
    if not result.metrics:
        note = result.lines[0] if result.lines else "nothing is recorded about it"
        yield Row(sae, name, "", None, result.verdict, result.exceeds_limit, True, notes=(note,))
    for metric in sorted(result.metrics, key=lambda each: (each != result.primary_metric, each)):
        found = result.metrics[metric]
        primary_metric = metric == result.primary_metric
        yield Row(sae, name, metric, found, found.verdict, found.exceeds_limit, primary_metric, notes=_notes(found))


def properties(report: Report) -> Iterator[tuple[str, str, PropertyResult]]:
    """SAE id, property name and result, sorted."""
    for sae in sorted(report.saes):
        for name in sorted(report.saes[sae].properties):
            yield sae, name, report.saes[sae].properties[name]


def known_reason(metric: MetricResult) -> str:
    """Why the limit of a metric that is KNOWN may fail."""
    return metric.message.rpartition("known: ")[2]


def _notes(metric: MetricResult) -> tuple[str, ...]:
    """What a row's numbers do not say, as sentences."""
    verdict, notes = metric.verdict, []
    if verdict is Verdict.KNOWN and "known: " in metric.message:
        notes.append(f"known: {known_reason(metric)}")
    if verdict is Verdict.INCONCLUSIVE:
        notes.append(cells.documents(metric))
    if verdict in (Verdict.ERROR, Verdict.MISSING, Verdict.INCOMPARABLE):
        notes.append(metric.message or metric.reason)
    if verdict is Verdict.UNDEFINED and metric.limit:
        notes.append(metric.reason)
    if verdict is Verdict.FAIL:
        tail = metric.message.partition("; ")[2]
        if "since the anchor" in metric.message or "known_failures" in metric.message:
            notes.append(tail or metric.message)
    return tuple(filter(None, notes))


def worth_showing(report: Report) -> list[Row]:
    """Headlines, and whatever was judged and is not PASS; what is NEW or INCOMPARABLE all at once is one row.

    Properties without any value are left to `undefined`, and so is why a metric has none.
    """
    shown: list[Row] = []
    for sae, name, result in properties(report):
        if unmeasured(result):
            continue
        kept = [_briefly(row) for row in property_rows(sae, name, result) if row.primary_metric or _stands_out(row)]
        head = kept[0] if kept and kept[0].primary_metric else None
        if head is not None and head.verdict in _AT_ONCE:
            same = [row for row in kept[1:] if row.verdict is head.verdict]
            kept = [_with(head, result, len(same)), *(row for row in kept[1:] if row not in same)]
        shown += kept or [Row(sae, name, "", None, result.verdict, result.exceeds_limit, True)]
    return list(_merged(shown))


def changed(report: Report) -> list[Row]:
    """What is not as it was accepted, worst first.

    What is UNDEFINED had no value when it was accepted, or it would be MISSING: no change, and `undefined` tells it.
    """
    found = [row for row in worth_showing(report) if row.verdict not in (None, Verdict.PASS, Verdict.UNDEFINED)]
    return sorted(found, key=lambda row: (*(-each for each in row.rank), row.sae, row.name))


def _merged(shown: list[Row]) -> Iterator[Row]:
    """Rows, with those of one SAE that could not be measured for one reason made one row."""
    reasons: dict[tuple[str, str], list[Row]] = {}
    for row in shown:
        if row.result is None and row.notes and NOT_MEASURED in row.notes[0]:
            reasons.setdefault((row.sae, row.notes[0].partition(NOT_MEASURED)[2]), []).append(row)
    first = {id(group[0]): (reason, group) for (_, reason), group in reasons.items() if len(group) > 1}
    later = {id(row) for _, group in first.values() for row in group[1:]}
    for row in shown:
        if id(row) in first:
            reason, group = first[id(row)]
            names = ", ".join(each.property_name for each in group)
            note = f"{names}: {reason}"
            yield Row(
                row.sae, f"{len(group)} properties", "", None, row.verdict, row.exceeds_limit, True, notes=(note,)
            )
        elif id(row) not in later:
            yield row


def _stands_out(row: Row) -> bool:
    if row.verdict is Verdict.UNDEFINED:
        return bool(row.result and row.result.limit)
    return row.verdict not in (None, Verdict.PASS)


def _briefly(row: Row) -> Row:
    return replace(row, notes=()) if row.verdict is Verdict.UNDEFINED else row


def _with(head: Row, result: PropertyResult, more: int) -> Row:
    notes = head.notes
    if head.verdict is Verdict.INCOMPARABLE:
        differing = [line.strip() for line in result.lines[1:] if line.endswith(" accepted") and " now, " in line]
        notes = tuple(differing) or notes
    return Row(
        head.sae, head.property_name, head.metric, head.result, head.verdict, head.exceeds_limit, True, more, notes
    )


def unmeasured(result: PropertyResult) -> bool:
    """Whether no metric of a property has a value, nor had one when it was accepted: a lost value keeps its row."""
    found = result.metrics.values()
    return bool(found) and all(each.verdict is Verdict.UNDEFINED and each.accepted is None for each in found)


def undefined(report: Report) -> dict[str, list[str]]:
    """What has no value and why, one line a reason: `WITHOUT_ANY` for whole properties, `WITHOUT_SOME` for metrics.

    What follows a reason's colon often holds numbers of one SAE; reasons that differ only there are told without it.
    """
    found: dict[tuple[bool, str, bool, str], list[Row]] = {}
    for sae, name, result in properties(report):
        rows = [row for row in property_rows(sae, name, result) if row.verdict is Verdict.UNDEFINED and row.result]
        some, several = not unmeasured(result), len({_short(row) for row in rows}) > 1
        for row in sorted(rows, key=lambda row: not (row.primary_metric or _stands_out(row))):
            found.setdefault((some, name, some or several, _short(row)), []).append(row)
    subjects: dict[tuple[bool, str, tuple[str, ...]], list[str]] = {}
    for (some, name, listed, short), rows in sorted(found.items(), key=lambda item: item[0][:2]):
        reasons = {row.result.reason for row in rows if row.result}
        why = reasons.pop() if len(reasons) == 1 else short
        subject = f"{name}.{_metrics(rows)}" if listed else name
        subjects.setdefault((some, why, tuple(dict.fromkeys(row.sae for row in rows))), []).append(subject)
    lines: dict[str, list[str]] = {}
    for (some, why, saes), names in subjects.items():
        lines.setdefault(WITHOUT_SOME if some else WITHOUT_ANY, []).append(
            f"{', '.join(names)}{_of(saes, report)}: {why}"
        )
    return lines


def _short(row: Row) -> str:
    return row.result.reason.partition(": ")[0] if row.result else ""


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
    """How often each verdict was given: judged metrics, and properties that could not be measured at all."""
    found: Counter[Verdict] = Counter()
    for row in all_rows(report):
        unlimited = row.verdict is Verdict.UNDEFINED and row.result is not None and not row.result.limit
        if row.verdict is not None and not unlimited:
            found[row.verdict] += 1
    return found


def acceptable(report: Report) -> dict[str, list[str]]:
    """Properties by SAE that are NEW or IMPROVED and have nothing wrong with them: what may well be accepted."""
    fine = (Verdict.NEW, Verdict.IMPROVED)
    found: dict[str, list[str]] = {}
    for sae, name, result in properties(report):
        verdicts = {each.verdict for each in result.metrics.values()} & set(fine)
        harmless = result.verdict is not None and SEVERITY[result.verdict] <= SEVERITY[Verdict.NEW]
        if verdicts and harmless:
            found.setdefault(sae, []).append(name)
    return found


def accept_commands(report: Report) -> list[str]:
    """The commands that accept what is NEW or IMPROVED and nothing worse; SAEs share a line where they can."""
    again = RerunCommand.of(report.run.options.get("again"))
    if again is None:
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
    return [again.accept(saes, chosen) for chosen, saes in by_properties.items()]


def verdict_line(report: Report) -> str:
    """``FAIL: 1 fail · 2 inconclusive · 11 pass``: the worst verdict, and how often each was given.

    What is better, known or undefined passes.
    """
    found = counts(report)
    if not found:
        nothing = not any(True for _ in properties(report))
        return "nothing was measured" if nothing else f"nothing was judged ({len(report.saes)} SAEs)"
    ordered = sorted(found, key=lambda each: -SEVERITY[each])
    worst = max(properties(report), key=lambda each: _rank(each[2]))[2]
    word = cells.verdict_word(worst.verdict, worst.exceeds_limit) or "not judged"
    if worst.verdict in (Verdict.IMPROVED, Verdict.KNOWN, Verdict.UNDEFINED):
        word = cells.verdict_word(Verdict.PASS)
    return f"{word}: " + count_line(report, ordered)


def _rank(result: PropertyResult) -> tuple[int, bool]:
    return (-1 if result.verdict is None else SEVERITY[result.verdict], result.exceeds_limit)


def count_line(report: Report, ordered: list[Verdict] | None = None) -> str:
    """``1 fail · 2 inconclusive · 11 pass``."""
    found = counts(report)
    ordered = ordered or sorted(found, key=lambda each: -SEVERITY[each])
    return " · ".join(f"{found[verdict]} {verdict.value.lower()}" for verdict in ordered) or "nothing was judged"
