"""The build, end to end, with a few steps in place of thousands."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_bench.demo.batches import IGNORED, batches, pack
from sae_bench.demo.grammar_accuracy import score
from sae_bench.demo.language import document, vocabulary
from sae_bench.demo.paths import DemoPaths
from sae_bench.demo.train_model import Recipe, new_model, train_model


def test_batches_pad_and_ignore_what_lies_beyond_a_document():
    rng = random.Random(0)
    items = [document(rng) for _ in range(4)]
    batch = pack(items)
    for row, item in enumerate(items):
        assert [vocabulary()[int(i)] for i in batch.tokens[row, : len(item.words)]] == list(item.words)
        assert (batch.labels[row, len(item.words) :] == IGNORED).all()


def test_batches_are_reproducible():
    first, second = (next(batches(random.Random(4), 6)) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)


def test_a_new_model_depends_on_its_seed_only_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    weights = [new_model(Recipe(seed=seed)).transformer.wte.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_scores_of_an_untrained_model_are_those_of_a_guess():
    scores = score(new_model(Recipe(layers=1)), documents=4)
    assert scores.loss == pytest.approx(torch.tensor(float(len(vocabulary()))).log().item(), abs=0.5)
    assert 1.0 < scores.entropy_bound < 1.6
    assert scores.accuracy.keys() == scores.answers.keys()


def test_training_twice_gives_the_same_weights_and_lowers_the_loss(tmp_path: Path):
    recipe = Recipe(steps=4, batch=4, layers=1, width=32, warm_up=1)
    first, second = (train_model(recipe, tmp_path / name, check_documents=2) for name in "ab")
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["steps"] == 4
    assert score(first, documents=2).loss < score(new_model(recipe), documents=2).loss


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed")
def test_the_whole_build_makes_every_file(tmp_path: Path):
    from sae_bench.demo.build import build

    folder = DemoPaths(tmp_path / "demo")
    build(folder, steps=3, names=("standard", "batchtopk", "topk-layer4", "topk-w96"))
    for path in (
        folder.model / "model.safetensors",
        folder.corpus,
        folder.contrast,
        folder.contrast_shifted,
        folder.concepts,
        folder.circuit,
        folder.card,
    ):
        assert path.stat().st_size > 0
    config = json.loads((folder.sae("batchtopk") / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    assert "threshold" in load_file(folder.sae("batchtopk") / "sae_weights.safetensors")
    behind, narrow = (json.loads((folder.sae(name) / "cfg.json").read_text()) for name in ("topk-layer4", "topk-w96"))
    assert behind["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert (behind["d_sae"], narrow["d_sae"]) == (768, 96)
    assert "batchtopk" in folder.card.read_text(encoding="utf-8")
