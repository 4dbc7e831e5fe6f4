"""Changes of real SAEs whose true size can be set: decoders scaled, and other SAEs in an accepted one's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sae_bench.demo.paths import BUNDLED, SITE
from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.measure.measurement import Ratio
from sae_bench.registry.spec import SAESpec
from sae_bench.run.load import Loader
from sae_bench.sae import controls
from sae_bench.sae.formats import read_sae

KL, MOVED = METRICS = ("kl_sae", "tv_sae")
"Metrics of ``kl_gap`` that a worse reconstruction moves, the mean loss first: changes are told in its unit."
SAES = ("standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka")
FACTORS = (0.95, 0.9, 0.7)
"Scales of a decoder whose KL is measured; changes between them lie on the line through the nearest two."
PAIRS = (
    ("topk", "topk-seed1"),
    ("topk", "batchtopk"),
    ("standard", "gated"),
    ("matryoshka", "batchtopk"),
)
"An accepted SAE and another one in its place: of another seed first, then of other recipes."

Values = dict[str, Ratio]
"By metric, per document."
Moved = Callable[[str, float], Values]
"""The new values when the true change of a metric is so many parts of its accepted value."""


@dataclass(frozen=True)
class Kind:
    """One way to become worse."""

    name: str
    of: str
    "The accepted SAE."
    accepted: Values
    moved: Moved
    most: float
    "The largest rise of the mean loss that it can be given, as a share."


def changes() -> list[Kind]:
    """All kinds, over the whole corpus."""
    loader = Loader(Settings(TIERS["full"], batch_size=64))
    sound = {name: _values(loader, name) for name in dict.fromkeys([*SAES, *(name for pair in PAIRS for name in pair)])}
    kinds = []
    for name in SAES:
        scaled = [_values(loader, name, factor) for factor in FACTORS]
        most = max(each[KL].value for each in scaled) / sound[name][KL].value - 1
        kinds.append(Kind(f"decoder of {name} scaled", name, sound[name], _towards(sound[name], scaled), most))
    for name, other in PAIRS:
        moved = _recentred(sound[name], sound[other])
        kinds.append(Kind(f"{name} replaced by {other}", name, sound[name], moved, np.inf))
    return kinds


def _values(loader: Loader, name: str, factor: float = 1.0) -> Values:
    """What one SAE loses, per document of the whole corpus, its decoder scaled."""
    sae = read_sae(str(BUNDLED.sae(name)))
    spec = SAESpec(
        id=f"{name}-{factor}",
        load=lambda: controls.scale_decoder(sae, factor),
        model=str(BUNDLED.model),
        site=SITE,
        corpus=str(BUNDLED.corpus),
    )
    bench = loader.bench(spec)
    tables = bench.collect(lambda batch: _lost(bench, batch))
    loader.forget(spec)
    return {metric: Ratio(bench.per_cluster(tables[metric]), bench.per_cluster(bench.keep)) for metric in METRICS}


def _lost(bench: Bench, batch: Batch) -> dict[str, Tensor]:
    found = bench.intervene(batch, bench.reconstruct(batch), distances=True)
    assert found.total_variation is not None
    return {KL: found.kl, MOVED: found.total_variation}


def _towards(accepted: Values, scaled: Sequence[Values]) -> Moved:
    """Decoder scales between the measured ones: each document's values on the line through the nearest two."""
    points = [accepted, *scaled]

    def moved(metric: str, change: float) -> Values:
        values = [point[metric].value for point in points]
        goal = values[0] * (1 + change)
        after = next((row for row in range(1, len(points) - 1) if values[row] >= goal), len(points) - 1)
        share = (goal - values[after - 1]) / (values[after] - values[after - 1])
        low, high = points[after - 1], points[after]
        return {
            each: Ratio(low[each].numerator + share * (high[each].numerator - low[each].numerator), old.denominator)
            for each, old in accepted.items()
        }

    return moved


def _recentred(accepted: Values, other: Values) -> Moved:
    """Another SAE's values, each metric's multiplied by one number so that the true change is the wanted one.

    The mean loss grows with the square of an error, the probability that it moves with the error itself.
    """

    def moved(metric: str, change: float) -> Values:
        growth = (1 + change) ** (0.5 if metric == KL else 1.0)
        factors = {KL: growth**2, MOVED: growth}
        return {
            each: Ratio(new.numerator * (accepted[each].value * factors[each] / new.value), new.denominator)
            for each, new in other.items()
        }

    return moved
