"""Write a report for other dashboards: github-action-benchmark's JSON and Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from sae_bench.report.records import MetricResult
from sae_bench.report.report import Report


def action_benchmark(report: Report, better: Literal["lower", "higher"]) -> list[dict[str, Any]]:
    """Return entries of ``customSmallerIsBetter`` (lower) or ``customBiggerIsBetter`` (higher).

    That tool knows one direction a file, and draws and compares points without their intervals: use it to draw, and
    gate on pytest's exit code.
    """
    return [
        {
            "name": name,
            "unit": metric.unit or "1",
            "value": metric.value,
            **({"range": f"± {metric.se:.3g}"} if metric.se is not None else {}),
            "extra": f"{metric.verdict or 'reported'}: {metric.meaning}",
        }
        for name, metric in _values(report)
        if metric.better == better
    ]


def log_to_wandb(report: Report, run: Any, step: int | None = None) -> dict[str, Any]:
    """Log every value as ``sae/property.metric``, with ``.se`` and ``.verdict``, to ``wandb.init()``'s run.

    ``run`` is whatever has a ``log(dict, step=...)``. Returns what was logged.
    """
    logged: dict[str, Any] = {}
    for name, metric in _values(report):
        logged[name] = metric.value
        if metric.se is not None:
            logged[f"{name}.se"] = metric.se
        if metric.verdict is not None:
            logged[f"{name}.verdict"] = str(metric.verdict)
    run.log(logged, step=step)
    return logged


def _values(report: Report) -> Iterator[tuple[str, MetricResult]]:
    """Yield the metrics that have a value."""
    for sae, results in report.saes.items():
        for name, result in results.properties.items():
            for metric, each in result.metrics.items():
                if each.value is not None:
                    yield f"{sae}/{name}.{metric}", each
