"""Mutated configs and weight files of every family: each is read as an SAE that passes its checks, or one clear error.

Nothing in a file is ever run, and a small file never takes much memory.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_bench.errors import LoadError, UsageError
from sae_bench.sae import check_outputs
from sae_bench.sae.formats import read_sae

CASES = 5000
D, F, K = 6, 10, 3
MOST_MEMORY = 512 * 2**20
"Bytes that the process may grow by, whatever the files claim."
LONGEST = 1200
"Characters of an error; a listing or a dump is no sentence."
MARKER = "this-file-is-made-by-code-that-was-run"


class Evil:
    """Makes a file when it is unpickled by somebody who lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def canonical(**more: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), **more}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}


def linear(*more: str) -> dict[str, Tensor]:
    w = canonical()
    named = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T, "encoder.bias": w["b_enc"]}
    return {name: tensor.contiguous() for name, tensor in named.items()} | dict.fromkeys(more, w["b_dec"])


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _sae_lens(folder: Path) -> Path:
    save_file(canonical(threshold=(F,)), folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.full((F,), -1.0)}, folder / "sparsity.safetensors")
    metadata = {"model_name": "m", "hook_name": "blocks.1.hook_resid_pre", "prepend_bos": True, "context_size": 8}
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": F, "apply_b_dec_to_input": True, "metadata": metadata}
    _json(folder / "cfg.json", {**config, "normalize_activations": "none", "k": K, "dtype": "float32"})
    return folder


def _transcoder(folder: Path) -> Path:
    save_file(canonical(W_skip=(D, D)), folder / "sae_weights.safetensors")
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    config = {"architecture": "skip_transcoder", "d_in": D, "d_out": D, "d_sae": F, "metadata": metadata}
    _json(folder / "cfg.json", {**config, "normalize_activations": "layer_norm", "apply_b_dec_to_input": False})
    return folder


def _sparsify(folder: Path) -> Path:
    w = canonical()
    named = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"]}
    save_file({**named, "b_dec": w["b_dec"]}, folder / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 1, "num_latents": F, "k": K, "d_in": D, "transcode": False}
    _json(folder / "cfg.json", {**config, "skip_connection": False})
    return folder


def _learning(folder: Path) -> Path:
    torch.save({**linear("b_dec"), "threshold": torch.tensor(0.5), "k": torch.tensor(K)}, folder / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": F, "k": K, "lm_name": "m"}
    buffer = {"ctx_len": 8, "io": "out"}
    _json(folder / "config.json", {"trainer": {**trainer, "submodule_name": "layers.1"}, "buffer": buffer})
    return folder


def _gemma(folder: Path) -> Path:
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in canonical(threshold=(F,)).items()})
    return folder


def _gemma_2(folder: Path) -> Path:
    w = {name.lower(): tensor for name, tensor in canonical(threshold=(F,), affine_skip_connection=(D, D)).items()}
    save_file(w, folder / "params.safetensors")
    hooks = {"hf_hook_point_in": "model.layers.1.output", "hf_hook_point_out": "model.layers.2.output"}
    _json(folder / "config.json", {"architecture": "jump_relu", "model_name": "m", "l0": 5, **hooks})
    return folder


def _openai(folder: Path) -> Path:
    w: dict[str, Any] = {**linear("pre_bias"), "latent_bias": torch.ones(F), "activation": "TopK"}
    w.pop("encoder.bias")
    torch.save({**w, "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}, folder / "6.pt")
    return folder


def _llama(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    save_file(linear("decoder.bias"), folder / "checkpoints" / "final.safetensors")
    norms = {"jump_relu_threshold": 0.5, "dataset_average_activation_norm": {"in": 9.0, "out": 9.0}}
    _json(folder / "hyperparams.json", {**norms, "d_model": D, "hook_point_in": "blocks.1.hook_resid_post"})
    return folder


def _qwen(folder: Path) -> Path:
    w = canonical()
    place = folder / "SAE-Res-Qwen3-W32K-L0_3"
    place.mkdir()
    turned = {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in w.items()}
    torch.save(turned, place / "layer1.sae.pt")
    return place


def _pair(folder: Path) -> Path:
    torch.save(linear("decoder.bias"), folder / "sae.pth")
    return folder


def _hook_z(folder: Path) -> Path:
    torch.save(canonical(), folder / "l5.pt")
    _json(folder / "l5_cfg.json", {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z", "seq_len": 8})
    return folder


def _plain(folder: Path) -> Path:
    save_file(canonical(), folder / "mine.safetensors")
    _json(folder / "cfg.json", {"activation": "topk", "k": K, "apply_b_dec_to_input": True, "site": "layers.1"})
    return folder


FAMILIES = (
    _sae_lens, _transcoder, _sparsify, _learning, _gemma, _gemma_2, _openai, _llama, _qwen, _pair, _hook_z, _plain,
)  # fmt: skip

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, D, F, K, 10**12, 2**63, -(10**30), 1e308, 0.5, "", "relu", "topk", "6", "\x00",
    "../../../../etc/passwd", "/dev/zero", "hf:x/y", "a" * 5000, "blocks.1.hook_resid_pre\n", [], [1, 2], {}, {"k": 3},
    [[[[[]]]]], "NaN", "layer_norm", "expected_average_only_in", "covariance_whitening", "gated", "temporal",
)  # fmt: skip


def _files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())


def _bits(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder, ".json", ".safetensors", ".npz", ".pt", ".pth"))
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _cut(folder: Path, rng: Random) -> None:
    path = rng.choice(_files(folder, ".json", ".safetensors", ".npz", ".pt", ".pth"))
    content = path.read_bytes()
    at = rng.randrange(len(content))
    path.write_bytes(content[:at] if rng.random() < 0.7 else content[:at] + rng.randbytes(64) + content[at:])


def _keys(folder: Path, rng: Random) -> None:
    """Keys of configs dropped, or given a strange value."""
    configs = _files(folder, ".json")
    if not configs:
        return _bits(folder, rng)
    path = rng.choice(configs)
    config = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = [config, *(value for value in config.values() if isinstance(value, dict))]
        holder = rng.choice([each for each in holders if each] or [config])
        if not holder:
            break
        key = rng.choice(sorted(holder))
        if rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = rng.choice(STRANGE)
    path.write_text(json.dumps(config))
    return None


def _nested(folder: Path, rng: Random) -> None:
    texts = ("[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "{} {}", '{"architecture": "\\ud83d"}', "[1, 2]", "")
    if configs := _files(folder, ".json"):
        rng.choice(configs).write_text(rng.choice(texts))


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    return dict(torch.load(path, weights_only=True))


def _save(path: Path, tensors: dict[str, Any]) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.real.float().numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path)


def _tensors(folder: Path, rng: Random) -> None:
    """Tensors dropped, renamed, turned, cut, of another kind, or without a number in them."""
    path = rng.choice(_files(folder, ".safetensors", ".npz", ".pt", ".pth"))
    content = _load(path)
    changes: tuple[Callable[[Tensor], Any], ...] = (
        lambda t: t.mT if t.ndim > 1 else t[:1],
        lambda t: t[..., :-1],
        lambda t: t[None],
        lambda t: t.flatten(),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.bfloat16),
        lambda t: t.to(torch.complex64),
        lambda t: t.bool(),
        lambda t: t * torch.nan,
        lambda t: t * 1e38,
        lambda t: t * 0,
        lambda t: t[:0],
        lambda t: -t,
    )
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(content))
        value = content[name]
        if rng.random() < 0.25:
            content.pop(name)
        elif rng.random() < 0.2:
            content[rng.choice(("W_enc", "x", "../../up", "threshold"))] = content.pop(name)
        elif isinstance(value, Tensor):
            content[name] = rng.choice(changes)(value) if value.ndim else value * -1
        if not content:
            break
    _save(path, content)


def _huge(folder: Path, rng: Random) -> None:
    """Files that claim far more than they hold."""
    path = rng.choice(_files(folder, ".safetensors", ".npz", ".pt", ".pth"))
    huge = 10 ** rng.choice((7, 9, 12))
    if path.suffix == ".safetensors":
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        entry["shape"] = [huge, huge][: len(entry["shape"])]
        if rng.random() < 0.5:
            entry["data_offsets"][1] = huge
        text = json.dumps(header).encode()
        path.write_bytes((len(text) if rng.random() < 0.8 else huge).to_bytes(8, "little") + text + raw[8 + size :])
    elif path.suffix == ".npz":
        buffer = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (huge, huge)}
        np.lib.format.write_array_header_1_0(buffer, header)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                archive.writestr(f"{name}.npy", buffer.getvalue() + bytes(10**7 if rng.random() < 0.5 else 4))
    else:
        content = _load(path)
        name = rng.choice([name for name, value in content.items() if isinstance(value, Tensor)])
        content[name] = torch.zeros(1, 1).expand(huge, huge)
        torch.save(content, path)


def _pickled(folder: Path, rng: Random) -> None:
    """Pickles that make a file when they are run, in the place of weights and beside them."""
    evil, marker = Evil(folder / MARKER), folder
    path = rng.choice(_files(folder, ".safetensors", ".npz", ".pt", ".pth"))
    kind = rng.randrange(5)
    if kind == 0:
        path.write_bytes(pickle.dumps({"W_enc": evil}))
    elif kind == 1:
        torch.save({"W_enc": evil}, path)
    elif kind == 2 and path.suffix in (".pt", ".pth"):
        torch.save({**_load(path), "more": evil}, path)
    elif kind == 3:
        np.savez(marker / "more.npz", W_enc=np.array([evil], dtype=object))
    else:
        torch.save(evil, path)


def _places(folder: Path, rng: Random) -> None:
    """Links to themselves and out of the folder, folders for files, web pages, and archives with paths of their own."""
    path = rng.choice(_files(folder, ".json", ".safetensors", ".npz", ".pt", ".pth"))
    kind = rng.randrange(6)
    if kind == 5:
        with zipfile.ZipFile(path, "a" if zipfile.is_zipfile(path) else "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(rng.choice(("../../up.npy", "/etc/up.npy", "W_enc.npy", "archive/data.pkl")), b"x" * 100)
        return
    path.unlink()
    if kind == 0:
        path.symlink_to(path.name)
    elif kind == 1:
        path.symlink_to("/etc/passwd")
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.mkdir()
    else:
        path.write_bytes(b"<!DOCTYPE html><html>404: not found</html>")


MUTATIONS = (_bits, _bits, _cut, _keys, _keys, _keys, _nested, _tensors, _tensors, _tensors, _huge, _pickled, _places)


def run_case(number: int, root: Path) -> str:
    """``read`` or ``refused`` for case ``number``; an `AssertionError` for anything else."""
    rng = Random(number)
    family = FAMILIES[number % len(FAMILIES)]
    folder = root / "sae"
    folder.mkdir()
    try:
        place = family(folder)
        # What claims too much comes last: nothing here may read it, only what is tested.
        for mutation in sorted(rng.sample(MUTATIONS, rng.choice((1, 1, 1, 2))), key=lambda each: each is _huge):
            if _files(folder, ".safetensors", ".npz", ".pt", ".pth"):
                # What the mutation before has broken cannot be mutated again; it is read as it stands.
                with suppress(Exception):
                    mutation(folder, rng)
        return _read(place, folder, f"case {number} ({family.__name__})")
    finally:
        shutil.rmtree(folder)


def _read(place: Path, folder: Path, what: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = read_sae(str(place))
            check_outputs(sae)
        outcome = "read"
    except (LoadError, UsageError) as error:
        text = str(error).replace("a" * 5000, "a")
        assert "\n" not in text.replace("\\n", ""), f"{what}: more than a sentence: {text!r}"
        assert 20 < len(text) < LONGEST, f"{what}: {len(text)} characters: {text[:200]!r}"
        outcome = "refused"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert not list(folder.rglob(MARKER)), f"{what}: code in a file was run"
    return outcome


def measure() -> dict[str, Any]:
    """All cases: how many were read and refused, what failed, and how much memory it took."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as root:
        for number in range(CASES):
            try:
                outcomes[run_case(number, Path(root))] += 1
            except AssertionError as error:
                failures.append(str(error))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "cases": CASES,
        **dict(sorted(outcomes.items())),
        "failures": failures,
        "memory_grown_bytes": grown,
        "within_memory": grown < MOST_MEMORY,
        "pid_left_nothing_open": len(os.listdir("/proc/self/fd")) < 200 if Path("/proc/self/fd").is_dir() else None,
    }
