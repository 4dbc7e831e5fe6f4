"""The committed files: sizes, formats, hashes, and that the card says what they give."""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from sae_bench.demo import write_concepts, write_datasets
from sae_bench.demo.language import document, vocabulary
from sae_bench.demo.paths import (
    BUNDLED,
    CARD,
    CIRCUIT,
    CONCEPTS,
    CONTRAST,
    CONTRAST_SHIFTED,
    CORPUS,
    MODEL,
    SAE_NAMES,
    SAES,
    SITE,
    WIDTHS,
    DemoPaths,
    site_of,
)
from sae_bench.demo.sae_quality import Quality, corpus_activations, quality
from sae_bench.measure.datasets.circuit_file import read_circuit
from sae_bench.model.files import tokenizer_sha256
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site

ON_DISK = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}
"Architectures that are saved as another one; the first word of an SAE's name is its architecture."


@pytest.fixture(scope="module")
def corpus() -> dict[str, torch.Tensor]:
    return load_file(CORPUS)


@pytest.fixture(scope="module")
def activations() -> dict[str, torch.Tensor]:
    """By site, on the first 128 documents: a sample of what the card was measured on."""
    return {site: corpus_activations(BUNDLED, documents=128, site=site) for site in set(map(site_of, SAE_NAMES))}


def _card_rows() -> dict[str, list[str]]:
    """Cells of the card's tables by first cell."""
    rows = [
        line.strip("| ").split(" | ") for line in CARD.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows}


def test_everything_together_is_small():
    files = [MODEL, CORPUS, CIRCUIT, CONCEPTS, CONTRAST, CONTRAST_SHIFTED, *SAES.values()]
    total = sum(p.stat().st_size for item in files for p in ([item] if item.is_file() else item.rglob("*")))
    assert total <= 30e6


def test_the_model_is_small_and_has_the_languages_vocabulary():
    config = json.loads((MODEL / "config.json").read_text())
    assert config["vocab_size"] == len(vocabulary())
    assert config["activation_function"] == "gelu_pytorch_tanh"
    weights = load_file(MODEL / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) < 2e6
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_the_tokenizer_reads_generated_text_without_unknown_words():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rng = random.Random(9)
    for _ in range(20):
        words = document(rng).words
        ids = tokenizer(" ".join(words)).input_ids
        assert ids == [vocabulary().index(word) for word in words]
    assert tokenizer.tokenize("Anna is kind.") == ["Anna", "is", "kind", "."]
    assert tokenizer.tokenize("monday MONDAY Mary mary") == ["monday", "MONDAY", "Mary", "<unk>"]


def test_the_corpus_has_its_format(corpus: dict[str, torch.Tensor]):
    tokens, lengths, cluster = corpus["tokens"], corpus["lengths"], corpus["cluster"]
    docs, longest = tokens.shape
    assert docs >= 512
    assert tokens.dtype == lengths.dtype == cluster.dtype == torch.int32
    assert int(lengths.min()) >= 64
    assert int(lengths.max()) == longest <= 128
    assert len(lengths.unique()) > 20
    assert torch.equal(cluster, torch.arange(docs, dtype=torch.int32))
    assert (tokens[:, 0] == vocabulary().index("<bos>")).all()
    exceeds_limit = torch.arange(longest) >= lengths[:, None]
    assert (tokens[exceeds_limit] == 0).all()
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < len(vocabulary())
    with safe_open(CORPUS, "pt") as file:
        metadata = file.metadata()
    assert metadata["tokenizer_sha256"] == tokenizer_sha256(MODEL)
    assert (metadata["bos"], metadata["schema"]) == ("true", "1")
    assert metadata["source"]


def test_corpus_contrast_sets_and_concepts_are_what_the_generator_makes(
    tmp_path: Path, corpus: dict[str, torch.Tensor]
):
    again = DemoPaths(tmp_path)
    (again.model).mkdir()
    (again.model / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    write_datasets.write_corpus(again)
    write_datasets.write_contrast(again)
    write_datasets.write_circuit(again)
    assert all(torch.equal(tensor, corpus[name]) for name, tensor in load_file(again.corpus).items())
    assert again.contrast.read_bytes() == CONTRAST.read_bytes()
    assert again.contrast_shifted.read_bytes() == CONTRAST_SHIFTED.read_bytes()
    write_concepts.write_concepts(again)
    assert again.concepts.read_bytes() == CONCEPTS.read_bytes()
    assert again.circuit.read_bytes() == CIRCUIT.read_bytes()


@pytest.mark.parametrize("path", [CONTRAST, CONTRAST_SHIFTED], ids=lambda path: path.stem)
def test_contrast_sets_are_balanced_and_without_repetition(path: Path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 200
    assert len({line["prompt"] for line in lines}) == len(lines)
    assert all(set(line) == {"prompt", "positive", "negative", "factors"} for line in lines)
    assert all(line["positive"] == line["factors"]["answer_position"] != line["negative"] for line in lines)
    cells = Counter(tuple(sorted(line["factors"].items())) for line in lines)
    assert len(set(cells.values())) == 1


def test_a_circuits_prompts_are_balanced_and_in_clusters_of_four():
    found = read_circuit(CIRCUIT)
    assert len(found.prompts) == 480
    assert {len(cluster.prompts) for cluster in found.clusters} == {4}
    cells = Counter(tuple(prompt.factors.values()) for prompt in found.prompts)
    assert set(cells.values()) == {48}
    for prompt in found.prompts:
        words = prompt.prompt.split()
        assert words.count(prompt.distractor) == 2
        assert words.count(prompt.answer) == 1
        first = min((words.index(prompt.answer), "ABBA"), (words.index(prompt.distractor), "BABA"))
        assert first[1] == prompt.factors["order"]


def test_the_engine_computes_what_hugging_face_computes(corpus: dict[str, torch.Tensor]):
    tokens = corpus["tokens"][:8, :64].long()
    model = GPT2LMHeadModel.from_pretrained(MODEL).eval()
    with torch.no_grad():
        plain = model(tokens, output_hidden_states=True)
    engine = load_model(str(MODEL))
    value = engine.capture(tokens, parse_site(SITE)).value
    assert (value - plain.hidden_states[2]).norm() / plain.hidden_states[2].norm() < 1e-6
    assert torch.allclose(engine.logits(tokens), plain.logits, atol=1e-3)


def test_the_model_is_as_good_as_its_card_demands():
    rows = _card_rows()

    def share(text: str) -> float:
        return float(rows[text][0])

    loss, bound = float(rows["held-out loss"][0]), float(rows["the grammar's entropy, at most"][0])
    assert loss < bound + 0.05
    assert share("indirect object") >= 0.95
    assert share("the day after or before") >= 0.95
    assert share("the month after or before") >= 0.95
    assert share("question answered by A or B") >= 0.90
    assert min(share(f"{k} days") for k in ("two", "three", "four", "five", "six")) >= 0.80


@pytest.mark.parametrize("name", SAE_NAMES)
def test_every_sae_is_in_saelens_format_with_unit_decoder_norms(name: str):
    config = json.loads((SAES[name] / "cfg.json").read_text())
    weights = load_file(SAES[name] / "sae_weights.safetensors")
    architecture = name.partition("-")[0]
    assert config["architecture"] == ON_DISK.get(architecture, architecture)
    assert config["metadata"]["hook_name"] == site_of(name)
    assert config["d_sae"] == WIDTHS.get(name, 768)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert config["metadata"]["prepend_bos"] is True
    assert config["metadata"]["model_name"] == "sae_bench.demo"
    assert weights["W_dec"].shape == (config["d_sae"], config["d_in"])
    assert torch.allclose(weights["W_dec"].norm(dim=-1), torch.ones(config["d_sae"]), atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed")
@pytest.mark.parametrize("name", SAE_NAMES)
def test_every_sae_loads_in_saelens_and_is_as_good_as_its_card_says(name: str, activations: dict[str, torch.Tensor]):
    from sae_lens import SAE

    found = quality(SAE.load_from_disk(SAES[name]), activations[site_of(name)])
    site, *cells = _card_rows()[name]
    latents, *numbers = map(float, cells)
    assert site == site_of(name)
    assert latents == load_file(SAES[name] / "sae_weights.safetensors")["W_dec"].shape[0]
    said = Quality(*numbers)
    assert found.l0 == pytest.approx(said.l0, rel=0.03)
    assert found.explained_variance == pytest.approx(said.explained_variance, abs=0.005)
    assert found.gamma_centred == pytest.approx(said.gamma_centred, abs=0.005)
    assert said.alive - 0.15 <= found.alive <= said.alive
    assert 6 <= found.l0 <= 40
    assert found.explained_variance >= 0.85
    assert said.alive >= 0.60
    if name == "standard":
        assert found.gamma_centred < 0.95
    else:
        assert abs(found.gamma_centred - 1) < 0.05


def test_the_two_topk_saes_are_different():
    first, second = (load_file(SAES[name] / "sae_weights.safetensors")["W_dec"] for name in ("topk", "topk-seed1"))
    assert not torch.allclose(first, second)
