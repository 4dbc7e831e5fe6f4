"""Tables and histogram of `circuits`.

differences   histogram of logit differences over prompts, by condition
levels        table: per factor and level the prompts, their mean logit differences, the difference lost, and prompts
              whose right answer is still preferred; omega squared of the factor in the difference lost, and its p
features      table: each chosen feature's mean effect and spread, in every order its mean and the share of prompts
              where it has its sign, omega squared and p of both factors, a random direction's mean effect, and the
              only order for which the feature matters, if there is one
"""

from __future__ import annotations

import numpy as np

from sae_bench.measure.measurement import Series
from sae_bench.measure.properties.circuits.conditions import CircuitConditions
from sae_bench.measure.properties.circuits.prompt_effects import FeatureComparison, PromptDesign
from sae_bench.measure.shared.factor_variance import omega_squared
from sae_bench.measure.shared.multiple_testing import holm
from sae_bench.measure.tables import rounded_cell, table_of_rows


def circuit_series(
    result: CircuitConditions, design: PromptDesign, features: FeatureComparison, seed: int
) -> dict[str, Series]:
    """Return the tables and the histogram of one measurement."""
    series = {"differences": _difference_histogram(result), "levels": _level_table(result, design, seed)}
    if result.features:
        series["features"] = _feature_table(result, features)
    return series


def _difference_histogram(result: CircuitConditions) -> Series:
    edges = np.histogram_bin_edges(np.concatenate(list(result.conditions.values())), bins=30)
    counts = {condition: np.histogram(values, edges)[0].tolist() for condition, values in result.conditions.items()}
    return Series(
        "histogram",
        {"edges": [rounded_cell(edge) for edge in edges], **counts},
        title="Logit differences over prompts, right answer minus wrong one",
        x="nats",
    )


def _level_table(result: CircuitConditions, design: PromptDesign, seed: int) -> Series:
    clean, reconstruction = result.conditions["clean"], result.conditions["sae"]
    lost = clean - reconstruction
    p = holm([float(design.permutation_p(lost[None], name, seed)[0]) for name in result.factors])
    values = {"clean": clean, "sae": reconstruction, "lost": lost, "preferred": reconstruction > 0}
    rows: list[dict[str, object]] = []
    for (name, level), corrected_p in zip(result.factors.items(), p, strict=True):
        share = rounded_cell(float(omega_squared(lost[None], [level])[0, 0]))
        for index, text in enumerate(result.names[name]):
            prompts = level == index
            means = {column: rounded_cell(float(of_prompts[prompts].mean())) for column, of_prompts in values.items()}
            cells = {"factor": name, "level": text, "prompts": int(prompts.sum())}
            rows.append({**cells, **means, "omega_squared": share, "p_holm": corrected_p})
    return table_of_rows(rows, "Logit difference lost in the reconstruction, by order and by template")


def _feature_table(result: CircuitConditions, features: FeatureComparison) -> Series:
    orders = result.names["order"]
    columns: dict[str, list[object]] = {
        "feature": list(result.features),
        "fires_in": [rounded_cell(share) for share in result.fires],
        "effect": [rounded_cell(mean) for mean in result.effects.mean(1)],
        "sd": [rounded_cell(spread) for spread in result.effects.std(1, ddof=1)],
        "random": [rounded_cell(mean) for mean in result.random.mean(1)],
        **{
            f"effect_{order}": [rounded_cell(mean) for mean in features.means[:, at]] for at, order in enumerate(orders)
        },
    }
    signed = result.effects * result.signs[:, None] > 0
    for at, order in enumerate(orders):
        columns[f"sign_{order}"] = [rounded_cell(share) for share in signed[:, result.factors["order"] == at].mean(1)]
    for name in result.factors:
        columns[f"omega_squared_{name}"] = [rounded_cell(share) for share in features.explained[name]]
        columns[f"p_holm_{name}"] = [rounded_cell(p) for p in features.p[name]]
    columns["only"] = ["" if only < 0 else orders[only] for only in features.only]
    return Series(
        "table", columns, title="Features with the largest effects: logit difference lost without each, in nats"
    )
