"""Measure every metric of the demo and of stories260k, and compare with the recorded values.

    python -m tests.journeys.same_numbers OUT.json [STORIES260K]     # measure, write OUT.json
    python -m tests.journeys.same_numbers --record [STORIES260K]     # measure, replace the recorded values

A change that moves code leaves every value and interval as it was, to the last bit. A change that moves a number on
purpose raises the version of its metric and records the values again: the diff of ``numbers.json`` shows what moved.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("numbers.json")
SAES = ("batchtopk", "gated", "jumprelu", "matryoshka", "standard", "topk")
STORIES = ("topk", "gated", "standard")
RENAMED: dict[str, str] = {}
"Recorded metric to its name today, as ``property.metric``, where a metric was renamed."
OTHER_MACHINE = 2e-3
"Relative difference allowed where another processor sums in another order."

REGISTER_DEMO = "from sae_bench.demo import register_demo\n\nregister_demo()\n"
REGISTER_STORIES = """\
from pathlib import Path

from sae_bench import register_sae

folder = Path({folder!r})
for name in {names!r}:
    register_sae(
        f"stories/{{name}}",
        path=str(folder / "saes" / f"{{name}}-l3"),
        model=str(folder / "model"),
        site="blocks.3.hook_resid_pre",
        corpus=str(folder / "eval_tokens.safetensors"),
    )
"""
Metrics = dict[str, list[Any]]
"``property.metric`` to [value, standard error, lower end, upper end, hash of the values per cluster]."


def measure_demo(*options: str) -> dict[str, Metrics]:
    """Return the metrics of the demo SAEs by id, in the smoke tier; ``options`` are pytest's."""
    return _measure(REGISTER_DEMO, *options)


def measure_stories(folder: Path, *options: str) -> dict[str, Metrics]:
    """Return the metrics of three SAEs on the story model in ``folder``, in the smoke tier."""
    return _measure(REGISTER_STORIES.format(folder=str(folder.resolve()), names=STORIES), *options)


def _measure(conftest: str, *options: str) -> dict[str, Metrics]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "conftest.py").write_text(conftest)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_properties.py").write_text("from sae_bench.suite.test_properties import *\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--sae-tier", "smoke"]
        command += ["--sae-no-compare", "--sae-json", "report.json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        report = folder / "report.json"
        if not report.exists():
            raise RuntimeError(f"{' '.join(command)} wrote no report:\n{run.stdout}{run.stderr}")
        return metrics_of(json.loads(report.read_text()))


def metrics_of(report: dict[str, Any]) -> dict[str, Metrics]:
    """Return the numbers of a report by SAE."""
    return {
        sae: {
            f"{name}.{metric}": _numbers(result)
            for name, judged in sorted(entry["properties"].items())
            for metric, result in sorted(judged["metrics"].items())
        }
        for sae, entry in sorted(report["saes"].items())
    }


def _numbers(result: dict[str, Any]) -> list[Any]:
    evidence = json.dumps(result.get("per_cluster"), sort_keys=True)
    low, high = result.get("value_interval") or (None, None)
    return [result.get("value"), result.get("se"), low, high, hashlib.sha256(evidence.encode()).hexdigest()[:12]]


def machine() -> dict[str, str]:
    """Return what the last bits of a sum depend on: processor, its vector width, torch."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    return {"processor": model, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def differences(recorded: Metrics, now: Metrics, exact: bool) -> list[str]:
    """Return one line per metric that is missing, new or of another value.

    Args:
        recorded: the metrics of one SAE as recorded.
        now: the metrics of the same SAE as measured now.
        exact: compare to the last bit, values per cluster included; else within `OTHER_MACHINE`.
    """
    expected = {RENAMED.get(name, name): numbers for name, numbers in recorded.items()}
    lines = [f"{name}: was recorded, is not measured" for name in sorted(set(expected) - set(now))]
    lines += [f"{name}: is measured, was not recorded" for name in sorted(set(now) - set(expected))]
    for name in sorted(set(expected) & set(now)):
        if not _equal(expected[name], now[name], exact):
            lines.append(f"{name}: {expected[name]} was recorded, {now[name]} is measured")
    return lines


def _equal(recorded: list[Any], now: list[Any], exact: bool) -> bool:
    if exact:
        return recorded == now
    pairs = list(zip(recorded[:4], now[:4], strict=True))
    scale = max((abs(number) for number, _ in pairs if number is not None), default=0.0)
    return all(
        (a is None) == (b is None) and (a is None or math.isclose(a, b, rel_tol=0, abs_tol=OTHER_MACHINE * scale))
        for a, b in pairs
    )


def dumps(tree: dict[str, Any]) -> str:
    """Return JSON with one metric a line, so that a diff shows which metrics moved."""
    saes = []
    for sae, metrics in sorted(tree["saes"].items()):
        rows = ",\n".join(f"   {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in sorted(metrics.items()))
        saes.append(f"  {json.dumps(sae)}: {{\n{rows}\n  }}")
    head = json.dumps(tree["machine"], sort_keys=True)
    return f'{{\n "machine": {head},\n "saes": {{\n' + ",\n".join(saes) + "\n }\n}\n"


def main(arguments: list[str]) -> None:
    """Measure and write; see the module's docstring."""
    out = RECORDED if arguments[0] == "--record" else Path(arguments[0])
    saes = measure_demo()
    if len(arguments) > 1:
        saes |= measure_stories(Path(arguments[1]))
    out.write_text(dumps({"machine": machine(), "saes": saes}))


if __name__ == "__main__":
    main(sys.argv[1:])
