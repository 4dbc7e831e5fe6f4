"""`tokens`: planted types are found, noise is not mistaken for them, and the table is the one `kl_gap` has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sae_bench.engine.bench import Bench
from sae_bench.measure.arrays import Floats
from sae_bench.measure.measurement import Undefined
from sae_bench.measure.properties import load_property
from sae_bench.measure.properties.tokens import FALSE_DISCOVERIES, PROPERTY, compare_types
from sae_bench.measure.shared.token_type_gaps import TOKEN_GAP
from sae_bench.measure.uncertainty import standard_error

CLUSTERS, TYPES, EACH = 60, 40, 3


def simulated(seed: int, effects: Floats, shared: float = 0.0) -> tuple[Floats, ...]:
    """Totals, counts, sums and counts by type: ``EACH`` tokens of each type in a document, documents with a mood."""
    rng = np.random.default_rng(seed)
    mood = shared * rng.normal(size=(CLUSTERS, 1, 1))
    tokens = 1 + effects[None, :, None] + mood + rng.exponential(size=(CLUSTERS, TYPES, EACH)) - 1
    sums, counts = tokens.sum(2), np.full((CLUSTERS, TYPES), float(EACH))
    return sums.sum(1), counts.sum(1), sums, counts


def test_planted_types_are_found() -> None:
    effects = np.zeros(TYPES)
    effects[:4] = 1.0, -1.0, 1.0, -1.0
    found = compare_types(*simulated(0, effects, shared=0.5), np.arange(TYPES))
    assert set(np.flatnonzero(found.adjusted_p() < FALSE_DISCOVERIES)) == {0, 1, 2, 3}
    assert found.between == pytest.approx(np.var(effects), rel=0.2)


def test_shrunk_gaps_are_nearer_to_the_truth() -> None:
    effects = 0.07 * np.random.default_rng(1).normal(size=TYPES)
    raw, shrunk = [], []
    for seed in range(30):
        found = compare_types(*simulated(seed, effects, shared=0.5), np.arange(TYPES))
        raw.append(np.square(found.gap - found.mean - effects + effects.mean()).sum())
        shrunk.append(np.square(found.shrunk - found.mean - effects + effects.mean()).sum())
    assert np.mean(shrunk) < 0.75 * np.mean(raw)


def test_without_types_that_differ_nothing_is_found() -> None:
    """Of 200 simulations at most 5% plus its error may name any type; the spread is noise on average."""
    discoveries, between = [], []
    for seed in range(200):
        found = compare_types(*simulated(seed, np.zeros(TYPES), shared=0.5), np.arange(TYPES))
        discoveries.append(bool((found.adjusted_p() < FALSE_DISCOVERIES).any()))
        between.append(1 - np.mean(found.error**2) / found.spread)
    assert np.mean(discoveries) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    # The mean of 1 - 1/F with TYPES - 1 degrees of freedom is slightly below 0.
    assert np.mean(between) == pytest.approx(-2 / (TYPES - 3), abs=0.03)


def test_errors_of_types_are_those_of_repeated_documents() -> None:
    runs = [compare_types(*simulated(seed, np.zeros(TYPES), shared=0.5), np.arange(TYPES)) for seed in range(200)]
    spread = np.std([found.gap - found.mean for found in runs], axis=0)
    assert np.mean([found.error for found in runs], axis=0).mean() == pytest.approx(spread.mean(), rel=0.1)


def test_the_table_is_that_of_kl_gap(demo_bench: Callable[..., Bench]) -> None:
    alone = demo_bench()
    estimates = PROPERTY.measure(alone).estimates
    together = demo_bench()
    kl_gap = load_property("kl_gap").measure(together).estimates
    torch.testing.assert_close(
        alone.shared(TOKEN_GAP, lambda: torch.zeros(0)), together.shared(TOKEN_GAP, lambda: torch.zeros(0))
    )
    assert estimates["gap"].value == pytest.approx(kl_gap["kl_sae"].value - kl_gap["kl_isotropic"].value)


def test_a_type_that_the_sae_fails_on_is_named(demo_bench: Callable[..., Bench]) -> None:
    bench = demo_bench(documents=64)
    tokens = bench.corpus.tokens[:64]
    ids, counts = tokens[bench.keep].unique(return_counts=True)
    planted = int(ids[counts.argsort(descending=True)[5]])
    noise = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bench.shared(TOKEN_GAP, lambda: (noise + (tokens == planted)) * bench.keep)
    found = PROPERTY.measure(bench)
    table = found.series["token_types"].columns
    assert table["token"][0] == bench.token_text(planted)
    assert [q < FALSE_DISCOVERIES for q in table["q"]].count(True) <= 3
    share = found.estimates["between_types_share"]
    assert share.value > 0.5
    assert 0 < standard_error(share) < 0.3
    assert found.estimates["largest_gap"].value == pytest.approx(1.5, abs=0.15)
    assert "1 of" in found.notes[0] or "2 of" in found.notes[0]


def test_a_corpus_without_frequent_types_has_no_spread(demo_bench: Callable[..., Bench]) -> None:
    found = PROPERTY.measure(demo_bench(documents=1)).estimates
    assert isinstance(found["between_types_share"], Undefined)
    assert found["types"].value == 0
