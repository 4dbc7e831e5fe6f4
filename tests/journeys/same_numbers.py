"""Measure the numbers that moving code must not change, and compare two sets of them.

    python -m tests.journeys.same_numbers OUT.json [STORIES260K]    # measure with the code on the path

Values, standard errors and intervals are kept as they are; the values per cluster and the series as a hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEMO = "from sae_bench.demo import register_demo\n\nregister_demo()\n"
STORIES = """\
from pathlib import Path

from sae_bench import register_sae

folder = Path({folder!r})
for name in ("topk", "gated", "standard"):
    register_sae(
        f"stories/{{name}}",
        path=str(folder / "saes" / f"{{name}}-l3"),
        model=str(folder / "model"),
        site="blocks.3.hook_resid_pre",
        corpus=str(folder / "eval_tokens.safetensors"),
    )
"""


def measure(conftest: str, *options: str) -> dict[str, Any]:
    """Every metric of the SAEs that ``conftest`` registers, in the smoke tier, without accepted reports."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "conftest.py").write_text(conftest)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_properties.py").write_text("from sae_bench.suite.test_properties import *\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--sae-tier", "smoke", "--sae-no-compare", "--sae-json", "report.json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        report = folder / "report.json"
        if not report.exists():
            raise RuntimeError(run.stdout + run.stderr)
        return numbers(json.loads(report.read_text()))


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a report: by SAE and ``property.metric``."""
    return {
        sae: {
            f"{name}.{metric}": _of_metric(found)
            for name, result in sorted(entry["properties"].items())
            for metric, found in sorted(result["metrics"].items())
        }
        for sae, entry in sorted(report["saes"].items())
    }


def _of_metric(found: dict[str, Any]) -> dict[str, Any]:
    evidence = json.dumps(found.get("per_cluster"), sort_keys=True)
    kept = {key: found.get(key) for key in ("value", "se", "n", "value_interval")}
    return {**kept, "per_cluster": hashlib.sha256(evidence.encode()).hexdigest()[:16]}


def machine() -> dict[str, str]:
    """What the last bits of a sum depend on."""
    import torch

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "processor": model.partition(": ")[2] or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    found = {"machine": machine(), "demo": measure(DEMO)}
    if len(sys.argv) > 2:
        found["stories260k"] = measure(STORIES.format(folder=str(Path(sys.argv[2]).resolve())))
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
