"""Timings go through pytest-benchmark alone: stored and compared by its options, in no verdict, report or exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_bench.run.speed import MOST_TOKENS, Timing, peak_mebibytes, tokens_in_a_call
from sae_bench.show.speed_lines import speed_lines

SPEED = "from sae_bench.frontends.testing import speed_test\ntest_speed = speed_test()\n"
ONLY = ("-p", "no:cacheprovider", "--sae-tier", "smoke", "--benchmark-columns=median", "--sae", "lab/good")
SLOW = """
import time
def slow():
    from sae_bench.sae.formats import read_sae
    sae = read_sae("good", device="cpu", dtype="float32")
    class Slow:
        d_in, W_dec = sae.d_in, sae.W_dec
        def encode(self, x):
            time.sleep(.05)
            return sae.encode(x)
        def decode(self, codes):
            return sae.decode(codes)
    return Slow()
"""


@pytest.fixture
def timed(suite: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    # Of the worker that runs this test; pytest-benchmark would take the runs in here for workers as well.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    (suite.path / "test_speed.py").write_text(SPEED)
    return suite


def stored(suite: Any) -> list[dict[str, Any]]:
    """Benchmarks of the newest file that pytest-benchmark saved."""
    files = sorted((suite.path / ".benchmarks").rglob("*.json"))
    return json.loads(files[-1].read_text())["benchmarks"]


def test_they_are_stored_and_a_slower_sae_is_found_by_pytest_benchmark(timed: Any) -> None:
    first = timed.plain(*ONLY, "-k", "speed", "--benchmark-save", "before")
    first.assert_outcomes(passed=3, deselected=3)
    assert first.ret == 0
    first.stdout.fnmatch_lines(["*benchmark 'SAE decode'*", "speed (* tokens a second*", "lab/good *% *MiB*"])
    assert not list((timed.path / "reports").glob("*")), "a timing is no result"
    for each in stored(timed):
        info = each["extra_info"]
        assert each["params"] == {"sae": "lab/good", "operation": each["group"].removeprefix("SAE ")}
        assert info["tokens_per_second"] == pytest.approx(info["tokens"] / each["stats"]["median"])
        assert info["share_of_product"] > 0
        assert info["peak_mebibytes"] > 0

    compare = ("--benchmark-compare", "0001", "--benchmark-compare-fail")
    again = timed.plain(*ONLY, "-k", "speed", *compare, "median:100000%")
    assert again.ret == 0
    again.stdout.fnmatch_lines(["*lab/good-encode* (0001_before)*"])
    (timed.path / "conftest.py").write_text(
        SLOW + "from sae_bench import register_sae\n"
        'register_sae("lab/good", load=slow, model="model", site="blocks.1.hook_resid_pre", '
        'corpus="corpus.safetensors")'
    )
    slower = timed.plain(*ONLY, "-k", "speed", *compare, "median:400%")
    assert slower.ret != 0
    text = slower.stdout.str() + slower.stderr.str()
    assert "Performance has regressed" in text
    assert "lab/good-encode]" in text
    assert "lab/good-decode] (0001_before) - Field 'median' has failed" not in text


def test_verdicts_reports_and_accepted_files_do_not_know_of_them(timed: Any) -> None:
    accept = ("--sae-accept", "--sae-accept-reason", "measured")
    accepted = timed.everything(*accept)
    accepted.assert_outcomes(passed=12)
    assert accepted.ret == 0
    assert "speed" not in (timed.path / "baselines" / "lab" / "good.json").read_text().replace("test_speed", "")
    found = timed.report()["saes"]["lab/good"]["properties"]
    assert set(found) == {"kl_gap", "reconstruction", "sparsity"}

    # Without them nothing is missing, and with them alone nothing is either.
    skipped = timed.everything("--benchmark-skip")
    skipped.assert_outcomes(passed=6, skipped=6)
    assert skipped.ret == 0
    alone = timed.everything("--benchmark-only")
    alone.assert_outcomes(passed=6)
    assert alone.ret == 0
    assert "MISSING" not in alone.stdout.str()
    assert timed.plain("--benchmark-only", *accept).ret == 4
    without = timed("-k", "not speed")
    without.assert_outcomes(passed=6)


def test_they_are_chosen_as_a_property_by_name_or_marker(timed: Any) -> None:
    timed.plain(*ONLY, "--sae-property", "speed").assert_outcomes(passed=3)
    timed.plain(*ONLY, "-m", "speed", "--strict-markers").assert_outcomes(passed=3, deselected=3)
    timed("--sae", "lab/good").assert_outcomes(passed=3)  # three properties, chosen by name
    disabled = timed.plain(*ONLY, "--sae-property", "speed", "--benchmark-disable")
    disabled.assert_outcomes(passed=3)
    assert "tokens a second" not in disabled.stdout.str()
    assert timed.plain("--sae-property", "sped").ret == 4


def test_an_sae_that_cannot_be_loaded_is_one_sentence(timed: Any) -> None:
    broken = timed.plain(*ONLY[:-2], "--sae", "lab/good=./nowhere", "--sae-property", "speed")
    broken.assert_outcomes(failed=3)
    assert broken.ret == 1
    broken.stdout.no_fnmatch_line("*Traceback*")
    broken.stdout.fnmatch_lines(["*nowhere*"])


def test_workers_skip_them_and_say_why(timed: Any) -> None:
    done = timed.repository.runpytest_subprocess(*ONLY, "-n", "1", "-rs", "--sae-property", "speed")
    done.assert_outcomes(skipped=3)
    done.stdout.fnmatch_lines(["SKIPPED*3*workers that share a machine slow each other down*without -n*"])


def test_without_pytest_benchmark_they_are_skipped(timed: Any) -> None:
    done = timed.plain(*ONLY[:4], "--sae", "lab/good", "-p", "no:benchmark", "-rs", "--sae-property", "speed")
    done.assert_outcomes(skipped=3)
    done.stdout.fnmatch_lines(["SKIPPED*3*pytest-benchmark is not loaded*"])


@pytest.mark.parametrize(
    ("shape", "device", "tokens"),
    [((64, 512), "cpu", MOST_TOKENS), ((768, 24_576), "cpu", 128), ((768, 24_576), "cuda", MOST_TOKENS)],
)
def test_a_wide_sae_is_timed_on_fewer_tokens(shape: tuple[int, int], device: str, tokens: int) -> None:
    assert tokens_in_a_call(*shape, device, 10**6) == tokens
    assert tokens_in_a_call(*shape, device, 100) == 100


def test_peak_memory_is_the_most_that_is_held_at_once() -> None:
    mebibyte = torch.ones(2**18)

    def work() -> object:
        for _ in range(3):
            held = [mebibyte + 1 for _ in range(2)]  # two, which the next turn lets go
            del held
        one = mebibyte + 1
        return one + 1

    assert peak_mebibytes(work, "cpu") == pytest.approx(2, abs=0.01)
    assert peak_mebibytes(lambda: mebibyte.add_(1), "cpu") == pytest.approx(0, abs=0.01)
    assert peak_mebibytes(work, "mps") is None


def test_lines_hold_one_sae_each() -> None:
    both = [
        Timing("a/b", name, "cpu", 2, 100, 0.001, 0.0005, peak) for name, peak in (("encode", 1.5), ("decode", None))
    ]
    assert speed_lines([]) == []
    assert speed_lines(both) == [
        "speed (2 threads): tokens a second, share of the bare matrix product's, peak memory",
        "     encode               decode",
        "a/b  100k/s  50% 1.5 MiB  100k/s  50%",
    ]


def test_the_suite_and_the_benchmarks_have_them() -> None:
    root = Path(__file__).parents[3]
    assert (root / "benchmarks" / "test_speed.py").read_text().endswith("test_speed = speed_test()\n")
    assert (root / "sae_bench" / "suite" / "test_speed.py").read_text().endswith("test_speed = speed_test()\n")
