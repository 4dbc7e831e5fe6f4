"""From texts to a corpus file: sources, rules, what is kept beside the tokens, and whose tokenizer it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_bench.engine.corpus import check_tokenizer, load_corpus
from sae_bench.errors import LoadError
from sae_bench.frontends.cli import main

TEXTS = ["w2 w3 w4 w5 w6 w7", "w8", "w9 w10"]


@pytest.fixture
def build(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Runs ``corpus build`` with GPT2's tokenizer and loads what it wrote."""

    def run(*arguments: str) -> Any:
        out = tmp_path / "made" / "corpus.safetensors"
        code = main(["corpus", "build", *arguments, "--tokenizer", str(model_folder("GPT2")), "-o", str(out)])
        assert code == 0
        return load_corpus(out)

    return run


def documents(corpus: Any) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(corpus.tokens, corpus.lengths, strict=True)]


DOCUMENTS = [[0, 2, 3, 4], [0, 5, 6, 7], [0, 8], [0, 9, 10]]


def test_a_text_file(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    corpus = build("--text", str(tmp_path / "texts.txt"), "--length", "4", "--keep-text")
    assert documents(corpus) == DOCUMENTS
    assert corpus.cluster == (0, 0, 1, 2)
    assert corpus.notes.ids == ("texts.txt:0:0", "texts.txt:0:1", "texts.txt:1:0", "texts.txt:2:0")
    assert corpus.notes.texts == ("w2 w3 w4", "w5 w6 w7", "w8", "w9 w10")
    assert "at most 4 tokens" in corpus.notes.rules
    assert "no two texts share a document; BOS begins every document" in corpus.notes.rules
    assert corpus.take(2).notes.ids == corpus.notes.ids[:2]
    assert corpus.source == "texts.txt"


def test_a_file_of_json_lines(build: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"id": f"d{index}", "body": text} for index, text in enumerate(TEXTS)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    corpus = build("--jsonl", str(path), "--field", "body", "--length", "4", "--docs", "3")
    assert documents(corpus) == DOCUMENTS[:3]
    assert corpus.notes.ids == ("d0:0", "d0:1", "d1:0")
    assert corpus.notes.texts is None
    plain = build("--jsonl", str(path), "--field", "body", "--length", "4", "--no-bos")
    assert documents(plain)[0] == [2, 3, 4, 5]
    assert "no document begins with BOS" in plain.notes.rules


def test_a_dataset(build: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    corpus = build("--dataset", str(folder), "--length", "4")
    assert documents(corpus) == DOCUMENTS
    assert corpus.source == f"{folder}, train"


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ('{"text": "w2 w3"}', ("--field", "txt"), r"no text under 'txt'; did you mean 'text'"),
        ("[1]", (), "line 1 of .* is not a JSON object; write one object a line"),
        ('{"text": 3}', (), "line 1 of .* has no text under 'text'"),
        ('{"text": "w2 w3"}', ("--docs", "0"), "--documents 0 must be 1 or more"),
        ('{"text": "w2 w3"}', ("--length", "1"), "documents of 1 tokens are too short"),
        ('{"text": ""}', (), "no text of .* has 2 tokens or more"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    model_folder: Callable[[str], Path], tmp_path: Path, line: str, arguments: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, out = tmp_path / "texts.jsonl", tmp_path / "c.safetensors"
    path.write_text(line)
    place = ["--model", str(model_folder("GPT2")), "--out", str(out)]
    code = main(["corpus", "build", "--jsonl", str(path), *place, *arguments])
    assert code != 0
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not out.exists()


def test_what_is_beside_the_tokens_decides_nothing(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    with_text = build("--text", str(tmp_path / "texts.txt"), "--length", "4", "--keep-text")
    without = build("--text", str(tmp_path / "texts.txt"), "--length", "4")
    assert with_text.sha256 == without.sha256


def test_columns_that_do_not_fit_are_refused(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    corpus = build("--text", str(tmp_path / "texts.txt"), "--length", "4", "--keep-text")
    tensors = load_file(corpus.path)
    for packed in (b'["one"]', b"{", b"[1, 2, 3, 4]", b"\xff\xfe"):
        save_file({**tensors, "texts": torch.tensor(list(packed), dtype=torch.uint8)}, corpus.path)
        with pytest.raises(LoadError, match=r"'texts' of corpus .* is not a list of 4 strings; build it again"):
            load_corpus(corpus.path)


def test_another_tokenizers_corpus_is_refused(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    corpus = build("--text", str(tmp_path / "texts.txt"))
    check_tokenizer(corpus, corpus.tokenizer_sha256)
    with pytest.raises(LoadError, match="was made by another tokenizer"):
        check_tokenizer(corpus, "0" * 64)
