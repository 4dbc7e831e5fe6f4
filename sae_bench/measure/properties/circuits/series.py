"""What circuits look like: logit differences by arm, factors and their levels, features and what they matter for.

differences   histogram of logit differences over prompts, by arm
levels        table: per factor and level the prompts, their mean logit differences, what is lost, and prompts whose
              right answer is still preferred; omega squared of the factor in what is lost, and its p
features      table: each chosen feature's mean effect and spread, in every order its mean and the share of prompts
              where it has its sign, omega squared and p of both factors, a random direction's mean effect, and the
              order that it matters for alone, if there is one
"""

from __future__ import annotations

import math

import numpy as np

from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.circuits.conditions import CircuitConditions
from sae_bench.measure.properties.circuits.prompt_effects import FeatureComparison, PromptDesign
from sae_bench.measure.shared.factor_variance import omega_squared
from sae_bench.measure.shared.multiple_testing import holm


def circuit_series(
    found: CircuitConditions, design: PromptDesign, features: FeatureComparison, seed: int
) -> dict[str, Series]:
    """Tables and a histogram of one measurement."""
    series = {"differences": _differences(found), "levels": _levels(found, design, seed)}
    if found.features:
        series["features"] = _features(found, features)
    return series


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _differences(found: CircuitConditions) -> Series:
    edges = np.histogram_bin_edges(np.concatenate(list(found.conditions.values())), bins=30)
    counts = {condition: np.histogram(values, edges)[0].tolist() for condition, values in found.conditions.items()}
    return Series(
        "histogram",
        {"edges": [_rounded(edge) for edge in edges], **counts},
        title="Logit differences over prompts, right answer minus wrong one",
        x="nats",
    )


def _levels(found: CircuitConditions, design: PromptDesign, seed: int) -> Series:
    clean, ours = found.conditions["clean"], found.conditions["sae"]
    lost = clean - ours
    p = holm([float(design.p(lost[None], name, seed)[0]) for name in found.factors])
    titles = ("factor", "level", "prompts", "clean", "sae", "lost", "preferred", "omega_squared", "p_holm")
    columns: dict[str, list[object]] = {title: [] for title in titles}
    for (name, level), corrected in zip(found.factors.items(), p, strict=True):
        share = _rounded(float(omega_squared(lost[None], [level])[0, 0]))
        for index, text in enumerate(found.names[name]):
            these = level == index
            means = (_rounded(float(values[these].mean())) for values in (clean, ours, lost, ours > 0))
            for title, cell in zip(titles, (name, text, int(these.sum()), *means, share, corrected), strict=True):
                columns[title].append(cell)
    return Series("table", columns, title="Orders and templates, and what of the circuit is lost in each")


def _features(found: CircuitConditions, features: FeatureComparison) -> Series:
    orders = found.names["order"]
    columns: dict[str, list[object]] = {
        "feature": list(found.features),
        "fires_in": [_rounded(share) for share in found.fires],
        "effect": [_rounded(mean) for mean in found.effects.mean(1)],
        "sd": [_rounded(spread) for spread in found.effects.std(1, ddof=1)],
        "random": [_rounded(mean) for mean in found.random.mean(1)],
        **{f"effect_{order}": [_rounded(mean) for mean in features.means[:, at]] for at, order in enumerate(orders)},
    }
    signed = found.effects * found.signs[:, None] > 0
    for at, order in enumerate(orders):
        columns[f"sign_{order}"] = [_rounded(share) for share in signed[:, found.factors["order"] == at].mean(1)]
    for name in found.factors:
        columns[f"omega_squared_{name}"] = [_rounded(share) for share in features.explained[name]]
        columns[f"p_holm_{name}"] = [_rounded(p) for p in features.p[name]]
    columns["only"] = ["" if only < 0 else orders[only] for only in features.only]
    return Series("table", columns, title="Features that matter most: what leaving each out costs, in nats")
