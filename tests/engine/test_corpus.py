"""Corpora: what a file means, what is wrong with it, and that only its content has a say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_bench.engine.corpus import (
    Corpus,
    check_context,
    check_tokenizer,
    check_vocabulary,
    from_documents,
    load_corpus,
    save_corpus,
)
from sae_bench.engine.corpus_build import build_corpus
from sae_bench.errors import LoadError


class Letters:
    """A tokenizer: one token a letter, 'a' is 1."""

    bos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) - 96 for letter in text]


def write(path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


documents = st.lists(st.lists(st.integers(0, 300), min_size=2, max_size=6), min_size=1, max_size=6)


@given(documents, st.booleans(), st.one_of(st.none(), st.just("ab" * 32)))
def test_saved_and_loaded_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, ids: list[list[int]], bos: bool, tokenizer: str | None
) -> None:
    cluster = [index // 2 for index in range(len(ids))]
    made = from_documents(ids, cluster=cluster, has_bos=bos, source="here", tokenizer_sha256=tokenizer)
    path = tmp_path_factory.mktemp("corpus") / "deep" / "c.safetensors"
    save_corpus(path, made)
    found = load_corpus(path)
    assert found.path == str(path)
    assert torch.equal(found.tokens, made.tokens)
    assert found.tokens.dtype == torch.int64
    assert found.lengths.tolist() == [len(document) for document in ids]
    assert found.cluster == tuple(cluster)
    assert (found.has_bos, found.source, found.tokenizer_sha256, found.sha256) == (bos, "here", tokenizer, made.sha256)
    assert [entry.name for entry in path.parent.iterdir()] == ["c.safetensors"]


@given(documents, st.data())
def test_sha256_is_the_contents(ids: list[list[int]], data: st.DataObject) -> None:
    corpus = from_documents(ids, has_bos=True, source="one")
    assert from_documents(ids, has_bos=True, source="two").sha256 == corpus.sha256
    row = data.draw(st.integers(0, len(ids) - 1))
    at = data.draw(st.integers(0, len(ids[row]) - 1))
    other = [list(document) for document in ids]
    other[row][at] += 1
    assert from_documents(other, has_bos=True).sha256 != corpus.sha256
    assert from_documents([*ids, [1, 2]], has_bos=True).sha256 != corpus.sha256
    assert from_documents(ids, has_bos=True, cluster=[5] * len(ids)).sha256 != corpus.sha256


def test_padding_is_not_content(tmp_path: Path) -> None:
    lengths = torch.tensor([3, 2], dtype=torch.int32)
    one = torch.tensor([[5, 6, 7, 9], [5, 6, 9, 9]], dtype=torch.int32)
    two = torch.tensor([[5, 6, 7], [5, 6, 0]], dtype=torch.int32)
    first = load_corpus(write(tmp_path / "one.safetensors", tokens=one, lengths=lengths))
    second = load_corpus(write(tmp_path / "two.safetensors", tokens=two, lengths=lengths))
    assert first.sha256 == second.sha256
    assert first.tokens.tolist() == [[5, 6, 7], [5, 6, 0]]


def test_a_corpus_is_for_everybody_the_umask_allows(tmp_path: Path, small: Corpus) -> None:
    before = os.umask(0o022)
    try:
        save_corpus(tmp_path / "corpus.safetensors", small)
    finally:
        os.umask(before)
    assert (tmp_path / "corpus.safetensors").stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["corpus.safetensors"]


def test_take_is_a_prefix_with_its_own_name() -> None:
    corpus = from_documents([[1, 2, 3], [1, 4], [1, 5]], has_bos=True, cluster=[0, 0, 1])
    taken = corpus.take(2)
    assert len(taken) == 2
    assert taken.cluster == (0, 0)
    assert taken.sha256 == from_documents([[1, 2, 3], [1, 4]], has_bos=True, cluster=[0, 0]).sha256
    assert corpus.take(99).sha256 == corpus.sha256


def test_lengths_and_clusters_may_be_missing(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "c.safetensors", tokens=torch.tensor([[1, 2, 3], [1, 2, 4]])))
    assert corpus.lengths.tolist() == [3, 3]
    assert corpus.cluster == (0, 1)
    assert corpus.tokenizer_sha256 is None


@pytest.mark.parametrize(
    ("metadata", "tokens", "expected"),
    [
        ({"bos": "true"}, [[1, 2], [3, 4]], True),
        ({"bos": "false"}, [[1, 2], [1, 4]], False),
        ({"position_0_is_bos": "true"}, [[1, 2], [3, 4]], True),
        ({}, [[1, 2], [1, 4]], True),
        ({}, [[1, 2], [3, 4]], False),
    ],
)
def test_bos(tmp_path: Path, metadata: dict[str, str], tokens: list[list[int]], expected: bool) -> None:
    assert load_corpus(write(tmp_path / "c.safetensors", metadata, tokens=torch.tensor(tokens))).has_bos is expected


def test_building_cuts_a_text_into_documents_of_one_cluster() -> None:
    corpus = build_corpus(["abcdefg", "", "a", "hi"], Letters(), length=4, bos=True, source="letters")
    assert [row[:length].tolist() for row, length in zip(corpus.tokens, corpus.lengths, strict=True)] == [
        [0, 1, 2, 3],
        [0, 4, 5, 6],
        [0, 7],
        [0, 1],
        [0, 8, 9],
    ]
    assert corpus.cluster == (0, 0, 0, 2, 3)
    plain = build_corpus(["abcde"], Letters(), length=4, bos=False, source="letters")
    assert plain.tokens.tolist() == [[1, 2, 3, 4]]
    assert not plain.has_bos
    assert len(build_corpus(["abcdefg"] * 9, Letters(), length=4, bos=True, source="", documents=4)) == 4


def test_building_from_nothing() -> None:
    with pytest.raises(LoadError, match="no text of letters has 2 tokens or more"):
        build_corpus(["", "a"], Letters(), length=4, bos=False, source="letters")
    with pytest.raises(LoadError, match="documents of 1 tokens are too short"):
        build_corpus(["abc"], Letters(), length=1, bos=False, source="letters")
    with pytest.raises(LoadError, match="has no BOS token; pass --no-bos"):
        build_corpus(["abc"], object(), length=4, bos=True, source="letters")


GOOD = torch.tensor([[1, 2, 3], [1, 2, 4]])


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"ids": GOOD}, r"holds no tensor 'tokens' \(it holds ids\); make one with 'pytest-sae-bench corpus build"),
        ({"tokens": GOOD.float()}, "'tokens' of corpus .* is float32, but ids are integers"),
        ({"tokens": GOOD[0]}, r"'tokens' of corpus .* has shape \(3,\), not \(documents, positions\)"),
        ({"tokens": GOOD, "lengths": torch.tensor([3])}, "has 1 lengths for 2 documents"),
        ({"tokens": GOOD, "lengths": GOOD}, r"'lengths' of corpus .* has shape \(2, 3\), not \(documents,\)"),
        (
            {"tokens": GOOD, "lengths": torch.tensor([3, 9])},
            "document 1 of corpus .* has length 9, but the file holds 3 tokens",
        ),
        ({"tokens": GOOD, "lengths": torch.tensor([3, 1])}, r"shorter than 2 tokens.*\(documents 1\); leave them out"),
        ({"tokens": GOOD, "cluster": torch.tensor([1, 2, 3])}, "has 3 cluster for 2 documents"),
        ({"tokens": GOOD[:, :1]}, r"shorter than 2 tokens.*\(documents 0, 1\)"),
        ({"tokens": GOOD[:0]}, "has no documents"),
        ({"tokens": GOOD - 2}, r"negative token id -1 \(document 0, position 0\)"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, tensors: dict[str, torch.Tensor], sentence: str) -> None:
    path = write(tmp_path / "c.safetensors", **{name: tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(LoadError, match=sentence):
        load_corpus(path)


def test_what_is_no_corpus_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"nothing\.safetensors does not exist; make one with"):
        load_corpus(tmp_path / "nothing.safetensors")
    with pytest.raises(LoadError, match="is a folder, not a corpus file"):
        load_corpus(tmp_path)
    (tmp_path / "text").write_text("some text, and more of it")
    with pytest.raises(LoadError, match="is not a readable safetensors file"):
        load_corpus(tmp_path / "text")
    newer = write(tmp_path / "newer.safetensors", {"schema": "2"}, tokens=GOOD)
    with pytest.raises(LoadError, match="has schema '2', newer than 1"):
        load_corpus(newer)


@pytest.fixture
def small() -> Corpus:
    return from_documents([[1, 2], [1, 7, 3]], has_bos=True, tokenizer_sha256="a" * 64)


def test_a_corpus_must_fit_the_model(small: Corpus) -> None:
    check_vocabulary(small, 8)
    with pytest.raises(LoadError, match=r"token id 7 \(document 1, position 1\).* vocabulary ends at 6"):
        check_vocabulary(small, 7)
    check_context(small, 3)
    with pytest.raises(LoadError, match=r"document 1 .* has 3 tokens, but the model's context is 2"):
        check_context(small, 2)
    check_tokenizer(small, "a" * 64)
    check_tokenizer(small, None)
    with pytest.raises(LoadError, match="made by another tokenizer"):
        check_tokenizer(small, "b" * 64)
