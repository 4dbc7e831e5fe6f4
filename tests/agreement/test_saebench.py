"""SAEBench's core evaluation of the demo's SAEs, on the same tokens: its values where its formulas are right.

Its numbers are those of ``saebench.json``, which ``record_saebench.py`` writes in an environment with SAEBench in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_bench.demo.paths import CORPUS

from . import given

RIGHT = {
    "kl_div_with_sae": "kl_gap.kl_sae",
    "ce_loss_with_sae": "kl_gap.ce_sae",
    "ce_loss_without_sae": "kl_gap.ce_clean",
    "cossim": "reconstruction.cosine",
    "l2_norm_in": "reconstruction.activation_norm",
    "l2_ratio": "shrinkage.l2_ratio",
    "relative_reconstruction_bias": "shrinkage.gamma",
    "l0": "sparsity.l0",
    "l1": "sparsity.l1",
    "frac_alive": "sparsity.alive_share",
    "freq_over_10_percent": "sparsity.dense_share",
    "average_max_decoder_cosine_sim": "orthogonality.nn1_all",
}
"SAEBench's name to ours: its formula is right, as long as one batch holds all tokens and no probability is 0."
RIGHT_WITH_BOS = {
    "kl_div_with_ablation": "kl_gap.kl_zero_ablation",
    "ce_loss_with_ablation": "kl_gap.ce_zero_ablation",
    "ce_loss_score": "kl_gap.ce_recovered_zero",
}
"Right where the SAE stands at every position, as its ablation always does (pitfall 5)."


def test_the_recorded_values_are_of_this_demo(recorded: dict[str, Any]) -> None:
    demo = recorded["demo"]
    assert given.demo_sha256() == demo["sha256"], "the demo has changed: run tests/agreement/record_saebench.py"
    assert recorded["versions"]["sae-bench"] == "0.6.0"
    assert set(demo["saes"]) == set(given.SAES)
    assert (Path(CORPUS).parent, demo["site"]) == (given.DEMO, given.SITE)


@pytest.mark.parametrize("positions", ["every_position", "without_bos"])
@pytest.mark.parametrize("name", given.SAES)
def test_its_values_are_ours(
    recorded: dict[str, Any], ours: Callable[..., Callable[[str], float]], name: str, positions: str
) -> None:
    everywhere = positions == "every_position"
    theirs, mine = recorded["demo"]["saes"][name][positions], ours(name, everywhere)
    for key, metric in {**RIGHT, **(RIGHT_WITH_BOS if everywhere else {})}.items():
        assert mine(metric) == pytest.approx(theirs[key], rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", given.SAES)
def test_its_values_that_are_wrong(
    recorded: dict[str, Any], ours: Callable[..., Callable[[str], float]], name: str
) -> None:
    """Both numbers of every SAE; why ours is right is in ``test_pitfalls.py``."""
    demo = recorded["demo"]
    theirs, mine = demo["saes"][name]["every_position"], ours(name, True)
    explained = mine("reconstruction.explained_variance")
    assert theirs["explained_variance"] - explained > 0.02
    assert explained - theirs["explained_variance_legacy"] > 0.001
    tokens = demo["documents"] * demo["positions"]
    assert theirs["mse"] * tokens == pytest.approx(mine("reconstruction.mse"), rel=1e-4)
