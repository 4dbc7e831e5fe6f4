"""Measure the demo and write its card.

python -m sae_bench.demo.card
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from sae_bench.demo.grammar_accuracy import HELD_OUT_SEED, Scores, score
from sae_bench.demo.paths import BUNDLED, SAE_NAMES, SITE, DemoPaths, site_of
from sae_bench.demo.sae_quality import Quality, corpus_activations, quality
from sae_bench.sae.formats import read_folder

log = logging.getLogger(__name__)

DESCRIPTIONS = {
    "indirect_object": "indirect object",
    "indirect_object.order=ABBA": "indirect object, receiver named first (ABBA)",
    "indirect_object.order=BABA": "indirect object, giver named first (BABA)",
    "day_next": "the day after or before",
    "day_steps": "two to six days after or before",
    "day_steps.step=2": "two days",
    "day_steps.step=3": "three days",
    "day_steps.step=4": "four days",
    "day_steps.step=5": "five days",
    "day_steps.step=6": "six days",
    "day_neighbours": "the next day and the last",
    "day_order": "the days in order",
    "month_next": "the month after or before",
    "month_steps": "two or three months after or before",
    "month_neighbours": "the next month and the last",
    "month_order": "the months in order",
    "letter": "question answered by A or B",
    "letter.template=0": "A or B, wording 0",
    "letter.template=1": "A or B, wording 1",
    "letter.template=2": "A or B, wording 2",
    "letter.template=3": "A or B, wording 3 (the shifted one)",
    "yes_no": "question answered by yes or no",
    "choice": "question answered by one of two adjectives",
    "verdict": "verdict of a review",
    "sum": "sums",
    "counting": "counting up and down",
    "agreement": "number of a verb, any verb of the right form",
    "agreement.nested": "number of a verb after a phrase or a clause",
}
"""Kind of sentence to its description, in the order of the card."""


def _model_section(scores: Scores, model: Any, recipe: dict[str, Any], documents: int) -> list[str]:
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "## The model",
        "",
        f"GPT-2's architecture: {config.n_layer} layers, width {config.n_embd}, {config.n_head} heads, context "
        f"{config.n_positions}, {config.vocab_size} tokens, {size:,} parameters. Trained for {recipe['steps']:,} "
        f"steps of {recipe['batch']} documents from seed {recipe['seed']} (`model/recipe.json`).",
        "",
        *([recipe["note"], ""] if "note" in recipe else []),
        f"Measured on {documents:,} documents that training never saw (seed {HELD_OUT_SEED}):",
        "",
        "| | nats a token |",
        "|---|--:|",
        f"| held-out loss | {scores.loss:.4f} |",
        f"| the grammar's entropy, at most | {scores.entropy_bound:.4f} |",
        "",
        "The entropy is the information in the choices that the generators made. It is an upper bound, because two "
        "series of choices may spell the same text.",
        "",
        "| share of right answers | | answers |",
        "|---|--:|--:|",
    ]
    for kind, text in DESCRIPTIONS.items():
        if kind in scores.accuracy:
            lines.append(f"| {text} | {scores.accuracy[kind]:.4f} | {scores.answers[kind]:,} |")
    return lines


def _sae_section(qualities: dict[str, Quality], width: dict[str, int], tokens: int) -> list[str]:
    lines = [
        "## The SAEs",
        "",
        f"Trained by SAELens, all with one number of steps, and saved in its format. The six architectures at `{SITE}` "
        "are registered; the others are compared with them: a second seed for `stability`, later layers for `layers`, "
        f"other widths for `width`. Measured on the {tokens:,} tokens of `corpus.safetensors`, <bos> left out:",
        "",
        "| SAE | site | features | L0 | explained variance | alive | gamma_centred |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, item in qualities.items():
        lines.append(
            f"| {name} | {site_of(name)} | {width[name]} | {item.l0:.2f} | {item.explained_variance:.4f} "
            f"| {item.alive:.4f} | {item.gamma_centred:.4f} |"
        )
    lines += [
        "",
        "gamma_centred is 1 when reconstructions are as long as they should be and lower when they are shrunk. "
        "BatchTopK and Matryoshka are JumpReLU SAEs on disk. `topk-seed1` differs from `topk` in its seed only, "
        "`topk-w96` to `topk-w1536` in the number of features only, `topk-layer3` and `topk-layer4` in the site only: "
        "one and two blocks on.",
    ]
    return lines


def write_card(folder: DemoPaths, documents: int = 2048, corpus_documents: int | None = None) -> None:
    """Measure the files in a folder and write its README.md.

    The model is measured on `documents` fresh ones, the SAEs on the first `corpus_documents` of the corpus, or on all.
    """
    model: Any = GPT2LMHeadModel.from_pretrained(folder.model)
    model.eval()
    recipe = json.loads((folder.model / "recipe.json").read_text())
    scores = score(model, documents)
    built = [name for name in SAE_NAMES if folder.sae(name).exists()]
    activations = {site: corpus_activations(folder, corpus_documents, site) for site in {*map(site_of, built), SITE}}
    qualities, width = {}, {}
    for name in built:
        sae: Any = read_folder(folder.sae(name))
        qualities[name], width[name] = quality(sae, activations[site_of(name)]), sae.d_sae
        log.info("%s: %s", name, qualities[name])
    lines = [
        "# The bundled demo",
        "",
        "A small language model of synthetic English, SAEs of six architectures and others on its residual stream,",
        "and a pinned evaluation corpus. The language comes from a seeded grammar (`language/`), so the truth about",
        "every sentence is known.",
        "",
        "Every number below was measured by `python -m sae_bench.demo.card`; `python -m sae_bench.demo.build` makes",
        "all of it again.",
        "",
        *_model_section(scores, model, recipe, documents),
        "",
        *_sae_section(qualities, width, len(activations[SITE])),
    ]
    folder.card.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sae_bench.demo.card", description="Measure the demo.")
    parser.add_argument("--out", type=Path, default=BUNDLED.root, help="folder of the build")
    parser.add_argument("--documents", type=int, default=2048, help="held-out documents for loss and accuracies")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    write_card(DemoPaths(options.out), options.documents)


if __name__ == "__main__":
    main()
