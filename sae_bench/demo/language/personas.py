"""Personas: two statements fix a person's trait, and every question about that person has one right answer.

The statements never contain the answer. A letter's meaning, the pole a question asks about and the wording are drawn
independently of the trait, so neither a letter nor a "yes" tells anything about the person.
"""

from __future__ import annotations

from collections.abc import Iterator

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import NAMES, TRAITS, Trait

POLES = ("positive", "negative")

TEMPLATES = (
    "question : is {name} {word} ? ( A ) {a} ( B ) {b} answer : {answer} .",
    "would you call {name} {word} ? ( A ) {a} ( B ) {b} answer : {answer} .",
    "does {name} seem {word} ? choose ( A ) {a} or ( B ) {b} : {answer} .",
    "people ask : is {name} really {word} ? ( A ) {a} ( B ) {b} reply : {answer} .",
)
"""Wordings of questions; the last one is reserved for the shifted contrast set."""
SHIFTED_TEMPLATE = 3

QUESTION_WEIGHTS = (0.4, 0.4, 0.2)
"""Probabilities of a question answered by a letter, by yes or no, and by an adjective."""

STATEMENTS = ("is {}", "is very {}", "was always {}")


def _side(trait: Trait, pole: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    if pole == "positive":
        return trait.positive, trait.positive_habits
    return trait.negative, trait.negative_habits


def _adjective(draw: Draw, trait: Trait, pole: str, theme: int | None) -> str:
    """Draw an adjective of the pole. A theme repeats one of them, by its index in the list, within a paragraph.

    The model learns first that words are repeated, and later that words of one pole belong together.
    """
    adjectives = _side(trait, pole)[0]
    if theme is not None and draw.chance(0.4):
        return adjectives[theme]
    return draw.one(adjectives)


def persona_statement(draw: Draw, name: str, trait: Trait, pole: str, theme: int | None = None) -> Sentence:
    """Generate "Anna is very kind ." or "Anna often helps strangers ."."""
    if draw.chance(0.6):
        text = f"{name} {draw.one(STATEMENTS).format(_adjective(draw, trait, pole, theme))} ."
    else:
        text = f"{name} often {' '.join(draw.one(_side(trait, pole)[1]))} ."
    return Sentence("persona", tuple(text.split()), (), {"kind": "persona", "trait": trait.name, "pole": pole})


def persona_list(draw: Draw, name: str, trait: Trait, pole: str) -> Sentence:
    """Generate "Anna is kind , polite and gentle .": the sentence that teaches which words belong together."""
    adjectives = _side(trait, pole)[0]
    first, second = draw.two(adjectives)
    third = draw.one([word for word in adjectives if word not in (first, second)])
    words = tuple(f"{name} is {first} , {second} and {third} .".split())
    return Sentence("persona", words, (), {"kind": "persona", "trait": trait.name, "pole": pole})


def letter_question(
    draw: Draw,
    name: str,
    trait: Trait,
    pole: str,
    theme: int | None = None,
    asked: str | None = None,
    yes_letter: str | None = None,
    template: int | None = None,
) -> Sentence:
    """Generate a question answered by A or B; `asked` is the pole of its adjective, `yes_letter` the letter of yes."""
    asked = draw.one(POLES) if asked is None else asked
    yes_letter = draw.one("AB") if yes_letter is None else yes_letter
    template = draw.one(range(len(TEMPLATES))) if template is None else template
    word = _adjective(draw, trait, asked, theme)
    no_letter = "B" if yes_letter == "A" else "A"
    answer = yes_letter if asked == pole else no_letter
    a, b = ("yes", "no") if yes_letter == "A" else ("no", "yes")
    words = tuple(TEMPLATES[template].format(name=name, word=word, a=a, b=b, answer=answer).split())
    labels = {
        "kind": "letter",
        "trait": trait.name,
        "pole": pole,
        "asked": asked,
        "yes_letter": yes_letter,
        "template": str(template),
    }
    return Sentence("persona", words, (len(words) - 2,), labels)


def yes_letter_for(position: str, wording: str) -> tuple[str, str]:
    """Return pole and letter of yes for which a positive person's answer has this letter and wording."""
    if wording == "yes":
        return "positive", position
    return "negative", "B" if position == "A" else "A"


def word_question(draw: Draw, name: str, trait: Trait, pole: str, theme: int | None = None) -> Sentence:
    """Generate a question answered by yes or no."""
    asked = draw.one(POLES)
    word = _adjective(draw, trait, asked, theme)
    answer = "yes" if asked == pole else "no"
    words = tuple(f"question : is {name} {word} ? answer : {answer} .".split())
    labels = {"kind": "yes_no", "trait": trait.name, "pole": pole, "asked": asked}
    return Sentence("persona", words, (len(words) - 2,), labels)


def choice_question(draw: Draw, name: str, trait: Trait, pole: str, theme: int | None = None) -> Sentence:
    """Generate a question answered by one of two adjectives."""
    words = {side: _adjective(draw, trait, side, theme) for side in POLES}
    first, second = (words[side] for side in draw.one((POLES, POLES[::-1])))
    text = f"question : is {name} {first} or {second} ? answer : {words[pole]} ."
    labels = {"kind": "choice", "trait": trait.name, "pole": pole}
    return Sentence("persona", tuple(text.split()), (len(text.split()) - 2,), labels)


def open_question(question: Sentence) -> Sentence:
    """Return the question without a known answer: nothing is stated about the person before it."""
    labels = {**question.labels, "kind": f"{question.labels['kind']}_open"}
    return Sentence(question.construction, question.words, (), labels)


def persona_question(draw: Draw, name: str, trait: Trait, pole: str, theme: int | None = None) -> Sentence:
    """Generate a question of one of the three kinds."""
    ask = draw.weighted((letter_question, word_question, choice_question), QUESTION_WEIGHTS)
    return ask(draw, name, trait, pole, theme)


def persona_paragraph(draw: Draw) -> Iterator[Sentence]:
    """Yield statements about one person, then questions; sometimes a question comes first and fixes the trait."""
    name, trait, pole = draw.one(NAMES), draw.one(TRAITS), draw.one(POLES)
    theme = draw.one(range(len(trait.positive)))
    if draw.chance(0.25):
        yield open_question(persona_question(draw, name, trait, pole, theme))
    if draw.chance(0.7):
        yield persona_list(draw, name, trait, pole)
    yield persona_statement(draw, name, trait, pole, theme)
    for _ in range(draw.between(3, 5)):
        yield persona_question(draw, name, trait, pole, theme)
