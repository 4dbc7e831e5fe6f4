"""``python benchmarks/engine/tables.py``: what ``make bench-engine`` measured, as tables between the README's marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"
RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """What one file of benchmarks measured; nothing where it has not run."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def peers() -> str:
    """How many times our time the others take, by layer of the site."""
    found = {int(name.split("[")[1][:-1]): held for name, held in read("peers").items()}
    if not found:
        return ""
    first = next(iter(found.values()))
    told = (
        "The time others take for the same numbers over ours, in rounds that take turns (`make bench-engine`): "
        f"{first['tokens']:,} tokens, {first['features']:,} features, {first['threads']} threads; KL, loss, L0, "
        "explained variance, cosine and gamma of the clean, the SAE's and the zero-ablated run, equal to 1e-5. "
        "A further SAE of a site shares the clean and the ablated run:\n\n"
    )
    head = ["site before block", "SAELens, first SAE", "SAELens, further", "SAEBench, first", "SAEBench, further"]
    keys = [f"{peer}_over_{which}" for peer in ("sae_lens", "saebench") for which in ("first", "further")]
    rows = [
        [
            f"{layer} of 12",
            *(_ratio(found[layer], key) for key in keys),
            f"{found[layer]['suffix_share_of_floor_rate']:.0%}",
        ]
        for layer in sorted(found)
    ]
    return told + table([*head, "rate of a suffix run, of the bare product's"], rows)


def _ratio(held: dict[str, Any], key: str) -> str:
    return f"{held[key]:.1f}" if key in held else "-"


def cost() -> str:
    """Seconds by documents and by arms."""
    found = read("cost")
    if not found:
        return ""
    rows = []
    for name, what in (("documents", "documents, one arm"), ("arms", "arms, 32 documents")):
        seconds = sorted((int(size), value) for size, value in found[f"test_{name}"]["processor_seconds"].items())
        sizes, values = " / ".join(str(size) for size, _ in seconds), " / ".join(f"{value:.2f}" for _, value in seconds)
        rows.append([what, sizes, values])
    peak = found["test_arms"]["peak_mebibytes"]
    told = (
        f"Cost is linear in documents and in arms (demo model); {max(map(int, peak))} arms take the memory of one:\n\n"
    )
    return told + table(["", "at", "seconds of one core"], rows)


TABLES: dict[str, Callable[[], str]] = {"peers": peers, "cost": cost}


def written(text: str) -> str:
    """The README with the tables of now."""
    for name, make in TABLES.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        made = make()
        text = marks.sub(lambda match, made=made: match[1] + made + match[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
