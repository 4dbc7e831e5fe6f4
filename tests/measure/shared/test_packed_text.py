"""Documents as text: what is packed comes back, the worst first where there is no room for all."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_bench.measure.measurement import Series
from sae_bench.measure.shared import packed_text

WORDS = st.lists(st.tuples(st.text(max_size=5), st.floats(-1e-6, 50, allow_nan=False)), max_size=20)


@given(documents=st.dictionaries(st.integers(0, 99), WORDS, max_size=5))
def test_what_is_packed_comes_back(documents: dict[int, list[tuple[str, float]]]) -> None:
    series = packed_text.pack_documents(
        (key, [w for w, _ in rows], [kl for _, kl in rows]) for key, rows in documents.items()
    )
    found = packed_text.unpack_documents(series)
    assert found.keys() == documents.keys()
    for key, rows in documents.items():
        assert [word for word, _ in found[key]] == [word for word, _ in rows]
        for (_, now), (_, then) in zip(found[key], rows, strict=True):
            assert now == pytest.approx(then, rel=0.06, abs=1e-6)


def test_documents_that_lose_most_have_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_text, "MOST", 25)
    documents = [(row, ["word"] * 10, [float(row)] * 10) for row in range(5)]
    assert list(packed_text.unpack_documents(packed_text.pack_documents(documents))) == [3, 4]


def test_a_thousand_documents_stay_small() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    vocabulary = [f" word{row}" for row in range(5000)]
    documents = [
        (row, [vocabulary[at] for at in rng.integers(0, 5000, 128)], rng.lognormal(-5, 2, 128).tolist())
        for row in range(1000)
    ]
    (packed,) = packed_text.pack_documents(documents).columns["packed"]
    assert len(packed) < 400_000


def test_reports_with_a_row_per_token_are_still_read() -> None:
    rows = Series("table", {"document": [1, 1, 2], "token": ["a", " b", "c"], "kl": [0.1, None, 0.3]})
    assert packed_text.holds_documents(rows)
    assert packed_text.unpack_documents(rows) == {1: [("a", 0.1), (" b", 0.0)], 2: [("c", 0.3)]}


def packed(data: bytes) -> Series:
    return Series("table", {"documents": [1], "packed": [base64.b64encode(zlib.compress(data)).decode()]})


@pytest.mark.parametrize(
    "series",
    [
        Series("table", {"packed": []}),
        Series("table", {"packed": ["no base64!"]}),
        Series("table", {"packed": ["AAAA"]}),
        packed(b"{"),
        packed(b"[1, 2]"),
        packed(json.dumps([[1, ["a", "b"], "0"]]).encode()),
        packed(b" " * ((1 << 25) + 1) + b"[]"),
    ],
)
def test_what_is_damaged_or_too_large_holds_nothing(series: Series) -> None:
    assert packed_text.unpack_documents(series) == {}
