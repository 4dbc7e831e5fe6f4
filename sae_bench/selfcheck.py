"""How much a measurement moves although the SAE does not: ``--sae-selfcheck`` measures again and keeps the spread.

What should make no difference is changed: the batch size, the order of the documents, and the seed of every draw. The
spread of a metric is its largest value minus its smallest over all of these measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sae_bench.errors import UsageError
from sae_bench.limits import Rule, effective, width
from sae_bench.measurement import Measurement, Metric, Undefined
from sae_bench.stats import NUMERIC_FLOOR

if TYPE_CHECKING:
    from sae_bench.bench import Bench
    from sae_bench.properties import Property

REPEATS = 2
"Measurements beside the first one."


def measured_noise(declared: Property, bench: Bench, found: Measurement) -> dict[str, float]:
    """Spread of each metric of ``found``, in its unit; left out where it has no value every time."""
    values = {name: [each.value] for name, each in found.estimates.items() if not isinstance(each, Undefined)}
    for repeat in range(1, REPEATS + 1):
        again = declared.measure(varied(bench, repeat)).estimates
        for name, seen in values.items():
            seen.append(again[name].value if name in again else math.nan)
    spreads = {name: max(seen) - min(seen) for name, seen in values.items() if all(map(math.isfinite, seen))}
    return dict(sorted(spreads.items()))


def varied(bench: Bench, repeat: int) -> Bench:
    """The same SAE, model and corpus, looked at in another way: no number may depend on it but by noise."""
    settings = bench.settings
    varied = replace(
        settings,
        batch_size=max(1, settings.batch_size // (repeat + 1)) if settings.batch_size > 1 else repeat + 1,
        order_seed=repeat,
        seed=settings.seed + repeat,
    )
    return type(bench)(
        bench.sae,
        bench.model,
        bench.corpus,
        bench.site_data,
        varied,
        include_bos=bench.include_bos,
        partner=bench.partner,
        contrast=bench.contrast,
    )


def check_noise(
    rules: Sequence[Rule],
    property: str,
    metrics: Sequence[Metric],
    sae: str,
    values: Mapping[str, float],
    noise: Mapping[str, float],
) -> None:
    """Raise a `UsageError` for a limit on change that is tighter than the measured noise of its metric.

    Args:
        rules: limits from every source.
        property: its name.
        metrics: all it declares.
        sae: the id that rules name.
        values: what percentages refer to, by metric.
        noise: measured spread, by metric.
    """
    for metric in metrics:
        rule = effective(rules, property, metric, sae).get("change")
        if rule is None or metric.name not in noise or metric.name not in values or rule.limit.se:
            continue
        name, value, spread = f"{property}.{metric.name}", values[metric.name], noise[metric.name]
        if not math.isfinite(value) or (value == 0 and rule.limit.percent):
            continue
        allowed = width(rule.limit, value, None, spread, name)
        if spread > allowed + NUMERIC_FLOOR * abs(value):
            raise UsageError(
                f"limit {name}:{rule.limit} ({rule.source}) of {sae} allows {allowed:.3g}, less than the "
                f"{spread:.3g} that {name} moves when nothing changes (measured by --sae-selfcheck); "
                f"widen it, as in '{name}:{rule.limit}+1noise'"
            )
