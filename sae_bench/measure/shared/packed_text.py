"""Documents as text with the KL of every token, packed into one string of a report.

Which documents move is known only when a report is compared, so all are kept, not the worst alone. One string per
report: JSON, compressed, in base64; a KL is kept as its place on a scale of 20 steps per decade (6% apart at most).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from sae_bench.measure.measurement import Series

STEPS, LEAST = 20, 1e-6
"Steps per decade, and the KL in nats of the first one; what is smaller reads as 0."
MOST = 1 << 16
"Most tokens that are stored; documents with the largest mean KL come first."
_MOST_CHARACTERS = 1 << 25
"Most characters that a packed string may unpack to: reports can come from untrusted sources."
_FIRST_LETTER = 48

DocumentTexts: TypeAlias = dict[int, list[tuple[str, float]]]
"""By document: its tokens in the order of the text, each with its KL in nats."""


def pack_documents(documents: Iterable[tuple[int, Sequence[str], Sequence[float]]]) -> Series:
    """Return documents (id, tokens, KL of each token) as a table of one row."""
    by_kl = sorted(documents, key=lambda each: (-sum(each[2]) / max(len(each[2]), 1), each[0]))
    packed_rows: list[list[object]] = []
    tokens = 0
    for document, words, kl in by_kl:
        tokens += len(words)
        if tokens > MOST and packed_rows:
            break
        packed_rows.append([document, list(words), "".join(map(_letter, kl))])
    text = json.dumps(sorted(packed_rows), ensure_ascii=False, separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return Series("table", {"documents": [len(packed_rows)], "packed": [packed]}, "Documents as text")


def holds_documents(series: Series) -> bool:
    """Return whether a series holds documents as text."""
    return "packed" in series.columns or {"document", "token", "kl"} <= set(series.columns)


def unpack_documents(series: Series) -> DocumentTexts:
    """Return the documents of a series; none where it holds others or cannot be read.

    Reports of the first versions have a row per token: columns ``document``, ``token`` and ``kl``.
    """
    columns = series.columns
    if "packed" in columns:
        return _unpack_column(columns["packed"])
    documents: DocumentTexts = {}
    rows = [columns.get(name, ()) for name in ("document", "token", "kl")]
    for document, token, kl in zip(*rows, strict=False):
        documents.setdefault(int(document), []).append((str(token), float(kl or 0.0)))
    return documents


def _unpack_column(column: Sequence[object]) -> DocumentTexts:
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(base64.b64decode(str(column[0]), validate=True), _MOST_CHARACTERS)
        return {
            int(document): [(str(word), _kl(letter)) for word, letter in zip(words, letters, strict=True)]
            for document, words, letters in json.loads(text)
        }
    except (IndexError, TypeError, ValueError, binascii.Error, zlib.error):
        return {}


def _letter(kl: float) -> str:
    return chr(_FIRST_LETTER + (max(round(STEPS * math.log10(kl / LEAST)) + 1, 0) if kl > 0 else 0))


def _kl(letter: str) -> float:
    step = ord(letter) - _FIRST_LETTER
    return LEAST * 10 ** ((step - 1) / STEPS) if step > 0 else 0.0
