"""Every architecture that SAELens has, with every normalisation that it offers, saved by it and read by us."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_bench.errors import LoadError
from sae_bench.sae.formats import read_sae

D, FACTOR = 12, 0.37
K = {"k": 5}
BETWEEN = {"d_out": D, "apply_b_dec_to_input": False}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardSAE", {}),
    "gated": ("GatedSAE", {}),
    "topk": ("TopKSAE", K),
    "abstopk": ("AbsTopKSAE", K),
    "jumprelu": ("JumpReLUSAE", {}),
    "transcoder": ("Transcoder", BETWEEN),
    "skip_transcoder": ("SkipTranscoder", BETWEEN),
    "jumprelu_transcoder": ("JumpReLUTranscoder", BETWEEN),
    "jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", BETWEEN),
    "matching_pursuit": ("MatchingPursuitSAE", {}),
}
REFUSED = {"temporal"}
"Its codes depend on the tokens before: ``test_a_temporal_object_is_refused_not_wrapped``."
NORMS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")


def test_these_are_all_of_them(sae_lens: Any) -> None:
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from sae_lens.saes.sae import SAEConfig

    assert set(SAE_CLASS_REGISTRY) - REFUSED == set(ARCHITECTURES)
    offered = get_args(get_type_hints(SAEConfig)["normalize_activations"])
    # The one more is what older configs have, and SAELens still applies.
    assert {*offered, "constant_norm_rescale"} == set(NORMS)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_reconstructions(
    make: Callable[..., Any], x: Tensor, tmp_path: Path, architecture: str, norm: str
) -> None:
    name, config = ARCHITECTURES[architecture]
    theirs = make(name, normalize_activations=norm, **config)
    if architecture == "matching_pursuit":
        with torch.no_grad():
            theirs.W_dec.div_(theirs.W_dec.norm(dim=1, keepdim=True))
    theirs.save_model(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store(tmp_path, norm)
        if (architecture, norm) == ("matching_pursuit", "covariance_whitening"):
            with pytest.raises(NotImplementedError):
                fold(theirs, norm)
            with pytest.raises(LoadError, match="which is not defined for matching_pursuit"):
                read_sae(str(tmp_path))
            return
        fold(theirs, norm)
    tokens = x.clone()
    tokens[:, 0] *= 300  # as large as a BOS token's
    ours = read_sae(str(tmp_path))
    with torch.no_grad():
        codes, xhat = theirs.encode(tokens), theirs(tokens)
    assert 0 < float((codes != 0).double().mean()) < 0.8
    mine = ours.encode(tokens)
    for found, due in ((mine, codes), (ours.decode(mine, like=tokens), xhat)):
        scale = due.abs().amax(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(found / scale, due / scale, rtol=0, atol=1e-5)


def whitening() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(D, D, generator=generator) / 4 + torch.eye(D)
    inverse = torch.linalg.inv(matrix.double()).float().contiguous()
    return {"mean": torch.randn(D, generator=generator), "matrix": matrix, "inverse_matrix": inverse}


def store(folder: Path, norm: str) -> None:
    """What training leaves beside a checkpoint."""
    if norm == "expected_average_only_in":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": FACTOR}))
    if norm == "covariance_whitening":
        save_file(whitening(), folder / "activation_whitening.safetensors")


def fold(theirs: Any, norm: str) -> None:
    """The same done by SAELens, whose SAEs do not apply it by themselves."""
    if norm == "expected_average_only_in":
        theirs.fold_activation_norm_scaling_factor(FACTOR)
    if norm == "covariance_whitening":
        theirs.fold_activation_whitening(*whitening().values())
