"""Presets register what exists, and the published table's arms are computed; against the hub where it can be had."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.presets import gemma_scope_2b, gpt2_small_res_jb, published, sae_bench_pythia_70m
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, load_corpus
from sae_bench.engine.corpus_build import build_corpus, from_dataset
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.errors import SAEBenchError
from sae_bench.measure.datasets.concept_file import read_concepts
from sae_bench.model.language_model import Model
from sae_bench.model.load import load_model, load_tokenizer
from sae_bench.registry.site import parse_site
from sae_bench.registry.spec import SAESpec
from sae_bench.sae.files import resolve_target
from sae_bench.sae.formats import read_sae

PRESETS = (gpt2_small_res_jb, gemma_scope_2b, sae_bench_pythia_70m)
ORDER = ("norm_corrected", "sae", "isotropic", "sae_norm")
"Of the arms, from the most harmful to the least: the published finding."


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__.rpartition(".")[2])
def test_a_preset_registers_with_everything_it_needs(preset: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(id: str, **fields: Any) -> SAESpec:
        return SAESpec(id=id, **fields)

    monkeypatch.setattr(preset, "register_sae", spec)
    specs = preset.register("owt.safetensors")
    assert len({each.id for each in specs}) == len(specs) >= 3
    for each in specs:
        assert parse_site(each.site).layer == int(next(tag for tag in each.tags if tag.startswith("layer:"))[6:])
        assert each.corpus == "owt.safetensors"
        pattern = resolve_target._RELEASE if each.path.startswith("sae_lens:") else resolve_target._HUB
        assert pattern.fullmatch(each.path), each.path


def test_the_reference_case_is_what_sae_lens_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    listed = get_pretrained_saes_directory()[gpt2_small_res_jb.RELEASE]
    for layer in gpt2_small_res_jb.LAYERS:
        assert gpt2_small_res_jb.site(layer) in listed.saes_map
        assert listed.expected_l0[gpt2_small_res_jb.site(layer)] == gpt2_small_res_jb.L0[layer]
    asked = listed.config_overrides["model_from_pretrained_kwargs"]
    assert asked == gpt2_small_res_jb.PROCESSING
    folders = set(get_pretrained_saes_directory()["gemma-scope-2b-pt-res-canonical"].saes_map.values())
    assert set(gemma_scope_2b.FOLDERS.values()) <= folders


def test_the_arms_of_the_published_table(real_assets: Path) -> None:
    model, corpus = load_model(str(real_assets / "model")), load_corpus(real_assets / "eval_tokens.safetensors").take(8)
    data = capture_site(model, parse_site("blocks.3.hook_resid_pre"), corpus, Settings(), include_bos=True)
    sae = read_sae(str(real_assets / "saes" / "standard-l3"))
    bench = Bench(sae, model, corpus, data, Settings(), include_bos=True)
    tables = published.substitutions(bench)
    assert set(tables) == {*published.LAYER_6, "clean_ce"}
    found = published.means(bench, tables)
    assert all(value > 0 for value in found.values())
    assert found["sae_norm"] < min(value for name, value in found.items() if name != "sae_norm")


def test_the_golden_sets_of_features_are_those_of_the_file_of_cycles(real_assets: Path) -> None:
    found = {cycle.name: cycle for cycle in read_concepts(gpt2_small_res_jb.CONCEPTS).cycles}
    assert {name: len(cycle.classes) for name, cycle in found.items()} == {"days": 7, "months": 12}
    for name, cycle in found.items():
        assert cycle.features == {"gpt2-small-res-jb/7": gpt2_small_res_jb.CYCLES[name]}
    assert set(gpt2_small_res_jb.CYCLES) == set(published.CYCLE_COSINES)
    assert [len(each) for each in gpt2_small_res_jb.CYCLES.values()] == [9, 16, 10]


def test_the_mean_pairwise_cosine_is_over_all_pairs(real_assets: Path) -> None:
    sae = read_sae(str(real_assets / "saes" / "standard-l3"))
    rows = sae.W_dec[[3, 5, 9]].double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    pairs = [float(rows[a] @ rows[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert published.mean_pairwise_cosine(sae, [3, 5, 9]) == pytest.approx(sum(pairs) / 3, abs=1e-6)


# Against the hub


@pytest.fixture(scope="module")
def reference() -> tuple[Model, Corpus]:
    """GPT-2 small and 64 sequences of OpenWebText, where both can be had."""
    try:
        model = load_model(gpt2_small_res_jb.MODEL, kwargs=gpt2_small_res_jb.PROCESSING)
        tokenizer, sha256 = load_tokenizer(gpt2_small_res_jb.MODEL)
        rows = from_dataset(gpt2_small_res_jb.DATASET, "text", "train", None, 2000)
        texts = (row for row in rows if len(row.text) > 1000)
        whole = build_corpus(
            texts, tokenizer, length=128, bos=True, source="OpenWebText", tokenizer_sha256=sha256, documents=96
        )
    except SAEBenchError as error:
        pytest.skip(f"the hub cannot be reached: {error}")
    return model, whole


def bench_of(reference: tuple[Model, Corpus], layer: int) -> Bench:
    model, corpus = reference
    place = gpt2_small_res_jb.site(layer)
    try:
        sae = read_sae(f"sae_lens:{gpt2_small_res_jb.RELEASE}/{place}")
    except SAEBenchError as error:
        pytest.skip(f"the hub cannot be reached: {error}")
    data = capture_site(model, parse_site(place), corpus, Settings(), include_bos=True)
    return Bench(sae, model, corpus, data, Settings(), include_bos=True)


@pytest.mark.hub
def test_layer_6_is_as_published(reference: tuple[Model, Corpus]) -> None:
    bench = bench_of(reference, 6)
    tables = published.substitutions(bench)
    found = published.means(bench, tables)
    assert found["clean_ce"] == pytest.approx(published.CLEAN_CE[1], rel=0.05)
    # Other text of the same kind: 5% on the KL of the SAE, and the ratio within the published band.
    assert found["sae"] == pytest.approx(published.LAYER_6["sae"], rel=0.05)
    assert 2.4 <= found["sae"] / found["isotropic"] <= 2.65
    assert sorted(ORDER, key=lambda name: -found[name]) == list(ORDER)
    assert found["sae"] > 2 * max(found["theta_sae_norm"], found["theta_true_norm"])
    for name, due in published.LAYER_6_AT_BOS.items():
        at_bos = tables[name][:, 0]
        assert float(at_bos.max() - at_bos.min()) < 1e-5, name
        assert float(at_bos.mean()) == pytest.approx(due, rel=0.02), name


@pytest.mark.hub
@pytest.mark.parametrize("cycle", list(published.CYCLE_COSINES))
def test_features_of_days_months_and_years_point_alike(cycle: str) -> None:
    """Weights only: it fails where the loader turns or permutes the decoder."""
    try:
        sae = read_sae(f"sae_lens:{gpt2_small_res_jb.RELEASE}/{gpt2_small_res_jb.site(gpt2_small_res_jb.CYCLE_LAYER)}")
    except SAEBenchError as error:
        pytest.skip(f"the hub cannot be reached: {error}")
    found = published.mean_pairwise_cosine(sae, gpt2_small_res_jb.CYCLES[cycle])
    assert found == pytest.approx(published.CYCLE_COSINES[cycle], abs=0.02)
    others = [index + 1 for index in gpt2_small_res_jb.CYCLES[cycle]]
    assert abs(published.mean_pairwise_cosine(sae, others)) < 0.1


@pytest.mark.hub
@pytest.mark.parametrize("layer", gpt2_small_res_jb.LAYERS)
def test_every_layer_is_two_to_four_and_a_half_times_worse_than_noise(
    reference: tuple[Model, Corpus], layer: int
) -> None:
    bench = bench_of(reference, layer)
    found = published.means(bench, published.substitutions(bench))
    assert 2.0 <= found["sae"] / found["isotropic"] <= 4.5
    codes = [(bench.codes(batch)[batch.keep] != 0).sum(-1).double() for batch in bench.batches()]
    l0 = float(sum(each.sum() for each in codes)) / sum(len(each) for each in codes)
    assert l0 == pytest.approx(gpt2_small_res_jb.L0[layer], rel=0.15)
