"""Write the known meanings of the language's words and sentences as a file of concepts and cycles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sae_bench.demo.language.words import (
    BLAME,
    BLAME_VERBS,
    DAYS,
    MONTHS,
    NAMES,
    PRAISE,
    PRAISE_VERBS,
    TOPICS,
)
from sae_bench.demo.paths import DemoPaths
from sae_bench.demo.write_datasets import corpus_documents
from sae_bench.engine.corpus import load_corpus

_HEAD = (
    "# What is known about the demo's language; made by `python -m sae_bench.demo.build`, see sae_bench/concepts.py.\n"
)


def write_concepts(folder: DemoPaths) -> None:
    """Write concepts of words, concepts of positions in the evaluation corpus, and the two cycles."""
    nouns = list(dict.fromkeys(pair for topic in TOPICS for pair in topic.nouns))
    entries = [
        _concept("weekday", DAYS, MONTHS),
        _concept("name", NAMES, ()),
        _concept("plural", [plural for _, plural in nouns], [singular for singular, _ in nouns], "paired = true"),
        _concept("praise", (*PRAISE, *PRAISE_VERBS), (*BLAME, *BLAME_VERBS)),
    ]
    corpus = f'corpus = "{load_corpus(folder.corpus).sha256[:16]}"'
    for name, positions in (("praised_before", _verdicts()), ("plural_subject_before", _subjects())):
        labelled = list(positions)
        having, lacking = ([position for position, has in labelled if has is side] for side in (True, False))
        entries.append(_concept(name, having, lacking, corpus))
    entries += [_entry("cycle", f'name = "{name}"', f"classes = {_toml_list(words)}")
                for name, words in (("days", DAYS), ("months", MONTHS))]  # fmt: skip
    folder.concepts.write_text("\n".join([_HEAD, *entries]), encoding="utf-8")


def _verdicts() -> Iterator[tuple[tuple[int, int], bool]]:
    """Yield the position of "is" in every "so the review is good ." with True when the review praised."""
    for number, document in enumerate(corpus_documents()):
        for sentence, start in zip(document.sentences, document.starts, strict=True):
            if sentence.labels.get("kind") == "verdict":
                yield (number, start + sentence.answers[0] - 1), sentence.labels["sentiment"] == "positive"


def _subjects() -> Iterator[tuple[tuple[int, int], bool]]:
    """Yield the position before a verb with a noun between it and its subject, with True for a plural subject."""
    for number, document in enumerate(corpus_documents()):
        for sentence, start in zip(document.sentences, document.starts, strict=True):
            if sentence.labels.get("kind") == "prose" and sentence.labels["between"] == "phrase":
                verb = int(sentence.labels["verbs"].split()[-1])
                yield (number, start + verb - 1), sentence.labels["subject"] == "plural"


def _concept(name: str, positive: Sequence[object], negative: Sequence[object], *more: str) -> str:
    lines = [f"positive = {_toml_list(positive)}"] + ([f"negative = {_toml_list(negative)}"] if negative else [])
    return _entry("concept", f'name = "{name}"', *more, *lines)


def _entry(kind: str, *lines: str) -> str:
    return "\n".join([f"[[{kind}]]", *lines, ""])


def _toml_list(items: Sequence[object]) -> str:
    written = [f'"{item}"' if isinstance(item, str) else str(list(item)) for item in items]  # type: ignore[call-overload]
    rows = [", ".join(written[start : start + 10]) for start in range(0, len(written), 10)]
    return "[\n" + "".join(f"    {row},\n" for row in rows) + "]"
