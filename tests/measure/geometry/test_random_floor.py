"""Random floors: against the closed form and the published table; kept on disk and never believed blindly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import betainc

from sae_bench.measure.geometry import RANKS, covariance_floor, isotropic_floor
from sae_bench.measure.geometry import random_floor as module

TABLE = {
    (768, 768): (0.1138, 0.0807, 0.0406),
    (3072, 768): (0.1274, 0.0984, 0.0667),
    (24576, 768): (0.1461, 0.1209, 0.0954),
    (49152, 768): (0.1516, 0.1277, 0.1036),
    (98304, 768): (0.1571, 0.1339, 0.1112),
    (4096, 512): (0.1590, 0.1246, 0.0871),
    (8192, 512): (0.1672, 0.1341, 0.0994),
    (131072, 512): (0.1948, 0.1666, 0.1396),
    (32768, 2048): (0.0912, 0.0760, 0.0606),
    (16384, 2304): (0.0827, 0.0676, 0.0522),
}


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_in_memory", {})


def expected(n: int, d: int, rank: int) -> float:
    """Mean k-th largest cosine with n - 1 evenly spread others.

    Of two such directions (1 + c) / 2 is Beta((d-1)/2, (d-1)/2), and the k-th largest of n - 1 independent ones has the
    quantile Beta(n - k, k); the mean is the integral of its distribution.
    """
    half = (d - 1) / 2

    def below(c: float) -> float:
        return float(betainc(n - rank, rank, betainc(half, half, (1 + c) / 2)))

    return float(1 - quad(below, -1, 1, limit=400, points=[0.0, 0.1, 0.2])[0])


@pytest.mark.parametrize(("n", "d"), TABLE)
def test_closed_form_reproduces_the_table(n: int, d: int) -> None:
    assert [expected(n, d, rank) for rank in RANKS] == pytest.approx(TABLE[n, d], abs=5e-4)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (768, 768), (1500, 96)])
def test_samples_agree_with_the_closed_form(n: int, d: int) -> None:
    floor = isotropic_floor(n, d)
    for rank in RANKS:
        values = floor.nth[rank]
        # Directions of one dictionary are each other's neighbours: twice the error of independent ones.
        error = 2 * values.std() / np.sqrt(len(values))
        assert floor.mean(rank) == pytest.approx(expected(n, d, rank), abs=4 * error), rank


def test_the_table_from_samples() -> None:
    floor = isotropic_floor(768, 768)
    assert [floor.mean(rank) for rank in RANKS] == pytest.approx(TABLE[768, 768], abs=5e-4)
    assert floor.composed_share == 0


def test_asking_some_is_as_good_as_asking_all(monkeypatch: pytest.MonkeyPatch) -> None:
    every = isotropic_floor(900, 48)
    module._in_memory.clear()
    monkeypatch.setattr(module, "QUERIES", 300)
    some = isotropic_floor(900, 48)
    assert len(some.nth[1]) == 300 * module.SEEDS
    for rank in RANKS:
        assert some.mean(rank) == pytest.approx(every.mean(rank), abs=4e-3)


def test_few_directions_have_few_ranks() -> None:
    floor = isotropic_floor(60, 10)
    assert set(floor.nth) == {1, 10}
    assert floor.mean(100) is None


def test_the_covariance_floor_lies_where_the_data_lie() -> None:
    identity = covariance_floor(400, torch.eye(40))
    flat = covariance_floor(400, torch.diag(torch.arange(1, 41).float() ** -0.5))
    isotropic = isotropic_floor(400, 40)
    for rank in RANKS:
        assert identity.mean(rank) == pytest.approx(isotropic.mean(rank), abs=8e-3)
        assert flat.mean(rank) > isotropic.mean(rank) + 0.05  # type: ignore[operator]


def test_the_covariance_is_matched() -> None:
    # With a spread of 100 to 1 nearly all directions lie along one axis, whichever it is: half of them one way.
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    floor = covariance_floor(120, turned @ torch.diag(torch.tensor([10.0, 0.1, 0.1])))
    assert float(np.median(floor.nth[10])) > 0.999
    assert float(np.median(floor.nth[100])) < -0.9


def test_a_global_seed_changes_nothing() -> None:
    torch.manual_seed(1)
    first = isotropic_floor(130, 12).nth[1]
    module._in_memory.clear()
    torch.manual_seed(2)
    assert np.array_equal(first, isotropic_floor(130, 12).nth[1])


class TestCache:
    @pytest.fixture(autouse=True)
    def worth(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_WORTH_STORING", 0)

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        computed: list[int] = []
        compute = module._floor

        def counting(n: int, draw: module.Callable[..., torch.Tensor]) -> module.RandomFloor:
            computed.append(n)
            return compute(n, draw)

        monkeypatch.setattr(module, "_floor", counting)
        return computed

    def test_memory_then_disk(self, counted: list[int], own_cache: Path) -> None:
        first = isotropic_floor(120, 8)
        assert isotropic_floor(120, 8) is first
        module._in_memory.clear()
        again = isotropic_floor(120, 8)
        assert counted == [120]
        assert all(np.array_equal(first.nth[rank], again.nth[rank]) for rank in RANKS)
        assert again.composed_share == first.composed_share
        assert [path.name for path in own_cache.iterdir()] == ["isotropic-120-8.safetensors"]
        isotropic_floor(121, 8)
        assert counted == [120, 121]

    @pytest.mark.parametrize("damage", ["empty", "cut", "bit", "text", "other", "folder"])
    def test_a_damaged_file_is_computed_again(self, damage: str, counted: list[int], tmp_path: Path) -> None:
        path = tmp_path / "isotropic-120-8.safetensors"
        right = isotropic_floor(120, 8, tmp_path)
        data = bytearray(path.read_bytes())
        if damage == "empty":
            path.write_bytes(b"")
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "bit":
            data[-5] ^= 1
            path.write_bytes(data)
        elif damage == "text":
            path.write_text("{}")
        elif damage == "other":
            isotropic_floor(130, 8, tmp_path)
            (tmp_path / "isotropic-130-8.safetensors").replace(path)
        else:
            path.unlink()
            path.mkdir()
        module._in_memory.clear()
        counted.clear()
        found = isotropic_floor(120, 8, tmp_path)
        assert counted == [120]
        assert np.array_equal(found.nth[1], right.nth[1])
        if damage != "folder":
            module._in_memory.clear()
            isotropic_floor(120, 8, tmp_path)
            assert counted == [120]

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        assert isotropic_floor(120, 8, blocked / "cache").nth


def test_cheap_floors_leave_no_files(own_cache: Path) -> None:
    isotropic_floor(120, 8)
    assert not own_cache.exists()
