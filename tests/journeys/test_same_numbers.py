"""Values and intervals of real runs are what they were when they were recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys import same_numbers


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(same_numbers.RECORDED.read_text())
    return tree


@pytest.fixture(scope="module")
def check(recorded: dict[str, Any]) -> Callable[[dict[str, same_numbers.Metrics]], None]:
    exact = recorded["machine"] == same_numbers.machine()

    def check_all(measured: dict[str, same_numbers.Metrics]) -> None:
        lines = {
            sae: same_numbers.differences(recorded["saes"][sae], metrics, exact) for sae, metrics in measured.items()
        }
        wrong = [f"{sae} {line}" for sae, each in lines.items() for line in each]
        assert not wrong, (
            f"{len(wrong)} numbers moved. If that was meant, raise the versions of these metrics, then run "
            "python -m tests.journeys.same_numbers --record STORIES260K\n" + "\n".join(wrong[:40])
        )

    return check_all


def test_demo_topk_is_as_recorded(check: Callable[..., None]) -> None:
    check(same_numbers.measure_demo("--sae", "demo/topk"))


@pytest.mark.heavy
def test_other_demo_saes_are_as_recorded(check: Callable[..., None]) -> None:
    measured = same_numbers.measure_demo("-n", "2")
    assert set(measured) == {f"demo/{name}" for name in same_numbers.SAES}
    check(measured)


@pytest.mark.heavy
def test_saes_of_a_real_model_are_as_recorded(check: Callable[..., None], real_assets: Path) -> None:
    measured = same_numbers.measure_stories(real_assets, "-n", "2")
    assert set(measured) == {f"stories/{name}" for name in same_numbers.STORIES}
    check(measured)


def test_a_moved_number_is_seen(recorded: dict[str, Any]) -> None:
    metrics = recorded["saes"]["demo/topk"]
    moved = {**metrics, "kl_gap.kl_sae": [metrics["kl_gap.kl_sae"][0] * (1 + 1e-12), *metrics["kl_gap.kl_sae"][1:]]}
    assert len(same_numbers.differences(metrics, moved, exact=True)) == 1
    assert not same_numbers.differences(metrics, moved, exact=False)
    lost = {name: numbers for name, numbers in metrics.items() if name != "kl_gap.kl_sae"}
    assert same_numbers.differences(metrics, lost, exact=False) == ["kl_gap.kl_sae: was recorded, is not measured"]
