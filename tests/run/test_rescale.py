"""Scales folded into a decoder: what was planted is mended, the file loads, and nothing else has changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sae_bench.engine.bench import Bench
from sae_bench.errors import UsageError
from sae_bench.registry.spec import SAESpec
from sae_bench.run import rescale as rescaling
from sae_bench.run.rescale import rescale, rescale_bench, rescale_target
from sae_bench.sae import LinearDecoderSAE, controls, wrap
from sae_bench.sae.formats import read_sae

Make = Callable[..., Bench]


@pytest.fixture
def sound(activations: Tensor) -> LinearDecoderSAE:
    return controls.pca(activations[:, 1:].reshape(-1, 16), 12)


@pytest.fixture
def shrunk(sound: LinearDecoderSAE) -> LinearDecoderSAE:
    """Every feature writes between half and all of what it should."""
    return controls.scale_features(sound, 1 / (1 + torch.rand(24, generator=torch.Generator().manual_seed(2))))


def test_a_shrunk_sae_is_mended(
    make_bench: Make, activations: Tensor, shrunk: LinearDecoderSAE, tmp_path: Path
) -> None:
    mended = rescale_bench(make_bench(activations, shrunk), tmp_path / "mended")
    before, after = ({k: v.value for k, v in each.estimates.items()} for each in (mended.before, mended.after))
    assert before["gamma_centred"] < 0.8
    assert after["gamma_centred"] == pytest.approx(1, abs=0.02)
    for loss in ("mse", "kl"):
        assert after[f"{loss}_heldout"] < before[f"{loss}_heldout"]
        assert after[f"{loss}_heldout"] == pytest.approx(before[f"{loss}_per_feature"], rel=1e-4)
    assert mended.better
    assert any("gamma_centred: 0." in line for line in mended.lines)
    assert not any("no reason" in line for line in mended.lines)


def test_only_the_decoder_changes(shrunk: LinearDecoderSAE) -> None:
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(0.5, 2, 24)
    mended = rescale(shrunk, scales)
    codes = shrunk.encode(x)
    assert torch.equal(mended.encode(x), codes)
    torch.testing.assert_close(mended.decode(codes), shrunk.decode(codes * scales))
    assert torch.equal(rescale(shrunk, torch.ones(24)).W_dec, shrunk.W_dec)
    assert shrunk.W_dec.norm(dim=1).max() < 1.01, "the given SAE is left as it is"


def test_the_file_gives_the_same_reconstruction_in_sae_lens(
    make_bench: Make, activations: Tensor, shrunk: LinearDecoderSAE, tmp_path: Path
) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    rescale_bench(make_bench(activations, shrunk), tmp_path / "mended")
    ours, theirs = read_sae(str(tmp_path / "mended")), sae_lens.SAE.load_from_disk(str(tmp_path / "mended"))
    x = activations[1, 1:]
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(theirs.encode(x)), ours.decode(ours.encode(x)))


def test_a_sound_sae_is_told_to_stay(
    make_bench: Make, activations: Tensor, sound: LinearDecoderSAE, tmp_path: Path
) -> None:
    mended = rescale_bench(make_bench(activations, sound), tmp_path / "mended")
    assert mended.after.estimates["gamma_centred"].value == pytest.approx(1, abs=0.02)
    worse = mended.after.estimates["kl_heldout"].value >= mended.before.estimates["kl_heldout"].value
    assert mended.better is not worse
    assert any("no reason" in line for line in mended.lines) is worse


def test_a_target_goes_through_the_loader(
    make_bench: Make, activations: Tensor, shrunk: LinearDecoderSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(activations, shrunk)
    asked = []

    def loader(settings: object, progress: object) -> SimpleNamespace:
        return SimpleNamespace(bench=lambda spec: asked.append(spec.id) or bench)

    monkeypatch.setattr(rescaling, "Loader", loader)
    assert rescale_target(SAESpec("shrunk", path="./shrunk"), tmp_path / "mended").better
    assert asked == ["shrunk"]


def test_a_folder_in_use_is_left_alone(
    make_bench: Make, activations: Tensor, shrunk: LinearDecoderSAE, tmp_path: Path
) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(UsageError, match=r"exists already; name a folder that does not"):
        rescale_bench(make_bench(activations, shrunk), tmp_path)
    assert (tmp_path / "cfg.json").read_text() == "{}"


def test_what_cannot_be_rescaled_says_why(shrunk: LinearDecoderSAE) -> None:
    class Object:
        d_in = 4

        def encode(self, x: Tensor) -> Tensor:
            return x

        def decode(self, codes: Tensor) -> Tensor:
            return codes

    with pytest.raises(UsageError, match="gives no access to its decoder"):
        rescale(wrap(Object()), torch.ones(4))
    with pytest.raises(UsageError, match=r"shape \(3,\) do not fit an SAE of 24 features"):
        rescale(shrunk, torch.ones(3))
    with pytest.raises(UsageError, match="NaN or infinite"):
        rescale(shrunk, torch.full((24,), math.nan))
