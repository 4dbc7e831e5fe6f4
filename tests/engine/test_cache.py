"""What is kept between properties and SAEs: the same numbers with and without it, and never more than fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.engine import sae_on_site
from sae_bench.engine.batch import Batch
from sae_bench.engine.bench import Bench
from sae_bench.engine.cache import CachedCodes, CachedRows, group_documents
from sae_bench.engine.corpus import Corpus
from sae_bench.engine.settings import Settings
from sae_bench.engine.site_data import SiteData, capture_site
from sae_bench.model.language_model import Model
from sae_bench.registry.site import parse_site
from sae_bench.sae.sparse_codes import SparseCodes

SITE = parse_site("blocks.1.hook_resid_pre")


class CountingSAE:
    """Features are ReLUs of random directions; counts how often it encodes."""

    d_in, d_sae = 16, 24

    def __init__(self) -> None:
        self.W_dec = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
        self.encoded = 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.encoded += 1
        return (x @ self.W_dec.T * 0.1).relu()

    def decode(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        return codes @ self.W_dec * 0.1


def bench_of(model: Model, corpus: Corpus, data: SiteData | None = None, **options: Any) -> Bench:
    settings = Settings(**options)
    return Bench(CountingSAE(), model, corpus, data or capture_site(model, SITE, corpus, settings), settings)


def batch_of(documents: tuple[int, ...], counts: tuple[int, ...]) -> Batch:
    keep = torch.arange(5) < torch.tensor(counts)[:, None]
    found: Any = SimpleNamespace(documents=documents, lengths=tuple(count + 1 for count in counts), keep=keep)
    return found


def test_rows_come_back_for_any_group_of_the_documents() -> None:
    kept, rows = CachedRows(1 << 10), torch.arange(12.0).view(6, 2)
    assert kept.put("arm", batch_of((4, 9, 2), (3, 1, 2)), rows) is rows
    found = kept.get("arm", batch_of((2, 4), (2, 3)))
    assert found is not None
    assert torch.equal(found, rows[[4, 5, 0, 1, 2]])
    assert kept.get("arm", batch_of((2, 5), (2, 3))) is None, "document 5 was never kept"
    assert kept.get("other", batch_of((2,), (2,))) is None
    assert kept.get("arm", batch_of((4,), (2,))) is None, "cut elsewhere, a document is another one"


def test_no_more_rows_are_kept_than_fit_and_what_is_replaced_makes_room() -> None:
    kept = CachedRows(6 * 8)
    for value in (0.0, 1.0):
        kept.put("arm", batch_of((0, 1, 2), (3, 2, 3)), torch.full((8, 2), value))
        assert kept.free_bytes == 6 * 8 - 5 * 8
    found = kept.get("arm", batch_of((0, 1), (3, 2)))
    assert found is not None
    assert bool((found == 1).all())
    assert kept.get("arm", batch_of((2,), (3,))) is None


def test_rows_that_are_kept_together_are_handed_on_without_a_copy() -> None:
    kept, rows = CachedRows(1 << 10), torch.arange(12.0).view(6, 2)
    kept.put("arm", batch_of((4, 9, 2), (3, 1, 2)), rows)
    found = kept.get("arm", batch_of((9, 2), (1, 2)))
    assert found is not None
    assert torch.equal(found, rows[3:])
    assert found.data_ptr() == rows[3:].data_ptr()


def dense(document: int) -> torch.Tensor:
    return torch.tensor([[0.0, 2.0 + document], [0.0, 0.0], [-1.0, 3.0]])


@pytest.mark.parametrize(("memory", "encoded"), [(1 << 20, [0, 1, 7]), (0, [0, 1, 7] * 2)])
def test_codes_are_encoded_once_where_they_fit(memory: int, encoded: list[int]) -> None:
    asked: list[int] = []

    def encode(documents: Sequence[int]) -> list[SparseCodes]:
        asked.extend(documents)
        return [SparseCodes.from_dense(dense(document)) for document in documents]

    codes = CachedCodes(encode, [(document,) for document in range(8)], memory)
    for _ in range(2):
        assert torch.equal(codes.codes(0).dense(), dense(0))
        assert codes.codes(1).value.tolist() == [3.0, -1.0, 3.0]
        assert torch.equal(codes.codes(7).dense(), dense(7))
    assert asked == encoded


def test_codes_that_are_kept_share_pieces_of_memory() -> None:
    """One piece a document, between tensors that come and go, made a process grow to ten times what it kept."""
    codes = CachedCodes(
        lambda documents: [SparseCodes.from_dense(dense(each)) for each in documents],
        [(n,) for n in range(50)],
        1 << 20,
    )
    held = [codes.codes(document) for document in range(50)]
    assert all(torch.equal(each.dense(), dense(document)) for document, each in enumerate(held))
    assert len({each.untyped_storage().data_ptr() for codes in held for each in (codes.token, codes.feature)}) == 1
    assert len({codes.value.untyped_storage().data_ptr() for codes in held}) == 1


@pytest.mark.parametrize(("memory", "encoded"), [(1 << 20, 1), (400, 1), (0, 2)])
def test_a_document_that_shares_a_group_is_encoded_with_it(memory: int, encoded: int) -> None:
    """Where nothing may be kept, a group is still there until the next one is asked for."""
    asked: list[tuple[int, ...]] = []

    def encode(documents: Sequence[int]) -> list[SparseCodes]:
        asked.append(tuple(documents))
        return [SparseCodes.from_dense(dense(document)) for document in documents]

    codes = CachedCodes(encode, [(0, 1), (2, 3)], memory)
    for document in (1, 0, 3, 1):
        assert torch.equal(codes.codes(document).dense(), dense(document))
    assert asked.count((0, 1)) == encoded
    assert asked.count((2, 3)) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_groups_hold_every_document_once_and_are_as_large_as_asked(rows: list[int], size: int) -> None:
    groups = group_documents(rows, size)
    assert [document for group in groups for document in group] == list(range(len(rows)))
    assert all(sum(rows[document] for document in group) >= size for group in groups[:-1])
    assert all(sum(rows[document] for document in group[:-1]) < size for group in groups)
    assert group_documents(rows + [9] * 9, size)[: len(groups) - 1] == groups[:-1], (
        "a longer corpus has the same groups"
    )


def test_an_sae_is_run_over_the_corpus_once(
    tiny_model: Callable[..., Model], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_on_site, "TOKENS", 20)
    bench = bench_of(tiny_model("GPT2"), corpus)
    _ = bench.firing
    for batch in bench.batches():
        bench.codes(batch)
        bench.l0_per_token(batch)
        bench.reconstruct(batch)
    _ = bench.noise_pool().error_pool
    order = torch.argsort(corpus.lengths, stable=True)
    assert bench.sae.encoded == len(group_documents(bench.site_data.keep[order].sum(1).tolist(), 20)) > 1


def test_firing_is_that_of_dense_codes(tiny_model: Callable[..., Model], corpus: Corpus) -> None:
    bench = bench_of(tiny_model("GPT2"), corpus)
    codes = torch.cat([bench.codes(batch)[batch.keep] for batch in [bench.batch((row,)) for row in range(len(corpus))]])
    size = (codes * bench.decoder_norms).double()
    assert torch.equal(bench.firing.count, (codes != 0).sum(0))
    whole = next(iter(bench.batches()))
    assert torch.equal(bench.l0_per_token(whole), (bench.codes(whole) != 0).sum(-1))
    torch.testing.assert_close(bench.firing.total, size.abs().sum(0))
    torch.testing.assert_close(bench.firing.square, size.square().sum(0))


def test_the_clean_run_and_named_arms_are_run_once_for_all(
    tiny_model: Callable[..., Model], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second SAE of a site pays for its own arms only, and a second property for none that has been run."""
    model = tiny_model("GPT2")
    data = SiteData(model, SITE, corpus, include_bos=False, memory_bytes=1 << 24)
    data.fill()
    runs: list[int] = []
    blocks = model.logit_blocks

    def counted(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        runs.append(1)
        return blocks(*arguments, **options)

    monkeypatch.setattr(model, "logit_blocks", counted)

    def measured(bench: Bench, condition: str | None) -> dict[str, torch.Tensor]:
        def conditions(batch: Batch) -> dict[str, torch.Tensor]:
            found = bench.intervene(batch, bench.reconstruct(batch), condition=condition)
            return {"kl": found.kl, "ce": found.ce, "clean": bench.intervene(batch, None).ce}

        return bench.collect(conditions)

    first, second = (bench_of(model, corpus, data, batch_size=5) for _ in range(2))
    once = measured(first, "sae")
    assert len(runs) == 2 * 3, "three batches, clean and SAE"
    again = measured(first, "sae")
    assert len(runs) == 6, "a named arm was run twice"
    beside = measured(second, "sae")
    assert len(runs) == 9, "the second SAE ran more than its own arm"
    for name, table in once.items():
        assert torch.equal(table, again[name])
        assert torch.equal(table, beside[name])
    away = first.intervene(first.batch((0, 1)), first.batch((0, 1)).x, condition="sae", distances=True)
    assert away.logprob_distance is not None


def test_little_memory_keeps_nothing_and_changes_nothing(tiny_model: Callable[..., Model], corpus: Corpus) -> None:
    model = tiny_model("GPT2")
    found = []
    for memory in (1 << 24, 1 << 14):
        data = SiteData(model, SITE, corpus, include_bos=False, memory_bytes=memory)
        data.fill()
        bench = bench_of(model, corpus, data, batch_size=4)
        for _ in range(2):
            table = bench.collect(
                lambda batch, at=bench: {"kl": at.intervene(batch, at.reconstruct(batch), condition="sae").kl}
            )
        found.append(table["kl"])
    assert torch.equal(*found)
