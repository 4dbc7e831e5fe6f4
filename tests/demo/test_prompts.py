"""Prompts for measurements: balanced, reproducible, and right."""

from __future__ import annotations

import random
from collections import Counter

from sae_bench.demo.language import (
    cyclic_prompts,
    indirect_object_prompts,
    persona_questions,
    sentiment_sentences,
    vocabulary,
)


def test_indirect_objects_are_balanced_over_order_and_template():
    prompts = indirect_object_prompts(40, random.Random(3))
    assert prompts == indirect_object_prompts(40, random.Random(3))
    assert set(Counter((item.order, item.template) for item in prompts).values()) == {4}
    for item in prompts:
        words = item.prompt.split()
        assert words.count(item.distractor) == 2
        assert words.count(item.answer) == 1
        assert words[-1] == "to"


def test_cyclic_prompts_name_every_member_equally_often():
    prompts = cyclic_prompts(24, random.Random(3), "month", step=1, direction="before")
    assert set(Counter(item.start for item in prompts).values()) == {2}
    january = next(item for item in prompts if item.start == "january")
    assert (january.prompt, january.answer) == ("the month before january is", "december")


def test_persona_questions_are_counterbalanced_and_their_letters_mean_what_the_factors_say():
    for shifted in (False, True):
        questions = persona_questions(48, random.Random(3), shifted=shifted, stated=True)
        cells = Counter((*item.factors.values(), item.pole) for item in questions)
        assert set(cells.values()) == {48 // len(cells)}
        assert len(cells) == (8 if shifted else 24)
        for item in questions:
            words = item.prompt.split()
            assert words[words.index(item.positive, words.index("?")) + 2] == item.factors["wording"]
            assert {item.positive, item.negative} == {"A", "B"}
            assert item.positive == item.factors["answer_position"]
    plain = {item.factors["template"] for item in persona_questions(48, random.Random(3))}
    assert plain.isdisjoint(item.factors["template"] for item in persona_questions(48, random.Random(3), shifted=True))


def test_an_open_question_says_nothing_about_the_person():
    known = set(vocabulary())
    for item in persona_questions(24, random.Random(3)):
        assert item.pole == "open"
        assert " . " not in item.prompt
        assert set(item.prompt.split()) <= known


def test_sentiments_alternate():
    sentences = sentiment_sentences(10, random.Random(3))
    assert Counter(item.labels["sentiment"] for item in sentences) == {"positive": 5, "negative": 5}
