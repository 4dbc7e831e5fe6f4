"""One rewritten line on a terminal, a line each half minute elsewhere, nothing under ``-q``; past pytest's capture."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from sae_bench.frontends.pytest.progress import ProgressLine
from sae_bench.run.options import RunOptions
from sae_bench.run.run import Run


def told(terminal: bool, *steps: tuple[float, str, int, int]) -> str:
    """What is written for calls (second, what, done, total)."""
    stream, seconds = io.StringIO(), iter([step[0] for step in steps])
    line = ProgressLine(stream, terminal, clock=lambda: next(seconds))
    for _, what, done, total in steps:
        line(what, done, total)
    return stream.getvalue()


def test_a_terminal_has_one_line_with_what_how_far_and_how_long_yet() -> None:
    steps = [(second, "kl_gap of demo/topk", 1 + second, 101) for second in range(11)]
    text = told(True, *steps)
    assert "\n" not in text
    lines = text.split("\r\x1b[K")[1:]
    assert lines[0] == "kl_gap of demo/topk  3/101  2 s, about 98 s left", "quick measurements show nothing"
    assert lines[-1] == "kl_gap of demo/topk  11/101  10 s, about 90 s left"
    assert told(True, *steps, (12, "kl_gap of demo/topk", 101, 101)).endswith("\r\x1b[K"), "and goes when it is done"


def test_a_terminal_is_not_written_to_more_than_five_times_a_second() -> None:
    text = told(True, *((2 + step / 100, "kl_gap", step, 10_000) for step in range(400)))
    assert 5 <= text.count("kl_gap") <= 11


def test_a_log_has_a_line_each_half_minute_also_where_each_property_is_quick() -> None:
    steps = [(second, f"property {second // 20}", second % 20, 20) for second in range(200)]
    lines = told(False, *steps).split()
    assert told(False, *steps).count("\n\n") + 1 == told(False, *steps).count("property") == 6
    assert "\r" not in "".join(lines)
    assert told(False, *((second, "kl_gap", second, 99) for second in range(25))) == ""


def test_the_second_saes_line_starts_its_own_clock() -> None:
    steps = [(second, "kl_gap of a", second, 100) for second in range(10)]
    steps += [(50 + second, "kl_gap of b", second, 100) for second in range(4)]
    assert told(True, *steps).endswith("kl_gap of b  3/100  3 s, about 97 s left")


def test_a_run_names_the_sae_beside_the_property() -> None:
    from types import SimpleNamespace

    said: list[tuple[str, int, int]] = []
    run = Run(RunOptions(), progress=lambda *step: said.append(step))
    run._advance("activations", 1, 2)
    run._current = SimpleNamespace(id="demo/topk")  # type: ignore[assignment]
    run._advance("kl_gap", 1, 2)
    assert said == [("activations", 1, 2), ("kl_gap of demo/topk", 1, 2)]


SUITE = """
from sae_bench.frontends.pytest import progress

def test_long(request):
    line = progress.ProgressLine.for_pytest(request.config)
    if line is not None:
        seconds = iter(range(1000))
        line.clock = lambda: next(seconds)
        for done in range(60):
            line("kl_gap of demo/topk", done, 100)
"""


def run_pytest(folder: Path, *arguments: str, terminal: bool) -> str:
    """What pytest's process writes to standard error, which is a terminal or a pipe."""
    (folder / "test_long.py").write_text(SUITE)
    theirs, ours = (pty.openpty() if terminal else os.pipe())[::-1]
    command = [sys.executable, "-m", "pytest", "-p", "sae_bench.plugin", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                more = os.read(ours, 1 << 16)
            except OSError:
                break
            if not more:
                break
            text += more
        assert process.wait(60) == 0
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize("arguments", [(), ("-v",), ("-s",)])
def test_it_shows_under_pytests_capture_on_a_terminal(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    text = run_pytest(tmp_path, *arguments, terminal=True)
    assert re.search(r"\r\x1b\[Kkl_gap of demo/topk  59/100  59 s, about 41 s left", text)


def test_it_shows_a_line_each_half_minute_in_a_pipe_and_nothing_when_quiet(tmp_path: Path) -> None:
    text = run_pytest(tmp_path, terminal=False)
    assert re.findall(r"kl_gap of demo/topk  (\d+)/100", text) == ["30"]
    assert "\r" not in text
    assert run_pytest(tmp_path, "-q", terminal=True) == ""
