"""`concepts` on the demo: what is there is found, what an SAE loses is seen, words without a meaning are chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sae_bench.demo.language.vocabulary import vocabulary
from sae_bench.demo.paths import CONCEPTS, CORPUS, MODEL, SAES, SITE
from sae_bench.engine.batch import RelatedInputs
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import load_corpus
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import capture_site
from sae_bench.errors import LoadError
from sae_bench.judge.judge import judge
from sae_bench.judge.limits import parse_rule
from sae_bench.judge.verdicts import AcceptedProperty, Verdict
from sae_bench.measure.datasets.concept_tokens import ConceptTokens
from sae_bench.measure.measurement import Accepted, Measurement, Undefined
from sae_bench.measure.properties.concepts import METRICS, PROPERTY, measure
from sae_bench.measure.properties.concepts.concepts_at_site import measure_at_site, measure_in_embedding
from sae_bench.measure.properties.concepts.concepts_in_sae import random_cosine
from sae_bench.measure.properties.concepts.occurrences import BOTH_HALVES, locate_concepts, split_words
from sae_bench.measure.properties.concepts.series import p_value
from sae_bench.measure.uncertainty import standard_error
from sae_bench.model.load import load_model
from sae_bench.registry.site import parse_site
from sae_bench.sae import controls
from sae_bench.sae.formats import read_sae


@cache
def bench(
    change: Callable[[Any], Any] | None = None, concepts: str | None = str(CONCEPTS), tier: str = "smoke"
) -> Bench:
    model, corpus, site = load_model(str(MODEL)), load_corpus(CORPUS), parse_site(SITE)
    settings = Settings(tier=TIERS[tier])
    sae = read_sae(str(SAES["topk"]))
    data = capture_site(model, site, corpus, settings)
    return Bench(
        sae if change is None else change(sae), model, corpus, data, settings, related=RelatedInputs(concepts=concepts)
    )


@pytest.fixture(scope="module")
def sound() -> Measurement:
    return measure(bench())


def table(found: Measurement) -> dict[str, dict[str, Any]]:
    """Rows of the table of concepts, by concept."""
    columns = found.series["concepts"].columns
    return {name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(columns["concept"])}


def identity(sae: Any) -> Any:
    return controls.identity(sae.d_in)


def test_upper_case_is_a_direction_of_the_demo(sound: Measurement) -> None:
    found = sound.estimates["upper_case_auroc"]
    assert found.value >= 0.95
    error = standard_error(found)
    assert error is not None
    assert found.value - 2.4 * error >= 0.95
    assert sound.estimates["upper_case_embedding_auroc"].value >= 0.95
    assert table(sound)["upper_case"]["p"] == table(sound)["upper_case"]["embedding_p"] == pytest.approx(1 / 51)


def test_what_the_language_means_is_found_by_words_and_by_places(sound: Measurement) -> None:
    rows = table(sound)
    assert list(rows) == [
        "upper_case",
        "weekday",
        "name",
        "plural",
        "praise",
        "praised_before",
        "plural_subject_before",
    ]
    directions = ("upper_case", "name", "plural", "praised_before", "plural_subject_before")
    assert [rows[name]["p"] for name in directions] == pytest.approx([1 / 51] * 5)
    assert all(rows[name]["site"] > rows[name]["null_95"] for name in directions)
    # Seven days, and adjectives of praise, do not tell about the other half of their words at this site.
    assert all(row["embedding_p"] == pytest.approx(1 / 51) for row in rows.values() if row["embedding"] is not None)
    assert rows["praised_before"]["site"] > 0.99
    assert rows["plural"]["feature_auroc"] > 0.99
    assert {metric.name for metric in METRICS} == set(sound.estimates)
    assert not any(isinstance(found, Undefined) for found in sound.estimates.values())


def test_floors_are_chance(sound: Measurement) -> None:
    for name in ("floor_auroc", "floor_embedding_auroc"):
        assert sound.estimates[name].value == pytest.approx(0.5, abs=0.03)
    assert sound.estimates["best_cosine"].value > sound.estimates["floor_best_cosine"].value


def test_the_largest_cosine_with_random_rows_is_known() -> None:
    """The signed one of twice as many rows: definitions.md has .1516 for 49,152."""
    assert random_cosine(24_576, 768) == pytest.approx(0.1516, abs=3e-4)
    drawn = np.random.default_rng(0).normal(size=(400, 50, 20))
    cosines = np.abs(drawn[..., 0]) / np.linalg.norm(drawn, axis=-1)
    assert random_cosine(50, 20) == pytest.approx(cosines.max(1).mean(), abs=0.01)


def test_words_without_a_meaning_are_chance(tmp_path: Path) -> None:
    """Words dealt to two classes at random."""
    dealt = np.random.default_rng(0).permutation(lower_case()).tolist()
    path = tmp_path / "made_up.toml"
    path.write_text(f"[[concept]]\nname = 'nothing'\npositive = {dealt[::2]}\nnegative = {dealt[1::2]}\n")
    made_up = bench(concepts=str(path))
    site = next(site for site in measure_at_site(made_up, locate_concepts(made_up)) if site.positions.name == "nothing")
    assert site.positions.positive.sum() == (~site.positions.positive).sum() == 400
    assert p_value(site.auroc.value, site.permuted_auroc) > 0.05
    assert site.permuted_auroc.mean() == pytest.approx(0.5, abs=0.05)
    assert site.ccs is not None
    assert site.ccs.auroc.value == pytest.approx(0.5, abs=0.15)


def lower_case() -> list[str]:
    return sorted({word for word in vocabulary() if word.islower() and word.isalpha()})


def test_p_is_uniform_where_words_are_dealt_at_random() -> None:
    """In the demo's own embedding, whose neighbours are related: "boat" and "boats", "monday" and "tuesday"."""
    words, found = list(vocabulary()), []
    ids = np.array([words.index(word) for word in lower_case()])
    for seed in range(100):
        dealt = np.random.default_rng(seed).permutation(ids).tolist()
        sets = ConceptTokens(tuple(sorted(dealt[::2])), tuple(sorted(dealt[1::2])))
        placed = SimpleNamespace(tokens=sets, token_half=split_words(sets, len(words), seed))
        found.append(measure_in_embedding(bench(), placed, 39))  # type: ignore[arg-type]
    p = np.array([p_value(each.value, each.permuted) for each in found if each is not None])
    assert len(p) == 100
    assert kstest(p, "uniform").pvalue > 0.001
    assert np.mean(p <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


def test_the_identity_keeps_every_concept() -> None:
    found = measure(bench(identity))
    for name in ("auroc_change", "worst_auroc_change", "upper_case_auroc_change", "search_change"):
        assert found.estimates[name].value == 0
        assert standard_error(found.estimates[name]) == 0
    assert found.estimates["probe_reconstruction_5"].value == found.estimates["probe_x_5"].value
    assert found.estimates["search_error"].value == 0.5


def without_upper_case(sae: Any) -> Any:
    """An identity that writes how far into the document a token stands along both halves' directions of upper case."""
    sites = measure_at_site(bench(), locate_concepts(bench()))
    site = next(site for site in sites if site.positions.name == "upper_case")
    basis = np.linalg.qr(np.column_stack([reader.weights for reader in site.direction_probes]))[0]
    made = controls.identity(sae.d_in)
    rows = bench().site_data.rows[bench().site_data.kept_positions]
    largest = torch.pca_lowrank(rows, 1)[2][:, 0].double().numpy()
    kept = np.eye(sae.d_in) - basis @ basis.T + np.outer(largest, basis.sum(1))
    return replace(made, W_dec=made.W_dec @ torch.tensor(kept, dtype=torch.float32))


@pytest.fixture(scope="module")
def blind() -> Measurement:
    return measure(bench(without_upper_case))


def test_a_concept_that_the_sae_leaves_out_is_named(blind: Measurement) -> None:
    assert blind.estimates["upper_case_auroc_change"].value < -0.4
    assert blind.estimates["worst_auroc_change"].value == blind.estimates["upper_case_auroc_change"].value
    rows = table(blind)
    assert rows["upper_case"]["reconstruction"] == pytest.approx(0.5, abs=0.15)
    assert abs(rows["praised_before"]["change"]) < 0.05
    assert rows["name"]["change"] > -0.1


def test_losing_a_concept_fails_against_the_accepted_report(sound: Measurement, blind: Measurement) -> None:
    rules = [parse_rule(f"concepts.{limit}", "property") for limit in PROPERTY.limits]
    held = {
        name: Accepted(estimate.value, estimate, sound.clusters, 1)
        for name, estimate in sound.estimates.items()
        if name.endswith("auroc_change")
    }
    accepted = AcceptedProperty(metrics=held, context={})
    verdicts = [
        judge("concepts", METRICS, PROPERTY.primary_metric, found, accepted, sae="x", rules=rules, context={}).verdict
        for found in (sound, blind)
    ]
    assert verdicts == [Verdict.PASS, Verdict.FAIL]


def test_every_tier_speaks_of_the_same_places(sound: Measurement) -> None:
    found = locate_concepts(bench(tier="full"))
    assert found.clusters == sound.clusters
    assert [placed.place for placed in found.concepts] == [placed.place for placed in locate_concepts(bench()).concepts]


def test_other_batches_give_the_same_numbers(sound: Measurement) -> None:
    given = bench()
    again = replace(given, settings=replace(given.settings, batch_size=3, order_seed=5))
    assert {name: each.value for name, each in measure(again).estimates.items()} == {
        name: each.value for name, each in sound.estimates.items()
    }


def test_halves_share_neither_a_document_nor_a_word() -> None:
    found = locate_concepts(bench())
    assert not found.missing
    for placed in found.concepts:
        first, second = (placed.half == half for half in (0, 1))
        assert not set(placed.cluster[first]) & set(placed.cluster[second])
        if placed.tokens is not None:
            assert not set(placed.unit[first]) & set(placed.unit[second])
            tokens = bench().corpus.tokens[placed.document, placed.position].numpy()
            assert (placed.unit == tokens).all()
            assert set(tokens[placed.positive]) <= set(placed.tokens.positive)
            assert set(tokens[~placed.positive]) <= set(placed.tokens.negative)
        assert bench().site_data.keep[placed.document, placed.position].all()
        _, counts = np.unique(2 * placed.only_scored.document + placed.only_scored.positive, return_counts=True)
        assert counts.max() <= 4


def test_words_of_a_pair_share_a_half_and_a_single_word_is_in_both() -> None:
    for seed in range(5):
        half = split_words(ConceptTokens((1, 2, 5), (3, 4, 6), ((1, 3), (2, 4))), 8, seed)
        assert half[1] == half[3] != half[2] == half[4]
        assert half[[0, 7]].tolist() == [-1, -1]
        assert set(half[5:7]) <= {0, 1}
    assert sorted(split_words(ConceptTokens((1,), (2, 3)), 4, 0).tolist()) == [-1, 0, 1, BOTH_HALVES]


def test_series_are_small(sound: Measurement) -> None:
    import json

    assert len(json.dumps([dict(series.columns) for series in sound.series.values()])) < 10_000
    curves = sound.series["search"].columns
    assert curves["x"] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    assert curves["x, rho 0"][0] > curves["x, rho 0.9"][-1]


def test_without_a_file_upper_case_is_measured(sound: Measurement) -> None:
    found = measure(bench(concepts=None))
    assert found.estimates["concepts"].value == 1
    assert found.estimates["upper_case_auroc"].value == sound.estimates["upper_case_auroc"].value
    assert found.settings != sound.settings


class Mute:
    """A bench whose model came without a tokenizer."""

    def __init__(self, given: Bench) -> None:
        self.__dict__ = dict(given.__dict__)
        self.model = type("Model", (), {"tokenizer": None, "d_vocab": given.model.d_vocab, "name": "mute"})()
        self.site_data = type("Site", (), {"shared": staticmethod(lambda key, compute: compute())})()


def test_without_a_tokenizer_and_positions_nothing_can_be_measured() -> None:
    mute: Any = Mute(bench(concepts=None))
    found = measure(mute).estimates
    assert set(found) == {metric.name for metric in METRICS}
    for each in found.values():
        assert isinstance(each, Undefined)
        assert "'mute' came without a tokenizer" in each.full_reason
        assert "concepts='concepts.toml'" in each.reason


PLACES = "[[concept]]\nname = 'x'\ncorpus = '{}'\npositive = [[0, 5], {}]\nnegative = [[1, 5]]\n"


@pytest.mark.parametrize(
    ("corpus", "place", "says"),
    [
        ("000000000000", "[2, 5]", "positions of corpus 000000000000, but this one is"),
        (None, "[2, 500]", "position 500 of document 2, which the corpus does not have"),
        (None, "[9000, 5]", "position 5 of document 9000"),
    ],
)
def test_positions_elsewhere_are_an_error(tmp_path: Path, corpus: str | None, place: str, says: str) -> None:
    path = tmp_path / "places.toml"
    path.write_text(PLACES.format(corpus or bench().corpus.sha256[:12], place))
    with pytest.raises(LoadError, match=says):
        measure(bench(concepts=str(path)))


def test_a_concept_that_stands_nowhere_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "places.toml"
    path.write_text(PLACES.format(bench().corpus.sha256[:12], "[2, 5]"))
    found = measure(bench(concepts=str(path)))
    assert found.estimates["concepts"].value == 1
    assert "concept 'x' is left out: positions that have it are in 2 documents of one half" in found.notes[0]
