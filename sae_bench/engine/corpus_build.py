"""Build a corpus: texts from a file or a dataset, cut into documents of token ids by stated rules.

No two texts share a document (nothing is packed), BOS opens every document or none, and all documents of one text are
one cluster, because they are not independent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sae_bench.engine.corpus import Corpus, CorpusMetadata, from_documents
from sae_bench.errors import LoadError, UsageError, near


@dataclass(frozen=True)
class Text:
    """One text and its name in the source."""

    id: str
    text: str


def build_corpus(
    texts: Iterable[str | Text],
    tokenizer: Any,
    *,
    length: int,
    bos: bool,
    source: str,
    tokenizer_sha256: str | None = None,
    documents: int | None = None,
    keep_text: bool = False,
) -> Corpus:
    """Cut texts into documents of at most ``length`` tokens; the chunks of one text share a cluster.

    ``tokenizer`` is a Hugging Face tokenizer. With ``bos`` every document starts with its BOS token, the later chunks
    of a text as well. A last chunk that would hold fewer than 2 tokens is dropped. ``documents`` stops early;
    ``keep_text`` stores the text of each document as well, for reports.
    """
    start = [_bos_id(tokenizer)] if bos else []
    room = length - len(start)
    if room < 1 or length < 2:
        raise LoadError(f"documents of {length} tokens are too short to measure; choose a length of at least 2")
    chunks: list[list[int]] = []
    cluster: list[int] = []
    ids: list[str] = []
    for index, item in enumerate(texts):
        text = item if isinstance(item, Text) else Text(str(index), item)
        tokens = list(tokenizer.encode(text.text, add_special_tokens=False))
        pieces = [start + tokens[at : at + room] for at in range(0, len(tokens), room)]
        long_enough = [(number, piece) for number, piece in enumerate(pieces) if len(piece) >= 2]
        chunks += [piece for _, piece in long_enough]
        ids += [f"{text.id}:{number}" for number, _ in long_enough]
        cluster += [index] * len(long_enough)
        if documents is not None and len(chunks) >= documents:
            break
    chunks, cluster, ids = chunks[:documents], cluster[:documents], ids[:documents]
    if not chunks:
        raise LoadError(f"no text of {source or 'the source'} has 2 tokens or more; give a longer text")
    corpus = from_documents(chunks, cluster=cluster, has_bos=bos, source=source, tokenizer_sha256=tokenizer_sha256)
    decoded = tuple(str(tokenizer.decode(chunk[len(start) :])) for chunk in chunks) if keep_text else None
    return replace(corpus, notes=CorpusMetadata(_rules(length, bos), tuple(ids), decoded))


def from_text(path: Path, separator: str) -> Iterator[Text]:
    """Yield texts of a UTF-8 file, separated by ``separator``; the whole file is one when it is empty."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {path} cannot be read as UTF-8 text: {error}") from None
    parts = content.split(separator) if separator else [content]
    yield from (Text(f"{path.name}:{index}", part) for index, part in enumerate(parts) if part.strip())


def from_jsonl(path: Path, field: str) -> Iterator[Text]:
    """Yield texts under ``field`` of a file with one JSON object a line, named by their ``id`` or their line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _from_line(path, number, line, field)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--jsonl {path} cannot be read as UTF-8 text: {error}") from None


def from_dataset(name: str, field: str, split: str, revision: str | None, limit: int) -> Iterator[Text]:
    """Yield up to ``limit`` texts under ``field`` of a Hugging Face dataset, ``owner/name`` or ``owner/name:part``."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(
            f"--dataset {name} needs the package datasets, which is not installed: pip install datasets"
        ) from None
    place, _, part = name.partition(":")
    try:
        rows = load_dataset(place, part or None, split=split, revision=revision, streaming=True)
        for number, row in enumerate(islice(rows, limit)):
            yield Text(str(row.get("id", number)), _string(row, field, f"dataset {name}"))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--dataset {name} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            f"check the name, the split {split!r} and the network, or save its texts and pass --jsonl"
        ) from None


def _from_line(path: Path, number: int, line: str, field: str) -> Text:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UsageError(
            f'line {number} of {path} is not a JSON object; write one object a line, such as {{"text": ...}}'
        )
    return Text(str(row.get("id", number)), _string(row, field, f"line {number} of {path}"))


def _string(row: dict[str, Any], field: str, what: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        names = [name for name, value in row.items() if isinstance(value, str)]
        raise UsageError(f"{what} has no text under {field!r}{near(field, names)}; pass --field with one of {names}")
    return value


def _rules(length: int, bos: bool) -> str:
    return (
        f"each text is cut into documents of at most {length} tokens, a last one of fewer than 2 dropped; no two texts "
        f"share a document; {'BOS begins every document' if bos else 'no document begins with BOS'}; the documents of "
        f"a text are one cluster"
    )


def _bos_id(tokenizer: Any) -> int:
    bos: object = getattr(tokenizer, "bos_token_id", None)
    if not isinstance(bos, int):
        raise LoadError("this tokenizer has no BOS token; pass --no-bos to build the corpus without one")
    return bos
