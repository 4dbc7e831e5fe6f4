"""Every floor has the error's own size, whatever the vectors; its random numbers belong to the document alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.engine.noise_floors import EXTENSIONS, isotropic, noise_floors, register_noise_floor
from sae_bench.engine.noise_pool import NoisePool, SeededDraws
from sae_bench.errors import MeasurementError, UsageError
from sae_bench.measure.properties import load_property
from sae_bench.registry.registry import Registry

WIDTH = 8
NOISE = {floor.name: floor.replacement for floor in noise_floors() if floor.draws}
DETERMINISTIC = {floor.name: floor.replacement for floor in noise_floors() if not floor.draws}
MOVED = [name for name in NOISE if not name.startswith("theta")]


def pool_of(rows: torch.Tensor, errors: torch.Tensor | None = None) -> NoisePool:
    wide = rows.double()
    centred = wide - wide.mean(0)
    return NoisePool(
        mean=wide.mean(0),
        covariance=centred.T @ centred / len(rows),
        rows=rows,
        kept_positions=torch.arange(len(rows)),
        errors=lambda: rows.flip(0) * 0.1 if errors is None else errors,
    )


def vectors(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pool() -> NoisePool:
    return pool_of(vectors(0, 50) + 3)


def norm(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor.double(), dim=-1)


def cosine(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.double() * right.double()).sum(-1) / (norm(left) * norm(right))


lengths = st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple)
scales = st.sampled_from([1e-3, 0.1, 1.0, 30.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), lengths, scales, scales, st.sampled_from(MOVED))
def test_noise_has_the_errors_own_norm(
    pool: NoisePool, seed: int, ends: tuple[int, ...], size: float, error_size: float, name: str
) -> None:
    x = vectors(seed, len(ends), max(ends), scale=size)
    error = vectors(seed + 1, len(ends), max(ends), scale=error_size)
    draw = SeededDraws(seed, tuple(range(len(ends))), ends, name, 0)
    moved = NOISE[name](x, error, pool, draw)
    inside = draw.inside
    off = (norm(moved - x) - norm(error)).abs()[inside]
    rounding = 1e-6 * (norm(x) + norm(error))[inside]
    assert bool((off <= rounding).all())
    assert bool(torch.isfinite(moved[inside]).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), scales, scales)
def test_theta_arms_keep_the_cosine_and_their_norm(pool: NoisePool, seed: int, size: float, error_size: float) -> None:
    x, error = vectors(seed, 2, 5, scale=size), vectors(seed + 1, 2, 5, scale=error_size)
    xhat = x + error
    for name, wanted in (("theta_sae_norm", norm(xhat)), ("theta_true_norm", norm(x))):
        turned = NOISE[name](x, error, pool, SeededDraws(seed, (0, 1), (5, 5), name, 0))
        torch.testing.assert_close(norm(turned), wanted, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(cosine(turned, x), cosine(xhat, x), rtol=0.0, atol=2e-6)
        assert bool((norm(turned - x) > 0).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), scales)
def test_arms_without_noise_follow_their_formulas(pool: NoisePool, seed: int, size: float) -> None:
    x, error = vectors(seed, 2, 4), vectors(seed + 1, 2, 4, scale=size)
    xhat, draw = x + error, SeededDraws(0, (0, 1), (4, 4), "", 0)
    conditions = {name: condition(x, error, pool, draw) for name, condition in DETERMINISTIC.items()}
    torch.testing.assert_close(norm(conditions["norm_corrected"]), norm(x), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(cosine(conditions["norm_corrected"], xhat), torch.ones(2, 4).double())
    torch.testing.assert_close(norm(conditions["sae_norm"]), norm(xhat), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(cosine(conditions["sae_norm"], x), torch.ones(2, 4).double())
    assert torch.equal(conditions["reflected_error"], x - error)
    assert torch.equal(conditions["mean_ablation"], pool.mean.float().expand_as(x))
    assert not conditions["zero_ablation"].any()


@pytest.mark.parametrize("name", [*NOISE, "norm_corrected", "sae_norm", "reflected_error"])
def test_without_an_error_nothing_moves(pool: NoisePool, name: str) -> None:
    x = vectors(5, 2, 4)
    x[0, 0] = 0
    condition = (NOISE | DETERMINISTIC)[name]
    moved = condition(x, torch.zeros_like(x), pool, SeededDraws(0, (0, 1), (4, 4), name, 0))
    assert torch.equal(moved, x)


@pytest.mark.parametrize("name", [*NOISE, *DETERMINISTIC])
def test_vectors_of_length_zero_give_no_nan(pool: NoisePool, name: str) -> None:
    x, error = vectors(5, 1, 4), vectors(6, 1, 4)
    x[0, 0] = 0
    error[0, 1] = -x[0, 1]
    error[0, 2] = 0
    moved = (NOISE | DETERMINISTIC)[name](x, error, pool, SeededDraws(0, (0,), (4,), name, 0))
    assert bool(torch.isfinite(moved).all())


@pytest.mark.parametrize("name", list(NOISE))
def test_draws_belong_to_the_document(pool: NoisePool, name: str) -> None:
    x, error = vectors(1, 3, 6), vectors(2, 3, 6)
    together = NOISE[name](x, error, pool, SeededDraws(9, (4, 7, 2), (3, 6, 5), name, 1))
    backwards = NOISE[name](x.flip(0), error.flip(0), pool, SeededDraws(9, (2, 7, 4), (5, 6, 3), name, 1))
    for row, (document, length) in enumerate([(4, 3), (7, 6), (2, 5)]):
        part = slice(row, row + 1)
        draw = SeededDraws(9, (document,), (length,), name, 1)
        alone = NOISE[name](x[part, :length], error[part, :length], pool, draw)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(backwards[2 - row, :length], alone[0], rtol=1e-6, atol=1e-6)
    for other in (
        SeededDraws(8, (4, 7, 2), (3, 6, 5), name, 1),
        SeededDraws(9, (4, 7, 2), (3, 6, 5), name, 2),
        SeededDraws(9, (5, 8, 3), (3, 6, 5), name, 1),
        SeededDraws(9, (4, 7, 2), (3, 6, 5), name + "x", 1),
    ):
        assert not torch.allclose(NOISE[name](x, error, pool, other), together)


def test_isotropic_noise_has_no_direction(pool: NoisePool) -> None:
    x, error = torch.zeros(1, 4000, WIDTH), torch.ones(1, 4000, WIDTH)
    moved = NOISE["isotropic"](x, error, pool, SeededDraws(0, (0,), (4000,), "", 0))[0]
    second = moved.T @ moved / len(moved)
    assert (second - torch.eye(WIDTH)).abs().max() < 0.1
    assert moved.mean(0).abs().max() < 0.06


@pytest.mark.parametrize("name", ["covariance", "real_difference"])
def test_directions_follow_the_sites_covariance(name: str) -> None:
    spread = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    rows = vectors(0, 4000) * spread + 100
    x, error = torch.zeros(1, 4000, WIDTH), torch.ones(1, 4000, WIDTH)
    moved = NOISE[name](x, error, pool_of(rows), SeededDraws(0, (0,), (4000,), "", 0))[0]
    raw = vectors(3, 200_000) * spread
    unit = raw / raw.norm(dim=-1, keepdim=True)
    expected = WIDTH * unit.square().mean(0)
    assert (moved.square().mean(0) - expected).abs().max() < 0.15
    assert moved[:, 4:].abs().max() < 1e-2, "noise outside the space of the activations"
    assert moved.mean(0).abs().max() < 0.15, "the mean of the activations has no say in differences"


def test_equal_prefixes_are_drawn_again() -> None:
    rows = vectors(0, 40)
    rows[:30] = rows[0]
    x, error = vectors(1, 4, 20), vectors(2, 4, 20)
    moved = NOISE["real_difference"](x, error, pool_of(rows), SeededDraws(0, (0, 1, 2, 3), (20,) * 4, "", 0))
    torch.testing.assert_close(norm(moved - x), norm(error), rtol=1e-5, atol=0.0)
    errors = torch.zeros(40, WIDTH)
    errors[0] = 1
    moved = NOISE["shuffled_error"](x, error, pool_of(rows, errors), SeededDraws(0, (0, 1, 2, 3), (20,) * 4, "", 0))
    torch.testing.assert_close(norm(moved - x), norm(error), rtol=1e-5, atol=0.0)


def test_a_pool_without_variety_is_an_error() -> None:
    same = pool_of(torch.ones(20, WIDTH), torch.zeros(20, WIDTH))
    x, error = vectors(1, 1, 4), vectors(2, 1, 4)
    for name, sentence in (
        ("covariance", "do not vary over the corpus"),
        ("real_difference", "hardly any activations that differ"),
        ("shuffled_error", "no error of the corpus differs from zero"),
    ):
        with pytest.raises(MeasurementError, match=sentence):
            NOISE[name](x, error, same, SeededDraws(0, (0,), (4,), name, 0))


@pytest.fixture
def no_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    """No registrations of other tests."""
    monkeypatch.setattr(EXTENSIONS, "registered", Registry("noise floor"))


@pytest.mark.usefixtures("no_floors")
def test_a_registered_floor_is_declared_and_listed_last() -> None:
    built_in = noise_floors()

    @register_noise_floor(draws=False, ratio=True, ablation=True, meaning="one", version=3)
    def ones(x: torch.Tensor, error: torch.Tensor, pool: NoisePool, draw: SeededDraws) -> torch.Tensor:
        return torch.ones_like(x)

    assert noise_floors()[:-1] == built_in
    declared = {metric.name: metric for metric in load_property("kl_gap").metrics}
    assert {name for name in declared if name.endswith("_ones")} == {"kl_ones", "kappa_ones", "ratio_ones", "ce_ones"}
    assert declared["kl_ones"].version == 3
    assert declared["kl_ones"].noise_free
    EXTENSIONS.registered.clear()
    assert "kl_ones" not in {metric.name for metric in load_property("kl_gap").metrics}


@pytest.mark.usefixtures("no_floors")
@pytest.mark.parametrize("name", ["isotropic", "mine"])
def test_a_taken_name_is_a_usage_error(name: str) -> None:
    def floor(x: torch.Tensor, error: torch.Tensor, pool: NoisePool, draw: SeededDraws) -> torch.Tensor:
        return x

    floor.__name__ = "mine"
    register = register_noise_floor(draws=False, meaning="x")
    register(floor)
    floor.__name__ = name
    with pytest.raises(UsageError, match=f"noise floor '{name}' .*give (it|one of them) another name"):
        register(floor)


@pytest.mark.usefixtures("no_floors")
@pytest.mark.parametrize("name", ["level", "sae", "error_top", "linear_removed"])
def test_a_name_of_another_quantity_of_kl_gap_is_a_usage_error(name: str) -> None:
    def floor(x: torch.Tensor, error: torch.Tensor, pool: NoisePool, draw: SeededDraws) -> torch.Tensor:
        return x

    floor.__name__ = name
    register_noise_floor(draws=False, meaning="x")(floor)
    with pytest.raises(UsageError, match=f"noise floor '{name}' has the name of another quantity of kl_gap"):
        load_property("kl_gap")


@pytest.mark.usefixtures("no_floors")
def test_an_ablation_cannot_draw() -> None:
    with pytest.raises(UsageError, match="is an ablation, which all SAEs of a site share, and cannot draw"):
        register_noise_floor(draws=True, ablation=True, meaning="x")(isotropic)
    with pytest.raises(UsageError, match="noise floor 'x' is a int, not a function of that name under @register_noise"):
        EXTENSIONS.register("x", 1)  # type: ignore[arg-type]


def test_declaring_floors_imports_no_torch() -> None:
    code = (
        "import sys; from sae_bench import register_noise_floor\n"
        "register_noise_floor(draws=True, meaning='x')(lambda x, error, pool, draw: x)\n"
        "from sae_bench.measure.properties import load_property\n"
        "assert len(load_property('kl_gap').metrics) > 40 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
