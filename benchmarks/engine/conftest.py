"""Keeps what `make bench-engine` measured: medians and ``extra_info`` in ``results/<file>.json``, and on the terminal.

The README quotes these files, so a figure in it was measured by a committed command.
"""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(scope="session")
def save() -> Callable[[Any, Path], Path]:
    """Puts a model of transformers into a folder, with a tokenizer of one word: documents here are token ids."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    word = "<|endoftext|>"
    words = Tokenizer(WordLevel({word: 0}, unk_token=word))

    def put(weights: Any, folder: Path) -> Path:
        weights.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token=word, eos_token=word).save_pretrained(folder)
        return folder

    return put


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the finished benchmarks by file; those of other files, and of sizes that were not run, stay."""
    session = getattr(config, "_benchmarksession", None)
    measured: dict[Path, dict[str, Any]] = defaultdict(dict)
    for each in session.benchmarks if session is not None else ():
        if not each.stats or "benchmarks/engine/" not in each.fullname:
            continue
        name = Path(each.fullname.split("::")[0]).stem.removeprefix("bench_")
        measured[RESULTS / f"{name}.json"][each.name] = {
            "median_seconds": _short(each.stats.median),
            "rounds": each.stats.rounds,
            **{key: _short(value) for key, value in each.extra_info.items()},
            "machine": {"cores": len(os.sched_getaffinity(0)), "processor": _processor()},
        }
    for path, found in measured.items():
        held = json.loads(path.read_text()) if path.is_file() else {}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**held, **found}, indent=1, sort_keys=True) + "\n")
        terminalreporter.section(f"benchmarks/engine/results/{path.name}")
        for name, values in found.items():
            shown = ", ".join(f"{key} {value}" for key, value in values.items() if key != "machine")
            terminalreporter.write_line(f"{name}: {shown}")


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
