"""The same report from two processes as from one, and no change to suites that measure nothing."""

from __future__ import annotations

import os
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sae_bench.frontends.pytest.scheduling import device_of
from tests.journeys.runs.conftest import REGISTER

pytest.importorskip("xdist")
TWO = ("-p", "xdist.plugin", "-n", "2")


def test_two_processes_give_the_report_of_one(toy: Any) -> None:
    toy.accept("-q")
    toy.say(lab_a__kl_gap=1.2, lab_b__reconstruction="nan", lab_c__sparsity=1.02)
    assert toy("-q").ret == 1
    one = toy.values()
    (toy.path / "processes.log").unlink()

    two = toy.alone(*TWO)
    assert two.returncode == 1, two.stdout
    assert toy.values() == one
    assert [*toy.values()] == [*one]
    kinds = {sae: held["provenance"] for sae, held in toy.report()["saes"].items()}
    assert kinds["lab/b"] == {"architecture": "toy", "neuronpedia_id": "toy/lab/b"}, "what an SAE is, said by a worker"
    homes: dict[str, set[str]] = {}
    for line in (toy.path / "processes.log").read_text().splitlines():
        process, sae, _ = line.split()
        homes.setdefault(sae, set()).add(process)
    assert all(len(processes) == 1 for processes in homes.values()), "an SAE was loaded twice"
    assert len(set.union(*homes.values())) == 2
    assert re.search(r"7 passed|2 failed", two.stdout)
    assert len(toy.folders()) == 3
    assert "FAIL" in two.stdout


@pytest.mark.parametrize("said", ["", "3"])
def test_workers_divide_the_cores_unless_the_user_did(toy: Any, said: str) -> None:
    assert toy.alone(*TWO, OMP_NUM_THREADS=said).returncode == 0
    threads = {line.split()[2] for line in (toy.path / "processes.log").read_text().splitlines()}
    assert threads == {said or str(max(1, len(os.sched_getaffinity(0)) // 2))}


GPUS = """
import sys, types, toy_engine
from sae_bench.run.run import Run
toy_engine.install()
cuda = types.SimpleNamespace(device_count=lambda: 2, is_available=lambda: False)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, set_num_threads=lambda count: None)
sys.modules["sae_bench.engine.devices"] = types.SimpleNamespace(check_device=lambda name: None)
load = Run._load
def noted(run):
    with open("devices.log", "a") as log:
        log.write(run.options.device + "\\n")
    return load(run)
Run._load = noted
"""


def test_workers_have_a_gpu_each(toy: Any) -> None:
    toy.register(GPUS + REGISTER)
    done = toy.bare(*TWO, "-q", "--sae-device", "cuda")
    assert done.returncode == 0, done.stdout
    assert set((toy.path / "devices.log").read_text().split()) == {"cuda:0", "cuda:1"}


def test_more_workers_than_gpus_are_refused_unless_one_is_named(toy: Any) -> None:
    toy.register(GPUS.replace("device_count=lambda: 2", "device_count=lambda: 1") + REGISTER)
    done = toy.bare(*TWO, "-q", "--sae-device", "cuda")
    assert done.returncode == 4, done.stdout
    said = done.stdout + done.stderr
    assert said.count("-n 2 with --sae-device cuda loads 2 models into the memory of 1 GPU; give -n 1, or name") == 1
    assert "Traceback" not in said
    assert not (toy.path / "devices.log").exists()
    done = toy.bare(*TWO, "-q", "--sae-device", "cuda:0")
    assert done.returncode == 0, done.stdout
    assert set((toy.path / "devices.log").read_text().split()) == {"cuda:0"}


def test_a_device_that_was_named_and_a_single_one_are_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, said, wanted in ((3, "cuda", "cuda:1"), (3, "cuda:2", "cuda:2"), (1, "cuda", "cuda"), (3, "cpu", "cpu")):
        cuda = SimpleNamespace(device_count=lambda gpus=gpus: gpus)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert device_of("gw4", said) == wanted


def test_two_processes_take_up_a_killed_run_and_mistakes_are_one_sentence(toy: Any) -> None:
    toy.say(lab_c__kl_gap="kill")
    toy.alone("-q")
    toy.measured()
    toy.say()
    assert toy.alone(*TWO, "-q").returncode == 0
    # Items run SAE by SAE: two were whole when the third one killed the run.
    assert sorted(toy.measured()) == ["lab/c kl_gap", "lab/c reconstruction", "lab/c sparsity"]
    assert len(toy.folders()) == 1

    wrong = toy.alone(*TWO, "--sae", "lab/z")
    assert wrong.returncode == 4
    assert "matches no registered SAE" in wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stdout + wrong.stderr


def test_reports_that_cannot_be_written_by_workers_are_loud(toy: Any) -> None:
    (toy.path / "reports").write_text("a file where the folder should be")
    done = toy.alone(*TWO)
    assert done.returncode == 1
    assert "9 passed" in done.stdout
    assert "ERROR: with -n, results stay in the workers" in done.stdout


def test_a_suite_without_saes_is_left_to_xdist(toy: Any) -> None:
    (toy.path / "test_sae.py").write_text(
        "import os, time, pytest\n"
        "@pytest.mark.parametrize('n', range(8))\n"
        "def test_it(n):\n"
        "    time.sleep(.05)\n"
        "    with open('homes.log', 'a') as log: log.write(f'{os.getpid()}\\n')\n"
    )
    toy.register("")
    done = toy.bare(*TWO, "-q")
    assert done.returncode == 0, done.stdout
    assert len(set((toy.path / "homes.log").read_text().split())) == 2
    assert not (toy.path / "reports").exists()
