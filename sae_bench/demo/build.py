"""Rebuild the whole demo: tokenizer, model, corpus, labelled prompts, concepts, SAEs, card.

    python -m sae_bench.demo.build                          into the package itself, half an hour on two idle cores
    python -m sae_bench.demo.build --out DIR --steps 20     a toy of the same shape, for a test

Needs sae-lens, which the package itself does not.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sae_bench.demo.card import write_card
from sae_bench.demo.paths import BUNDLED, SAE_NAMES, DemoPaths
from sae_bench.demo.train_model import Recipe, train_model
from sae_bench.demo.train_saes import SAERecipe, train_saes
from sae_bench.demo.write_concepts import write_concepts
from sae_bench.demo.write_datasets import write_circuit, write_contrast, write_corpus

log = logging.getLogger(__name__)

STAGES = ("model", "texts", "saes", "card")


def build(
    folder: DemoPaths,
    steps: int | None = None,
    stages: Sequence[str] = STAGES,
    names: tuple[str, ...] = SAE_NAMES,
) -> None:
    """Run the stages into a folder. `steps` shortens the training of model and SAEs alike."""
    folder.root.mkdir(parents=True, exist_ok=True)
    model, sae = Recipe(), SAERecipe()
    if steps is not None:
        model = replace(model, steps=steps, batch=8, warm_up=max(1, steps // 10))
        sae = replace(sae, steps=steps, batch=256, documents=64)
    if "model" in stages:
        log.info("training the model for %d steps", model.steps)
        train_model(model, folder.model, check_documents=192 if steps is None else 16)
    if "texts" in stages:
        write_corpus(folder)
        write_contrast(folder)
        write_concepts(folder)
        write_circuit(folder)
    if "saes" in stages:
        log.info("training %d SAEs for %d steps each", len(names), sae.steps)
        train_saes(folder, sae, names)
    if "card" in stages:
        if steps is None:
            write_card(folder)
        else:
            write_card(folder, documents=16, corpus_documents=16)
    for path in folder.root.rglob("*.safetensors"):
        path.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sae_bench.demo.build", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=BUNDLED.root, help="folder to build into (default: the package's own)"
    )
    parser.add_argument("--steps", type=int, help="training steps of model and SAEs, for a quick toy")
    parser.add_argument("--only", choices=STAGES, action="append", help="run this stage only (repeatable)")
    parser.add_argument("--sae", choices=SAE_NAMES, action="append", help="train this SAE only (repeatable)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    build(
        DemoPaths(options.out),
        options.steps,
        tuple(options.only or STAGES),
        tuple(options.sae or SAE_NAMES),
    )


if __name__ == "__main__":
    main()
