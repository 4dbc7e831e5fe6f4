"""The generators: determinism, and that what they call the truth is true."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from sae_bench.demo.language import BOS, Document, Draw, case_pairs, document, vocabulary
from sae_bench.demo.language.cycles import CYCLES, cycle_member, cycle_step
from sae_bench.demo.language.documents import LONGEST, SHORTEST
from sae_bench.demo.language.words import TOPICS, TRAITS


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(5)
    return [document(rng) for _ in range(600)]


def test_the_same_generator_gives_the_same_text_and_another_gives_another():
    texts = [[document(rng).words for _ in range(5)] for rng in (random.Random(1), random.Random(1), random.Random(2))]
    assert texts[0] == texts[1] != texts[2]


def test_documents_have_their_length_begin_with_bos_and_are_made_of_their_sentences(documents: list[Document]):
    for item in documents:
        assert SHORTEST <= len(item.words) <= LONGEST
        assert item.words[0] == BOS
        assert item.words[1:] == tuple(word for sentence in item.sentences for word in sentence.words)
        for start, sentence in zip(item.starts, item.sentences, strict=True):
            assert item.words[start : start + len(sentence.words)] == sentence.words


def test_no_word_is_outside_the_vocabulary_and_hardly_a_word_of_it_is_unused(documents: list[Document]):
    known = vocabulary()
    used = {word for item in documents for word in item.words}
    assert len(known) == len(set(known)) <= 900
    assert used <= set(known)
    assert len(used) > 0.9 * len(known)


def test_every_construction_occurs_and_prose_is_a_third_or_more(documents: list[Document]):
    words = Counter[str]()
    for item in documents:
        for sentence in item.sentences:
            words[sentence.construction] += len(sentence.words)
    assert set(words) == {"prose", "headline", "cycle", "indirect_object", "persona", "sentiment", "number"}
    assert (words["prose"] + words["headline"]) / words.total() > 0.33
    assert all(count / words.total() > 0.015 for count in words.values())


@pytest.mark.parametrize("unit", ["day", "month"])
def test_every_fact_of_a_cycle_is_right(unit: str):
    cycle = CYCLES[unit]
    for start in cycle:
        for step in range(1, 7):
            after, before = cycle_member(unit, start, step, "after"), cycle_member(unit, start, step, "before")
            assert cycle.index(after) == (cycle.index(start) + step) % len(cycle)
            assert cycle_member(unit, after, step, "before") == start == cycle_member(unit, before, step, "after")
    item = cycle_step(Draw(random.Random(0)), "day", step=3, direction="after", start="monday")
    assert " ".join(item.words) == "three days after monday comes thursday ."
    assert (item.prompt, item.answer) == ("three days after monday comes", "thursday")


def test_facts_in_documents_are_right(documents: list[Document]):
    seen = 0
    for item in documents:
        for sentence in item.sentences:
            if "end" in sentence.labels:
                labels = sentence.labels
                end = cycle_member(labels["unit"], labels["start"], int(labels["step"]), labels["direction"])
                assert sentence.answer == labels["end"] == end
                seen += 1
    assert seen > 300


def test_the_indirect_object_is_the_name_that_does_not_give(documents: list[Document]):
    orders = Counter[str]()
    for item in documents:
        for sentence in item.sentences:
            if sentence.construction != "indirect_object":
                continue
            giver, receiver = sentence.labels["giver"], sentence.labels["receiver"]
            assert sentence.words.count(giver) == 2
            assert sentence.words.count(receiver) == 2
            assert sentence.answer == receiver != giver
            first = min(sentence.words.index(giver), sentence.words.index(receiver))
            assert sentence.words[first] == (receiver if sentence.labels["order"] == "ABBA" else giver)
            orders[sentence.labels["order"]] += 1
    assert abs(orders["ABBA"] / orders.total() - 0.5) < 4 * 0.5 / math.sqrt(orders.total())


def test_answers_about_personas_follow_from_the_trait_and_from_nothing_else(documents: list[Document]):
    pole_of = {word: pole for trait in TRAITS for pole in ("positive", "negative") for word in getattr(trait, pole)}
    balance = Counter[tuple[str, str]]()
    for item in documents:
        for sentence in item.sentences:
            kind, pole = sentence.labels["kind"], sentence.labels.get("pole", "")
            if kind not in ("letter", "yes_no"):
                continue
            asked = next(pole_of[word] for word in sentence.words if word in pole_of)
            assert asked == sentence.labels["asked"]
            said = sentence.answer
            if kind == "letter":
                said = sentence.words[sentence.words.index(said, sentence.words.index("(")) + 2]
            assert said == ("yes" if asked == pole else "no")
            balance[(pole, sentence.answer)] += 1
    for left, right in (("A", "B"), ("yes", "no")):
        for pole in ("positive", "negative"):
            n = balance[(pole, left)] + balance[(pole, right)]
            assert abs(balance[(pole, left)] / n - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_verbs_agree_with_their_subjects(documents: list[Document]):
    singular = {form for topic in TOPICS for pair in topic.verbs for form in (pair[0], pair[0].upper())} | {"is", "IS"}
    attractors = 0
    for item in documents:
        for sentence in item.sentences:
            if sentence.construction in ("prose", "headline"):
                main = sentence.words[int(sentence.labels["verbs"].split()[-1])]
                assert (main in singular) == (sentence.labels["subject"] == "singular")
                attractors += sentence.labels["between"] != "none"
    assert attractors > 200


def test_reviews_and_sums_come_to_the_right_end(documents: list[Document]):
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for item in documents:
        for sentence in item.sentences:
            if sentence.labels["kind"] == "verdict":
                assert sentence.answer == ("good" if sentence.labels["sentiment"] == "positive" else "bad")
            if sentence.labels["kind"] == "sum":
                first, _, second, _, total, _ = sentence.words
                assert numbers.index(first) + numbers.index(second) == numbers.index(total)


def test_headlines_are_prose_in_upper_case_and_there_are_many_pairs(documents: list[Document]):
    pairs = case_pairs()
    assert len(pairs) > 250
    assert all(lower.upper() == upper != lower for lower, upper in pairs)
    shouted = {
        word for item in documents for s in item.sentences if s.construction == "headline" for word in s.words[2:-1]
    }
    assert shouted <= {upper for _, upper in pairs}


def test_a_draw_counts_the_information_it_uses():
    draw = Draw(random.Random(0))
    draw.one("abcd")
    assert draw.nats == pytest.approx(math.log(4))
    draw.chance(0.5)
    draw.between(1, 8)
    draw.two("abc")
    assert draw.nats == pytest.approx(math.log(4) + math.log(2) + math.log(8) + math.log(6))


def test_the_entropy_of_weighted_draws_is_the_mean_of_the_information():
    draw, weights = Draw(random.Random(0)), (0.5, 0.25, 0.25)
    counts = Counter(draw.weighted("abc", weights) for _ in range(20_000))
    assert counts["a"] / counts.total() == pytest.approx(0.5, abs=0.015)
    assert draw.nats / 20_000 == pytest.approx(1.5 * math.log(2), abs=0.02)
