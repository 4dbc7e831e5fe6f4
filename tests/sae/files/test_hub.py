"""SAEs from the Hugging Face hub, with its real client against a server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.support.hub_server import Failure, Hub, Repository, serve

pytestmark = pytest.mark.heavy

D, F = 8, 256
"Wide enough that the hub stores the weights as a large file, behind a redirect."
CONFIG = {"activation": "relu", "apply_b_dec_to_input": False}
READ = """
import sys
from sae_bench.errors import SAEBenchError
from sae_bench.sae.formats import read_sae
try:
    sae = read_sae(sys.argv[1])
    print(f"{sae.d_in} {sae.d_sae} {float(sae.b_dec[0]):g}")
except SAEBenchError as error:
    print(f"refused: {error}")
"""


def weights(bias: float) -> bytes:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(F, D, generator=generator)
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(F), "b_dec": torch.full((D,), bias)}
    return save(tensors)


def files(bias: float) -> dict[str, bytes]:
    return {"layer_3/sae.safetensors": weights(bias), "layer_3/cfg.json": json.dumps(CONFIG).encode()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    public = Repository(files(1.0), revisions={"v2": files(2.0)})
    private, gated = Repository(files(3.0), token="hf_right"), Repository(files(4.0), gated=True)
    with serve({"lab/saes": public, "lab/private": private, "lab/gated": gated}) as running:
        yield running


@pytest.fixture
def read(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    """``read(target, **environment)``: what a process that reads the target prints, without progress."""

    def run(target: str, **environment: str) -> str:
        variables = {**os.environ, **hub.environment(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", READ, target]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    return run


def test_a_folder_a_file_and_a_revision_are_the_ones_that_are_named(read: Callable[..., str]) -> None:
    assert read("hf:lab/saes/layer_3") == f"{D} {F} 1"
    assert read("hf:lab/saes/layer_3/sae.safetensors") == f"{D} {F} 1"
    assert read("hf:lab/saes@v2/layer_3") == f"{D} {F} 2"


def test_a_private_repository_needs_its_token(read: Callable[..., str]) -> None:
    assert read("hf:lab/private/layer_3", HF_TOKEN="hf_right") == f"{D} {F} 3"


@pytest.mark.parametrize("target", ["hf:lab/private/layer_3", "hf:lab/gated/layer_3", "hf:lab/saes@v9/layer_3"])
def test_what_the_hub_refuses_is_one_sentence(read: Callable[..., str], target: str) -> None:
    said = read(target)
    assert said.startswith(f"refused: cannot fetch {target.removeprefix('hf:').split('/layer')[0].split('@')[0]} from")
    assert "check the name and the network" in said


def test_a_folder_that_is_not_there_is_named(read: Callable[..., str]) -> None:
    assert "lab/saes on the Hugging Face hub has no file or folder 'layer_4'" in read("hf:lab/saes/layer_4")


def test_a_cut_connection_is_taken_up_again(read: Callable[..., str], hub: Hub) -> None:
    hub.failures["sae.safetensors"] = Failure(after=5000)
    assert read("hf:lab/saes/layer_3") == f"{D} {F} 1"
    assert hub.failures["sae.safetensors"].times == 0, "the connection was cut"


def test_a_hub_that_is_down_is_one_sentence(read: Callable[..., str], hub: Hub) -> None:
    hub.failures["api"] = Failure(status=500, times=100)
    assert read("hf:lab/saes/layer_3").startswith("refused: cannot fetch lab/saes from the Hugging Face hub")


def test_what_was_fetched_before_is_read_without_a_network(read: Callable[..., str], hub: Hub) -> None:
    assert read("hf:lab/saes/layer_3") == f"{D} {F} 1"
    hub.requests.clear()
    assert read("hf:lab/saes/layer_3", HF_HUB_OFFLINE="1") == f"{D} {F} 1"
    assert hub.requests == []
