"""What a target may be, and the sentence for each that cannot be followed."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.errors import LoadError
from sae_bench.sae import LinearDecoderSAE, WrappedSAE, formats, weights_sha256
from sae_bench.sae.formats import as_sae, read_folder, read_sae, readers

MODULE = """
import torch
from torch import nn


class Tied:
    d_in = 6

    def __init__(self, weight=None):
        self.weight = torch.eye(6) if weight is None else weight

    def encode(self, x):
        return torch.relu(x @ self.weight)

    def decode(self, codes):
        return codes @ self.weight.T


ready = Tied()
number = 3


class holder:
    inner = ready


def broken():
    raise RuntimeError("disk on fire\\nsecond line")


def nothing():
    return None
"""


def test_a_folder_or_a_file_in_it_relative_or_absolute(saved: Path) -> None:
    digest = weights_sha256(read_sae(str(saved)))
    for target, base in [
        (saved.name, saved.parent),
        (f"./{saved.name}/", saved.parent),
        (str(saved / "cfg.json"), None),
        (f"{saved.name}/sae_weights.safetensors", saved.parent),
    ]:
        assert weights_sha256(read_sae(target, base=base)) == digest


def test_a_folder_that_is_not_there(saved: Path) -> None:
    with pytest.raises(LoadError, match=r"no SAE at .*jumb: there is no such file or folder; did you mean 'jump'"):
        read_sae(str(saved.parent / "jumb"))
    with pytest.raises(LoadError, match=r"no SAE at"):
        read_sae("nowhere/at/all")


def test_a_folder_of_saes_names_them(saved: Path) -> None:
    with pytest.raises(LoadError, match=r"holds several SAEs; give the path of one of them: .*jump"):
        read_sae(str(saved.parent))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(LoadError, match=r"\(readme\.txt\) is in no known format \(.*sae_lens.*\); to measure it"):
        read_sae(str(tmp_path))
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(LoadError, match="is in no known format"):
        read_sae(str(tmp_path))


@pytest.mark.parametrize("name", ["sae.pt", "sae.pkl", "weights.pth", "pytorch_model.bin", "last.ckpt"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"W": Evil()}, tmp_path / name)
    reason = "pickle of other objects, which is never run" if name.endswith((".pt", ".pth")) else "unpickling runs code"
    for target in (tmp_path, tmp_path / name):
        with pytest.raises(LoadError, match=f"{name}.*{reason}"):
            read_sae(str(target))
    assert not (tmp_path / "ran").exists()


def test_a_new_format_is_a_new_file() -> None:
    names = [reader.__name__.rsplit(".", 1)[1] for reader in readers()]
    folder = Path(formats.__file__).parent
    assert names == sorted(path.stem for path in folder.glob("[a-z]*"))
    kinds = (("recognise", "read"), ("recognise_file", "read_file"))
    for reader in readers():
        assert [all(callable(getattr(reader, name, None)) for name in kind) for kind in kinds].count(True) == 1


def test_two_formats_in_one_folder_are_not_guessed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = readers()[-1]
    monkeypatch.setattr("sae_bench.sae.formats.readers", lambda: (ours, ours))
    monkeypatch.setattr(ours, "recognise", lambda _: True)
    with pytest.raises(LoadError, match="looks like more than one format"):
        read_folder(saved)


# Python objects


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "my_own_saes.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_own_saes", None)


@pytest.mark.parametrize("attribute", ["ready", "Tied", "holder.inner"])
def test_an_object_a_class_or_a_function(module: Path, attribute: str) -> None:
    path = list(sys.path)
    sae = read_sae(f"my_own_saes:{attribute}", base=module)
    x = torch.randn(4, 6)
    assert torch.equal(sae.encode(x), torch.relu(x))
    assert (sae.info.format, sae.info.architecture, sae.d_sae) == ("object", "Tied", 6)
    assert sys.path == path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_own_saes:redy", r"'redy' is not in my_own_saes; did you mean 'ready' or"),
        ("my_own_saes:number", "the int object has no encode"),
        ("my_own_saes:broken", r"broken\(\) failed \(RuntimeError: disk on fire\)$"),
        ("my_own_saes:nothing", "the NoneType object has no encode"),
        ("no_such_module_here:sae", "importing no_such_module_here failed .ModuleNotFoundError"),
    ],
)
def test_python_targets_that_fail(module: Path, target: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        read_sae(target, base=module)


def test_an_sae_lens_object_keeps_its_own_reader(make: Callable[..., Any]) -> None:
    theirs = make("TopKSAE", k=5, rescale_acts_by_decoder_norm=True)
    assert isinstance(as_sae(theirs), LinearDecoderSAE)

    class Mine(type(theirs)):  # type: ignore[misc]
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return super().encode(x) * 2

    theirs.__class__ = Mine
    changed = as_sae(theirs)
    assert isinstance(changed, WrappedSAE)
    x = torch.randn(3, 12)
    assert torch.equal(changed.encode(x), theirs.encode(x).detach())


# Downloads and releases


def test_hub_targets_fetch_one_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fake(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(saved.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    sae = read_sae("hf:lab/saes@v2/jump")
    assert (asked["repo"], asked["revision"]) == ("lab/saes", "v2")
    assert asked["allow_patterns"] == [
        "jump/*.json", "jump/*.safetensors", "jump/*.npz", "jump/*.pt", "jump/*.pth", "config.json",
    ]  # fmt: skip
    assert asked["ignore_patterns"] == ["jump/*/*"]
    assert sae.info.format == "sae_lens"
    with pytest.raises(LoadError, match="lab/saes on the Hugging Face hub has no file or folder 'other'"):
        read_sae("hf:lab/saes/other/")


def test_a_hub_target_may_be_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    weights = {"W_enc": torch.ones(6, 4), "W_dec": torch.ones(4, 6), "b_enc": torch.ones(6), "b_dec": torch.ones(4)}
    snapshot = tmp_path / "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    torch.save(weights, snapshot / "layer3.sae.pt")

    def fake(repo: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    sae = read_sae("hf:Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_2/layer3.sae.pt")
    assert (sae.info.format, sae.info.l0, sae.site_in) == ("qwen_scope", 2.0, "blocks.3.hook_resid_post")
    assert asked == [["layer3.sae.pt", "layer3.sae_cfg.json", "cfg.json", "config.json"]]


def test_hub_targets_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=r"cannot fetch lab/no-such from the Hugging .* or download it") as caught:
        read_sae("hf:lab/no-such/sub")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["hf:", "hf:onlyname", "hf:a b/c", "sae_lens:release", "sae_lens:/x"])
def test_misspelled_remote_targets(target: str) -> None:
    with pytest.raises(LoadError, match="is not spelled"):
        read_sae(target)


def test_a_release_needs_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sae_lens"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoadError, match=r"not installed: pip install 'pytest-sae-bench\[sae-lens\]'"):
        read_sae("sae_lens:gpt2-small-res-jb/blocks.8.hook_resid_pre")


def test_releases_come_from_sae_lens(sae_lens: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make("GatedSAE")
    asked: list[tuple[str, str]] = []

    def fake(release: str, sae_id: str, device: str) -> Any:
        asked.append((release, sae_id))
        return theirs

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", fake)
    sae = read_sae("sae_lens:some-release/layer_3/width_16k")
    assert asked == [("some-release", "layer_3/width_16k")]
    assert weights_sha256(sae) == weights_sha256(as_sae(theirs))


def test_an_unknown_release_is_one_sentence(sae_lens: Any) -> None:
    with pytest.raises(LoadError, match=r"SAELens cannot load release 'no-such', SAE 'x' \(ValueError"):
        read_sae("sae_lens:no-such/x")


@pytest.mark.parametrize("dtype", ["float23", "int8", "nn", ""])
def test_unknown_precision(saved: Path, dtype: str) -> None:
    with pytest.raises(LoadError, match=r"unknown dtype .* known: float32"):
        read_sae(str(saved), dtype=dtype)
