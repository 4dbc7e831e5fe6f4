"""The file of concepts: what it says is what is read, what is wrong is one sentence, words find their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sae_bench.demo.paths import CONCEPTS, CORPUS
from sae_bench.errors import LoadError
from sae_bench.measure.datasets.concept_file import (
    Concept,
    Cycle,
    LabelledPositions,
    TokenList,
    TokenPattern,
    read_concepts,
)
from sae_bench.measure.datasets.concept_tokens import concept_tokens, cycle_tokens, upper_case_tokens, vocabulary_words

SHA = "0123456789abcdef"


def written(folder: Path, text: str) -> Path:
    path = folder / "concepts.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_form_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"""
        [[concept]]
        name = "plural"
        paired = true
        positive = ["boats", "cows"]
        negative = ["boat", "cow"]
        [[concept]]
        name = "digit"
        positive = "[0-9]+"
        [[concept]]
        name = "praised"
        corpus = "{SHA}"
        positive = [[0, 3]]
        negative = [[1, 2], [0, 4]]
        [[cycle]]
        name = "seasons"
        classes = ["a", ["b", "B"], "c", "d", "e"]
        latents = {{ "demo/topk" = [3, 1] }}
        """,
    )
    found = read_concepts(path)
    assert found.concepts == (
        Concept("plural", TokenList(("boats", "cows")), TokenList(("boat", "cow")), paired=True),
        Concept("digit", TokenPattern("[0-9]+"), None),
        Concept("praised", LabelledPositions(((0, 3),)), LabelledPositions(((1, 2), (0, 4))), corpus=SHA),
    )
    assert found.cycles == (Cycle("seasons", (("a",), ("b", "B"), ("c",), ("d",), ("e",)), {"demo/topk": (3, 1)}),)
    assert found.path == str(path)


WRONG = {
    "no TOML": ("[[concept", "cannot be read"),
    "nothing": ("", "declares nothing"),
    "other heading": ("[[concepts]]\nname = 'a'", "unknown key 'concepts'; did you mean 'concept'?"),
    "no list": ("[concept]\nname = 'a'", r"\[\[concept\]\]"),
    "name": ("[[concept]]\nname = 'Big'\npositive = ['a']", "concept 1 of .* has the name 'Big'"),
    "twice": ("[[cycle]]\nname = 'a'\n[[cycle]]\nname = 'a'", "cycle 'a' .* declared 2 times"),
    "upper case": ("[[concept]]\nname = 'upper_case'\npositive = ['A']", "measured without being declared"),
    "unknown key": ("[[concept]]\nname = 'a'\npositve = ['a']", "unknown key 'positve'; did you mean 'positive'"),
    "no positive": ("[[concept]]\nname = 'a'", "has no 'positive'"),
    "empty": ("[[concept]]\nname = 'a'\npositive = []", "must be a list of words"),
    "number": ("[[concept]]\nname = 'a'\npositive = [1]", "holds 1; a word is a text"),
    "space": ("[[concept]]\nname = 'a'\npositive = [' the']", "holds ' the'; a word is a text without spaces"),
    "repeated": ("[[concept]]\nname = 'a'\npositive = ['a', 'a']", "holds 'a' more than once"),
    "regex": ("[[concept]]\nname = 'a'\npositive = '['", "no regular expression"),
    "both": ("[[concept]]\nname = 'a'\npositive = ['a']\nnegative = ['a']", "'a' is positive and negative"),
    "paired": ("[[concept]]\nname = 'a'\npaired = 1\npositive = ['a']", "write true or false"),
    "no pairs": ("[[concept]]\nname = 'a'\npaired = true\npositive = ['a']", "takes a list of words"),
    "uneven": (
        "[[concept]]\nname = 'a'\npaired = true\npositive = ['a']\nnegative = ['b', 'c']",
        "1 positive and 2 negative",
    ),
    "position": ("[[concept]]\nname = 'a'\npositive = [[1]]", r"a position is \[document, position\]"),
    "no negative": ("[[concept]]\nname = 'a'\npositive = [[1, 2]]", "give those that do not have it"),
    "no corpus": ("[[concept]]\nname = 'a'\npositive = [[1, 2]]\nnegative = [[1, 3]]", "name the corpus"),
    "mixed": (
        f"[[concept]]\nname = 'a'\ncorpus = '{SHA}'\npositive = ['b']",
        "takes neither a corpus nor positions",
    ),
    "few classes": ("[[cycle]]\nname = 'a'\nclasses = ['a', 'b']", "list the words of 5 classes or more"),
    "class": ("[[cycle]]\nname = 'a'\nclasses = ['a', 'b', 'c', 'd', 5]", "class 5 is 5"),
    "class twice": ("[[cycle]]\nname = 'a'\nclasses = ['a', 'b', 'c', 'd', 'a']", "'a' more than once"),
    "latents": (
        "[[cycle]]\nname = 'a'\nclasses = ['a', 'b', 'c', 'd', 'e']\nlatents = {x = [-1]}",
        r"latents of 'x' are \[-1\]",
    ),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(LoadError, match=says) as error:
        read_concepts(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.toml cannot be read"):
        read_concepts(tmp_path / "none.toml")


def tokenizer(*words: str, decoder: Any = None) -> Any:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    core.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=words[0])


VOCABULARY = ("<unk>", "Ġthe", "THE", "ĠTHE", "the", "Ġ", "ĊĊ", "Anna", "ĠI", "12", "i", "NO")


@pytest.mark.parametrize("decoder", [None, decoders.ByteLevel()], ids=["marks", "bytes"])
def test_the_mark_of_a_space_is_not_upper_case(decoder: Any) -> None:
    assert "Ġthe".replace("the", "").isupper()
    words = vocabulary_words(tokenizer(*VOCABULARY, decoder=decoder), len(VOCABULARY) + 2)
    assert words == ("", "the", "THE", "THE", "the", "", "", "Anna", "I", "12", "i", "NO", "", "")
    found = upper_case_tokens(words)
    assert (found.positive, found.negative) == ((2, 3, 11), (1, 4))
    assert {words[one].lower() for one, _ in found.pairs} == {"the"}
    assert all(words[one].lower() == words[other] for one, other in found.pairs)


def test_sentencepiece_words_lose_their_mark(real_assets: Path) -> None:
    known = AutoTokenizer.from_pretrained(real_assets / "model")
    words = vocabulary_words(known, len(known))
    pieces = known.convert_ids_to_tokens(list(range(len(known))))
    assert words[pieces.index("▁the")] == "the"
    assert not any(word.startswith(("▁", " ")) for word in words)


def test_words_find_all_their_tokens() -> None:
    words = ("", "boat", "boats", "boat", "12", "cow", "cows")
    paired = Concept("plural", TokenList(("boats", "cows")), TokenList(("boat", "cow")), paired=True)
    found = concept_tokens(paired, words)
    assert (found.positive, found.negative, found.pairs) == ((2, 6), (1, 3, 5), ((2, 1), (6, 5)))
    against_all = concept_tokens(Concept("number", TokenPattern("[0-9]+"), None), words)
    assert (against_all.positive, against_all.negative) == ((4,), (1, 2, 3, 5, 6))
    assert cycle_tokens(Cycle("x", (("cow",), ("boat", "boats"))), words) == ((5,), (1, 2, 3))


@pytest.mark.parametrize(
    ("concept", "says"),
    [
        (
            Concept("a", TokenList(("boatz",)), None),
            "'boatz' is no single token of this vocabulary; did you mean 'boat'",
        ),
        (Concept("a", TokenPattern("x+"), None), r"no token of the vocabulary matches 'x\+'"),
        (Concept("a", TokenPattern("b.*"), TokenPattern(".*t")), "'boat' is positive and negative"),
    ],
)
def test_words_that_are_no_tokens_are_named(concept: Concept, says: str) -> None:
    with pytest.raises(LoadError, match=says):
        concept_tokens(concept, ("", "boat", "cow"), "file")


def test_the_demos_file_speaks_of_its_corpus() -> None:
    from sae_bench.engine.corpus import load_corpus

    found = read_concepts(CONCEPTS)
    corpus = load_corpus(CORPUS)
    placed = [concept for concept in found.concepts if isinstance(concept.positive, LabelledPositions)]
    assert {concept.name for concept in placed} == {"praised_before", "plural_subject_before"}
    assert all(corpus.sha256.startswith(concept.corpus or "none") for concept in placed)
    assert [len(cycle.classes) for cycle in found.cycles] == [7, 12]
