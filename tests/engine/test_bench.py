"""The bench: its numbers are those of a naive computation and do not depend on batches, order or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_bench.engine import site_data as site_data_module
from sae_bench.engine.batch import Batch, whole_cluster_prefix
from sae_bench.engine.bench import Bench
from sae_bench.engine.corpus import Corpus, from_documents
from sae_bench.engine.noise_floors import noise_floors
from sae_bench.engine.settings import TIERS, Settings
from sae_bench.engine.site_data import SiteData, capture_site
from sae_bench.errors import LoadError, MeasurementError
from sae_bench.model.language_model import Model
from sae_bench.registry.site import Site, parse_site

SITE = parse_site("blocks.1.hook_resid_pre")


@dataclass
class TinySAE:
    """A random JumpReLU autoencoder of 16 dimensions."""

    W_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: float = 0.3
    d_in: int = 16
    d_sae: int = 40

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        codes = (x - self.b_dec) @ self.W_enc
        return codes * (codes > self.threshold)

    def decode(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        assert like is not None
        return codes @ self.W_dec + self.b_dec


@pytest.fixture(scope="module")
def sae() -> TinySAE:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(40, 16, generator=generator)
    decoder /= decoder.norm(dim=-1, keepdim=True)
    return TinySAE(decoder.T * 0.4, decoder, torch.randn(16, generator=generator) * 0.1)


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_data_module, "_cache", type(site_data_module._cache)())


Make = Callable[..., Bench]


@pytest.fixture(scope="module")
def make(tiny_model: Callable[..., Model], sae: TinySAE, corpus: Corpus) -> Make:
    def get(
        *, of: Corpus = corpus, sae: Any = sae, site: Site = SITE, architecture: str = "GPT2", **changes: Any
    ) -> Bench:
        include_bos = changes.pop("include_bos", False)
        chosen = Settings(**changes)
        model = tiny_model(architecture)
        data = capture_site(model, site, of, chosen, include_bos)
        return Bench(sae, model, of, data, chosen, include_bos=include_bos)

    return get


def everything(bench: Bench, draws: int = 1) -> dict[str, torch.Tensor]:
    """Every arm's KL and CE, and the SAE's own quantities."""

    def conditions(batch: Batch) -> dict[str, torch.Tensor]:
        x, error = batch.x, bench.error(batch)
        clean, replaced = bench.intervene(batch, None), bench.intervene(batch, bench.reconstruct(batch))
        found = {"ce_clean": clean.ce, "kl_sae": replaced.kl, "ce_sae": replaced.ce}
        found["l0"] = (bench.codes(batch) != 0).sum(-1)
        found["squares"] = error.double().square().sum(-1)
        for floor in noise_floors():
            name = floor.name
            for index in range(draws):
                value = floor.replacement(x, error, bench.noise_pool(), bench.draw(batch, name, index))
                outcome = bench.intervene(batch, value)
                found[f"kl_{name}_{index}"], found[f"ce_{name}_{index}"] = outcome.kl, outcome.ce
        return found

    return bench.collect(conditions)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=rtol, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(left[name].sum(), right[name].sum(), rtol=rtol, atol=0.0)


@pytest.fixture(scope="module")
def reference(make: Make) -> dict[str, torch.Tensor]:
    return everything(make(batch_size=64))


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"batch_size": 7}, {"order_seed": 5}, {"order_seed": 6, "batch_size": 3}],
    ids=["one", "seven", "shuffled", "shuffled_threes"],
)
def test_batches_and_their_order_do_not_matter(
    make: Make, reference: dict[str, torch.Tensor], changes: dict[str, int]
) -> None:
    found = everything(make(**changes))
    assert_same(found, reference)
    assert torch.equal(found["l0"], reference["l0"]), "codes depend on the batch"
    assert torch.equal(found["squares"], reference["squares"])


def test_little_memory_gives_the_same(make: Make, reference: dict[str, torch.Tensor], fresh_cache: None) -> None:
    bench = make(memory_bytes=30_000)
    mapped = bench.site_data.tensors
    assert mapped._folder is not None
    assert mapped._folder.is_dir(), "nothing was written to disk"
    assert max(len(batch.documents) for batch in bench.batches()) < 14
    assert_same(everything(bench), reference)


def test_no_slice_exceeds_the_budget(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make(memory_bytes=60_000)
    most = []
    blocks = bench.model.logit_blocks

    def watch(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        for logits in blocks(*arguments, **options):
            most.append(logits.numel() * 4)
            yield logits

    monkeypatch.setattr(bench.model, "logit_blocks", watch)
    bench.collect(lambda batch: {"kl": bench.intervene(batch, bench.reconstruct(batch)).kl})
    assert 0 < max(most) <= 60_000 // 8
    assert len(most) > 4


def test_a_document_measures_the_same_alone(make: Make, corpus: Corpus, reference: dict[str, torch.Tensor]) -> None:
    for document in (0, 1, 3, 9):
        length = int(corpus.lengths[document])
        alone = from_documents([corpus.tokens[document, :length].tolist()], has_bos=True)
        found = everything(make(of=alone)) if length > 3 else {}
        for name in {"ce_clean", "kl_sae", "ce_sae", "l0", "squares", "kl_isotropic_0"} & set(found):
            if name == "kl_isotropic_0" and document:
                continue  # drawn by the document's number in its corpus
            torch.testing.assert_close(found[name][0], reference[name][document, :length], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("architecture", ["GPT2", "Gemma2"])
@pytest.mark.parametrize("kind", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "attn.hook_z"])
def test_outcomes_equal_a_naive_computation(
    make: Make, corpus: Corpus, sae: TinySAE, architecture: str, kind: str
) -> None:
    site = Site(1, kind)
    width = 24 if (architecture, kind) == ("Gemma2", "attn.hook_z") else 16
    fitting = sae if width == 16 else TinySAE(torch.randn(24, 40), torch.randn(40, 24), torch.zeros(24), d_in=24)
    bench = make(site=site, sae=fitting, architecture=architecture)
    kl, ce, ce_clean = [], [], []
    for row, length in zip(corpus.tokens, corpus.lengths, strict=True):
        tokens = row[None, :length]

        def swap(value: torch.Tensor, hook: Any) -> torch.Tensor:
            flat = value.reshape(*value.shape[:2], -1).clone()
            flat[:, 1:] = fitting.decode(fitting.encode(flat[:, 1:]), like=flat)
            return flat.view(value.shape)

        clean = bench.model.logits(tokens)[0].double().log_softmax(-1)
        changed = bench.model.bridge.run_with_hooks(tokens, fwd_hooks=[(str(site), swap)])[0].detach()
        changed = changed.double().log_softmax(-1)
        kl += (clean.exp() * (clean - changed)).sum(-1)[1:].tolist()
        ce += [-changed[at, tokens[0, at + 1]].item() for at in range(1, length - 1)]
        ce_clean += [-clean[at, tokens[0, at + 1]].item() for at in range(1, length - 1)]

    def measured(batch: Batch) -> dict[str, torch.Tensor]:
        found = bench.intervene(batch, bench.reconstruct(batch))
        return {"kl": found.kl, "ce": found.ce, "ce_clean": bench.intervene(batch, None).ce}

    tables = bench.collect(measured)
    np.testing.assert_allclose(tables["kl"][bench.keep], kl, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(tables["ce"][bench.keep_ce], ce, rtol=1e-5)
    np.testing.assert_allclose(tables["ce_clean"][bench.keep_ce], ce_clean, rtol=1e-5)
    assert not tables["kl"][~bench.keep].any()
    assert not tables["ce"][~bench.keep_ce].any()


def test_positions(make: Make) -> None:
    bench, with_bos = make(), make(include_bos=True)
    document = 1
    assert bench.keep[document].nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert bench.keep_ce[document].nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    assert with_bos.keep[document].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert with_bos.keep_ce[document].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert not bench.keep_ce[3].any(), "a document of BOS and one token has nothing to predict behind BOS"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 1.0, 100.0]))
def test_kl_is_not_negative_and_zero_for_x_itself(
    tiny_model: Callable[..., Model], sae: TinySAE, corpus: Corpus, seed: int, scale: float
) -> None:
    model, chosen = tiny_model("GPT2"), Settings()
    bench = Bench(sae, model, corpus, capture_site(model, SITE, corpus, chosen), chosen)
    batch = bench.batch((0, 1, 2, 3))
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(seed))
    moved = bench.intervene(batch, batch.x + scale * noise)
    assert bool((moved.kl >= -1e-6).all())
    at_bos = torch.where(batch.keep[..., None], batch.x, batch.x + 50 * noise)
    for same in (batch.x, at_bos):
        unmoved = bench.intervene(batch, same)
        assert not unmoved.kl.any()
        assert torch.equal(unmoved.ce, bench.intervene(batch, None).ce)


def test_the_distances_asked_for_are_those_of_the_distributions(make: Make) -> None:
    bench = make()
    batch = next(bench.batches())
    found = bench.intervene(batch, -batch.x, distances=True)
    assert found.logprob_distance is not None
    assert found.total_variation is not None
    clean, now = bench.log_probs(batch).double(), bench.log_probs(batch, -batch.x).double()
    torch.testing.assert_close(
        found.total_variation[batch.keep], (clean.exp() - now.exp()).clamp(min=0).sum(-1).float()
    )
    torch.testing.assert_close(found.logprob_distance[batch.keep], (clean - now).square().sum(-1).sqrt().float())
    assert not found.total_variation[~batch.keep].any()
    still = bench.intervene(batch, None, distances=True)
    assert still.total_variation is not None
    assert not still.total_variation.any()
    assert bench.intervene(batch, -batch.x).total_variation is None


def test_kl_survives_where_probabilities_vanish(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    blocks = bench.model.logit_blocks
    monkeypatch.setattr(
        bench.model,
        "logit_blocks",
        lambda *arguments, **options: (400 * logits for logits in blocks(*arguments, **options)),
    )
    batch = next(bench.batches())
    found = bench.intervene(batch, -batch.x)
    assert bool(torch.isfinite(found.kl).all())
    assert found.kl.max() > 100
    moved = bench.intervene(batch, -batch.x, distances=True).total_variation
    assert moved is not None
    assert bool(((moved >= 0) & (moved <= 1 + 1e-5)).all())
    assert moved.max() > 0.99


def test_log_probs_of_chosen_positions(make: Make) -> None:
    bench = make()
    batch = bench.batch((4, 0, 3), stop=6)
    assert batch.lengths == (6, 6, 2)
    assert batch.tokens.shape == (3, 6)
    last = torch.zeros_like(batch.keep)
    for row, length in enumerate(batch.lengths):
        last[row, length - 1] = True
    found = bench.log_probs(batch, where=last)
    full = bench.model.logits(batch.tokens).log_softmax(-1)
    torch.testing.assert_close(found, full[last], rtol=1e-5, atol=1e-5)
    assert bench.log_probs(batch).shape == (int(batch.keep.sum()), bench.model.d_vocab)


def test_a_tier_is_a_prefix_of_the_next(make: Make) -> None:
    small, large = make(documents=5, batch_size=2), make(batch_size=2)
    assert small.n_documents == 3, "document 5 would cut the text of documents 3 to 5"
    assert large.n_documents == 14
    first, second = everything(small), everything(large)
    for name, table in first.items():
        torch.testing.assert_close(table, second[name][:3], atol=1e-6, rtol=1e-5, msg=lambda said, name=name: name)
    assert torch.equal(small.noise_pool().covariance, large.noise_pool().covariance)
    assert torch.equal(small.noise_pool().error_pool, large.noise_pool().error_pool)
    assert [tier.documents for tier in TIERS.values()] == [64, 256, None]


def test_tiers_share_their_batches_so_that_their_numbers_are_the_same_to_the_last_bit(make: Make) -> None:
    """Batches are made of documents of similar length, but only among those that a smaller tier has too."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 20, (150,), generator=generator).tolist()
    documents = [[0, *torch.randint(2, 61, (n - 1,), generator=generator).tolist()] for n in lengths]
    many = from_documents(documents, has_bos=True, source="random")
    smoke, larger = make(of=many, tier=TIERS["smoke"]), make(of=many)
    batches = [batch.documents for batch in smoke.batches()]
    assert [batch.documents for batch in larger.batches()][: len(batches)] == batches
    assert sorted(document for batch in batches for document in batch) == list(range(64))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert max(spread) < max(lengths) - min(lengths)
    first, second = everything(smoke), everything(larger)
    for name, table in first.items():
        assert torch.equal(table, second[name][:64]), name


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 14))
def test_no_cluster_is_cut(cluster: list[int], limit: int) -> None:
    count = whole_cluster_prefix(tuple(cluster), limit)
    assert 1 <= count <= len(cluster)
    assert not set(cluster[:count]) & set(cluster[count:])
    if count < min(limit, len(cluster)):
        for longer in range(count + 1, min(limit, len(cluster)) + 1):
            assert set(cluster[:longer]) & set(cluster[longer:]), "a longer prefix would have done"


def test_sums_per_cluster(make: Make) -> None:
    bench = make()
    assert bench.clusters == tuple(range(10))
    table = torch.arange(14 * 20).view(14, 20).double()
    expected = [0.0] * 10
    for document, cluster in enumerate(bench.corpus.cluster):
        expected[cluster] += table[document].sum().item()
    np.testing.assert_array_equal(bench.per_cluster(table), expected)
    np.testing.assert_array_equal(bench.per_cluster(torch.ones(14)), np.bincount(bench.cluster_of))
    odd = make(of=from_documents([[0, 2, 3]] * 4, cluster=[7, 7, 2, 7], has_bos=True))
    assert odd.clusters == (7, 2)
    assert odd.cluster_of.tolist() == [0, 0, 1, 0]


def test_collecting_restores_the_order_and_reports(make: Make, corpus: Corpus) -> None:
    bench = make(batch_size=3, order_seed=1)
    steps: list[tuple[str, int, int]] = []
    bench.progress = lambda *step: steps.append(step)
    tables = bench.collect(
        lambda batch: {
            "token": batch.tokens.double() + 5,
            "document": torch.tensor(batch.documents),
            "pair": torch.stack([batch.tokens, -batch.tokens], dim=-1),
        },
        "looking",
    )
    assert tables["document"].tolist() == list(range(14))
    assert torch.equal(tables["token"], torch.where(bench.keep, corpus.tokens + 5.0, 0.0))
    assert torch.equal(tables["pair"][..., 1], torch.where(bench.keep, -corpus.tokens.double(), 0.0))
    assert steps[0] == ("looking", 3, 14)
    assert steps[-1] == ("looking", 14, 14)


def test_values_that_are_not_finite_are_errors(make: Make, sae: TinySAE) -> None:
    def spoil(where: str) -> Any:
        broken = replace(sae)
        method = getattr(broken, where)

        def spoiled(values: torch.Tensor, **options: Any) -> torch.Tensor:
            out = method(values, **options)
            out[3] = torch.nan
            return out

        setattr(broken, where, spoiled)
        return broken

    coded, decoded = make(sae=spoil("encode")), make(sae=spoil("decode"))
    # Codes are made from the shortest document on: of 1, 2 and 4 kept positions, the fourth is the first of the third.
    with pytest.raises(MeasurementError, match="a code of the SAE is NaN or infinite at document 7, position 1"):
        coded.codes(coded.batch((7,)))
    with pytest.raises(MeasurementError, match="reconstruction is NaN or infinite at document 2, position 4"):
        decoded.reconstruct(decoded.batch((2,)))
    good = make()
    batch = good.batch((5, 0))
    with pytest.raises(MeasurementError, match="the model's output is NaN or infinite at document 5, position 1"):
        good.intervene(batch, batch.x * torch.inf)
    with pytest.raises(MeasurementError, match="mine is NaN or infinite at document 3, position 1"):
        good.collect(lambda batch: {"mine": torch.full(batch.keep.shape, torch.nan)})
    padding = good.collect(lambda batch: {"mine": torch.where(batch.keep, 1.0, torch.nan)})
    assert torch.equal(padding["mine"], good.keep.double())


def test_an_sae_of_another_width(make: Make, sae: TinySAE) -> None:
    with pytest.raises(LoadError, match=r"width 12, but blocks\.1\.hook_resid_pre .* width 16"):
        make(sae=replace(sae, d_in=12))


def test_a_site_is_captured_once(make: Make, monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    model = make().model
    passes: list[Site] = []
    run = model.capture
    monkeypatch.setattr(model, "capture", lambda tokens, site: passes.append(site) or run(tokens, site))
    first = make(site=Site(2, "hook_resid_pre")).site_data
    assert make(site=Site(2, "hook_resid_pre"), batch_size=1).site_data is first
    assert len(passes) == 1
    assert make(site=Site(2, "hook_resid_mid")).site_data is not first
    assert make(site=Site(2, "hook_resid_pre"), include_bos=True).site_data is not first
    assert len(passes) == 3
    calls: list[int] = []
    for _ in range(2):
        assert first.shared("ablation", lambda: calls.append(1) or 4) == 4
    assert calls == [1]


def test_statistics_of_the_site_are_those_of_the_kept_positions(make: Make, corpus: Corpus) -> None:
    data = make(site=Site(1, "hook_mlp_out"), documents=2).site_data
    rows = torch.cat([data.x[row, 1:length] for row, length in enumerate(corpus.lengths)]).double()
    torch.testing.assert_close(data.mean, rows.mean(0))
    torch.testing.assert_close(data.covariance, rows.T.cov(correction=0), rtol=1e-5, atol=1e-7)
    pool = make(site=Site(1, "hook_mlp_out")).noise_pool()
    assert torch.equal(pool.rows[pool.kept_positions].double(), rows)
    assert not data.x[~data.inside].any()


def test_a_corpus_must_fit_the_model(make: Make) -> None:
    with pytest.raises(LoadError, match=r"token id 61 .* vocabulary ends at 60"):
        make(of=from_documents([[0, 5, 61]], has_bos=True))
    with pytest.raises(LoadError, match="has 70 tokens, but the model's context is 64"):
        make(of=from_documents([[0] * 70], has_bos=True))
    with pytest.raises(LoadError, match="made by another tokenizer"):
        make(of=from_documents([[0, 5, 6]], has_bos=True, tokenizer_sha256="c" * 64))


def test_files_of_a_mapped_capture_vanish_with_it(make: Make, fresh_cache: None, corpus: Corpus) -> None:
    import gc

    data: SiteData | None = SiteData(make().model, SITE, corpus, include_bos=False, memory_bytes=0)
    assert data is not None
    folder = data.tensors._folder
    assert folder is not None
    assert folder.is_dir()
    del data
    gc.collect()
    assert not folder.exists()


def test_a_full_disk_is_named(make: Make, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(MeasurementError, match=r"fit neither into memory nor into .* \(0\.0 GB free\)"):
        SiteData(make().model, SITE, corpus, include_bos=False, memory_bytes=0)
