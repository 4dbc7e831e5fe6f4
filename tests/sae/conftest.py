"""SAEs made and saved by SAELens itself, tiny and random, with nothing left at a value that would hide a mistake."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

D_IN, D_SAE, K = 12, 40, 5


@pytest.fixture(scope="session")
def sae_lens() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", reason="sae-lens is not installed")


@pytest.fixture
def make(sae_lens: Any) -> Callable[..., Any]:
    """``make(class name, **config)``: an SAE of SAELens with random weights, biases and thresholds."""

    def build(name: str, seed: int = 0, d_in: int = D_IN, d_sae: int = D_SAE, **config: Any) -> Any:
        metadata = sae_lens.saes.sae.SAEMetadata(
            model_name="tiny",
            hook_name=config.pop("hook_name", "blocks.1.hook_resid_post"),
            prepend_bos=True,
            context_size=64,
            model_from_pretrained_kwargs={"center_writing_weights": False},
            neuronpedia_id="tiny/1-res",
            dataset_path="somewhere",
        )
        cfg_class = getattr(sae_lens, f"{name}Config")
        generator = torch.Generator().manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = getattr(sae_lens, name)(cfg_class(d_in=d_in, d_sae=d_sae, metadata=metadata, **config))
        with torch.no_grad():
            for weight_name, weight in sorted(sae.named_parameters()):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
                if weight_name == "threshold":
                    weight.abs_()
            # Decoder norms between a half and three, or folding them wrongly would not show.
            sae.W_dec.mul_(torch.linspace(0.5, 3, d_sae).unsqueeze(1) / sae.W_dec.norm(dim=1, keepdim=True))
            if hasattr(sae, "topk_threshold"):
                sae.topk_threshold.fill_(0.7)
        return sae

    return build


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 50, D_IN, generator=torch.Generator().manual_seed(7)) * 2


@pytest.fixture
def saved(make: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with a JumpReLU SAE saved by SAELens."""
    make("JumpReLUSAE").save_model(tmp_path / "jump")
    return tmp_path / "jump"


@pytest.fixture
def real_saes(real_assets: Path) -> Path:
    return real_assets / "saes"
