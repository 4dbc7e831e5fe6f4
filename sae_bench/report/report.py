"""Reports: written atomically, read strictly, turned into a table.

Their records are in `records`, the JSON in `json`, and the way from and to measurements in `convert`.
"""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_bench.errors import StoreError
from sae_bench.judge.verdicts import worst_exit
from sae_bench.measure.measurement import Ratio
from sae_bench.measure.uncertainty import NUMERIC_FLOOR
from sae_bench.report.convert import (
    accepted_from,
    context_digest,
    declaration_from,
    estimate_from,
    measurement_from,
    property_context,
    property_result,
    rules_from,
)
from sae_bench.report.json import decode, dumps, loads, plain
from sae_bench.report.provenance import Provenance
from sae_bench.report.records import (
    SCHEMA,
    Acceptance,
    MetricResult,
    PerCluster,
    PropertyResult,
    SAEResult,
    SourcedLimit,
    exit_code,
)
from sae_bench.report.upgrade import upgraded

if TYPE_CHECKING:
    import pandas

__all__ = [
    "SCHEMA",
    "Acceptance",
    "MetricResult",
    "PerCluster",
    "PropertyResult",
    "Provenance",
    "Report",
    "SAEResult",
    "accepted_from",
    "context_digest",
    "declaration_from",
    "from_json",
    "load_report",
    "measurement_from",
    "property_context",
    "property_result",
    "rows",
    "rules_from",
    "to_csv",
    "to_frame",
    "to_json",
    "write_report",
    "write_text",
]


@dataclass(frozen=True)
class Report:
    """A run, or an accepted file: the same schema."""

    run: Provenance
    saes: Mapping[str, SAEResult]
    schema: int = field(default_factory=lambda: SCHEMA)

    @classmethod
    def of(cls, results: Mapping[str, Mapping[str, PropertyResult]], run: Provenance) -> Report:
        """Make a report of results by SAE id and property name."""
        return cls(run, {sae: SAEResult(dict(properties)) for sae, properties in results.items()})

    @classmethod
    def load(cls, path: Path | str) -> Report:
        """Read the report in a file; one that cannot be read is a `StoreError`."""
        return load_report(path)

    def to_frame(self) -> pandas.DataFrame:
        """Return a tidy pandas data frame: one row per SAE, property and metric."""
        return to_frame(self)

    def exit_code(self, strict: bool = False) -> int:
        """Return the exit code that follows from the verdicts in this report."""
        results = [result for sae in self.saes.values() for result in sae.properties.values()]
        codes = [exit_code(each.verdict, each.exceeds_limit, strict) for each in results if each.verdict is not None]
        return worst_exit(codes)


def to_json(report: Report) -> str:
    """Write strict JSON: sorted keys, full precision, a final newline. A value that is not finite is null."""
    return dumps(plain(report)) + "\n"


def from_json(text: str, where: str = "report") -> Report:
    """Read the report in ``text``; anything else is a `StoreError` that begins with ``where``."""
    tree = loads(text, where)
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise StoreError(f"{where} is not a report of pytest-sae-bench: it has no schema number")
    if schema > SCHEMA:
        raise StoreError(
            f"{where} has schema {schema}, but this pytest-sae-bench reads up to {SCHEMA}: "
            f"upgrade it (pip install -U pytest-sae-bench)"
        )
    report = decode(Report, upgraded(tree, schema, where), where)
    for sae, result in report.saes.items():
        for name, each in result.properties.items():
            _check(each, f"{where}: {name} of {sae}")
    return report


def load_report(path: Path | str) -> Report:
    """Read the report in a file; missing, truncated, newer, or edited to nonsense is a `StoreError` with the remedy."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StoreError(f"there is no report at {path}; name a report.json that a run has written") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read as a report: {error}") from None
    return from_json(text, str(path))


def _check(result: PropertyResult, where: str) -> None:
    """Refuse numbers that contradict each other: a file that was edited by hand would otherwise decide."""
    if result.context_digest != context_digest(result.context):
        raise StoreError(f"{where}: the context was changed after it was written; restore the file from git")
    if len(set(result.clusters)) < len(result.clusters):
        raise StoreError(f"{where}: a cluster id occurs twice; restore the file from git")
    for name, metric in result.metrics.items():
        parts = metric.per_cluster
        if (metric.value is None) != bool(metric.reason):
            raise StoreError(f"{where}: {name} needs either a value or a reason why there is none")
        if parts is None:
            continue
        known = [rows for rows in (parts.numerator, parts.denominator, parts.influence) if rows is not None]
        complete = (parts.influence is None) == (parts.numerator is not None) == (parts.denominator is not None)
        if not complete or any(len(rows) != len(result.clusters) for rows in known):
            raise StoreError(f"{where}: {name} must have one entry per cluster ({len(result.clusters)})")
        estimate = estimate_from(metric)
        if isinstance(estimate, Ratio) and metric.value is not None:
            scale = math.fsum(abs(estimate.numerator)) / abs(math.fsum(estimate.denominator) or 1.0)
            if not abs(estimate.value - metric.value) <= NUMERIC_FLOOR * (scale + abs(metric.value)):
                raise StoreError(
                    f"{where}: {name} says {metric.value:.6g}, but its values per cluster come to "
                    f"{estimate.value:.6g}; restore the file from git, or measure and accept again"
                )


def write_text(path: Path | str, text: str) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, then a rename. LF, UTF-8."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not mkstemp, which makes files for their owner alone: reports are for everybody the umask allows.
        part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with part.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror or error}; check the folder") from None


def write_report(report: Report, path: Path | str) -> None:
    """Write ``report`` atomically as strict JSON."""
    write_text(path, to_json(report))


_COLUMNS = (
    "sae",
    "property",
    "metric",
    "value",
    "se",
    "n",
    "unit",
    "better",
    "verdict",
    "limit",
    "limit_from",
    "accepted",
    "change",
    "change_low",
    "change_high",
    "value_low",
    "value_high",
    "detectable",
    "needed_documents",
    "primary_metric",
    "version",
    "context_digest",
    "reason",
)


def rows(report: Report) -> Iterator[dict[str, Any]]:
    """Yield one tidy row per SAE, property and metric; what is absent is None."""
    for sae, results in report.saes.items():
        for name, result in results.properties.items():
            for metric, each in result.metrics.items():
                yield _row(sae, name, result, metric, each)


def _row(sae: str, name: str, result: PropertyResult, metric: str, each: MetricResult) -> dict[str, Any]:
    spans: Mapping[str, tuple[float, float] | None] = {"change": each.interval, "value": each.value_interval}
    row: dict[str, Any] = {column: getattr(each, column, None) for column in _COLUMNS}
    for part, span in spans.items():
        row[f"{part}_low"], row[f"{part}_high"] = span if span is not None else (None, None)
    row.update(sae=sae, property=name, metric=metric, primary_metric=metric == result.primary_metric)
    row.update(limit=limits_text(each.limits), limit_from=sources_text(each.limits), reason=each.full_reason)
    row.update(context_digest=result.context_digest, verdict=each.verdict.value if each.verdict else None)
    return row


def limits_text(limits: Sequence[SourcedLimit]) -> str:
    """Spell limits as a user writes them, joined by semicolons."""
    return "; ".join(map(str, limits))


def sources_text(limits: Sequence[SourcedLimit]) -> str:
    """Name the sources of limits, each once."""
    return "; ".join(dict.fromkeys(limit.source for limit in limits))


def to_csv(report: Report) -> str:
    """Write the rows as CSV text with a header, LF line ends; absent values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
    return text.getvalue()


def to_frame(report: Report) -> pandas.DataFrame:
    """Return the rows as a pandas data frame."""
    import pandas

    return pandas.DataFrame(list(rows(report)), columns=_COLUMNS)
