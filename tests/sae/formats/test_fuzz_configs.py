"""Whatever a config says: the SAE is read or refused, never a traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_bench.errors import LoadError
from sae_bench.sae import SAEInfo, check_outputs
from sae_bench.sae.formats import read_sae

D, F = 4, 6
METADATA = {
    "model_name": "m", "hook_name": "blocks.1.hook_resid_pre", "hook_name_out": None, "hook_head_index": None,
    "prepend_bos": True, "context_size": 8, "model_from_pretrained_kwargs": {}, "neuronpedia_id": None, "l0": 3.0,
    "training_architecture": "batchtopk", "sae_lens_version": "6.5.0",
}  # fmt: skip
SAE_LENS = {
    "architecture": "jumprelu", "d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True,
    "normalize_activations": "none", "reshape_activations": "none", "activation_fn": "relu", "k": 2,
    "activation_fn_kwargs": {}, "rescale_acts_by_decoder_norm": True, "d_out": None, "metadata": METADATA,
    "finetuning_scaling_factor": False, "activation_normalization_factor": None,
}  # fmt: skip
SPARSIFY = {
    "activation": "topk", "expansion_factor": 1, "num_latents": F, "k": 2, "transcode": False, "d_in": D,
    "skip_connection": False, "signed": False,
}  # fmt: skip
LEARNING = {
    "trainer": {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "k": 2, "lm_name": "m", "layer": 1,
                "submodule_name": "resid_post_layer_1"},
    "buffer": {"ctx_len": 8, "io": "out"},
}  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(
        ["topk", "standard", "gated", "layer_norm", "expected_average_only_in", "transcoder", 0, 1, D, F]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["k", "d_in", "x"]), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    vector, matrix = torch.full((F,), 0.5), torch.ones(D, F)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("sae_lens", "sparsify", "dictionary_learning")}
    weights = {"W_enc": matrix, "W_dec": matrix.T.contiguous(), "b_dec": torch.ones(D)}
    save_file(weights | {"b_enc": vector, "threshold": vector.clone()}, folders["sae_lens"] / "sae_weights.safetensors")
    linear = {"encoder.weight": matrix.T.contiguous(), "encoder.bias": vector, "b_dec": torch.ones(D)}
    save_file(linear | {"W_dec": matrix.T.contiguous()}, folders["sparsify"] / "sae.safetensors")
    learned = linear | {"decoder.weight": matrix, "threshold": torch.tensor(0.5), "k": torch.tensor(2)}
    torch.save(learned, folders["dictionary_learning"] / "ae.pt")
    return folders


def leaves(config: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in config.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *rest) for rest in leaves(value)]
    return found


def check_info(info: SAEInfo) -> None:
    for text in (info.site_in, info.site_out, info.model, info.neuronpedia, info.dtype):
        assert isinstance(text, str | None)
    assert isinstance(info.context_size, int | None)
    assert isinstance(info.prepend_bos, bool | None)
    assert isinstance(info.l0, float | None)
    assert isinstance(info.model_kwargs, dict)
    assert (info.d_in, info.d_sae) == (D, F)


@pytest.mark.parametrize(
    ("name", "file", "config"),
    [
        ("sae_lens", "cfg.json", SAE_LENS),
        ("sparsify", "cfg.json", SPARSIFY),
        ("dictionary_learning", "config.json", LEARNING),
    ],
    ids=lambda each: each if each in ("sae_lens", "sparsify", "dictionary_learning") else "",
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key(
    folders: dict[str, Path], name: str, file: str, config: dict[str, Any], data: st.DataObject
) -> None:
    changed = json.loads(json.dumps(config))
    for path in data.draw(st.lists(st.sampled_from(leaves(config)), min_size=1, max_size=3)):
        holder: Any = changed
        for key in path[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder[path[-1]] = data.draw(values)
    (folders[name] / file).write_text(json.dumps(changed))
    with contextlib.suppress(LoadError):
        sae = read_sae(str(folders[name]))
        check_outputs(sae)
        check_info(sae.info)
