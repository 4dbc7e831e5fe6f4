"""Prompts with known answers, counterbalanced, for the properties that need ground truth.

Every function takes an explicit `random.Random`; the same one gives the same prompts. Factors are crossed in full and
walked through in rounds, so that any multiple of the number of cells is exactly balanced.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product

from sae_bench.demo.language.cycles import CYCLES, cycle_step
from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.indirect import ORDERS, TEMPLATES, indirect_object
from sae_bench.demo.language.opinions import SENTIMENTS, opinion
from sae_bench.demo.language.personas import (
    POLES,
    SHIFTED_TEMPLATE,
    letter_question,
    open_question,
    persona_statement,
    yes_letter_for,
)
from sae_bench.demo.language.prose import prose_sentence
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import NAMES, REVIEWED, TOPICS, TRAITS


@dataclass(frozen=True)
class IndirectObjectPrompt:
    """A sentence that stops before its indirect object."""

    prompt: str
    """Text without <bos>; the next word is the answer."""
    answer: str
    """The name that receives."""
    distractor: str
    """The name that gives, which is also in the prompt."""
    order: str
    """ABBA (receiver named first) or BABA."""
    template: int
    """Index of the template."""


@dataclass(frozen=True)
class CyclePrompt:
    """A fact about days or months that stops before its last word."""

    prompt: str
    answer: str
    unit: str
    """`day` or `month`."""
    start: str
    """The member of the cycle that the prompt names."""
    step: int
    """Number of steps, from 1."""
    direction: str
    """`after` or `before`."""


@dataclass(frozen=True)
class PersonaQuestion:
    """A question about a person, with the right answers for a warm and for a cold person."""

    prompt: str
    positive: str
    """The letter that puts the person at the trait's positive pole."""
    negative: str
    """The other letter."""
    factors: Mapping[str, str]
    """`answer_position` (the positive answer's letter), `wording` (its word, yes or no), `template`."""
    pole: str
    """Pole that statements in the prompt establish, or `open` when there are none."""


def indirect_object_prompts(n: int, rng: random.Random) -> list[IndirectObjectPrompt]:
    """Generate n prompts; every order and template equally often in every ten."""
    cells = list(product(range(len(TEMPLATES)), ORDERS))
    prompts: list[IndirectObjectPrompt] = []
    for index in range(n):
        template, order = cells[index % len(cells)]
        item = indirect_object(Draw(rng), order=order, template=template)
        prompts.append(IndirectObjectPrompt(item.prompt, item.answer, item.labels["giver"], order, template))
    return prompts


def indirect_object_clusters(pairs: int, rng: random.Random) -> list[IndirectObjectPrompt]:
    """Generate four prompts for each of `pairs` pairs of names and every template: either receiver, either order.

    The four prompts of a pair differ in nothing else, so that the effect of the order is isolated. No template has a
    pair twice.
    """
    every = list(combinations(NAMES, 2))
    prompts: list[IndirectObjectPrompt] = []
    for chosen in zip(*(rng.sample(every, pairs) for _ in TEMPLATES), strict=True):
        for template, (one, other) in enumerate(chosen):
            seed = rng.getrandbits(64)
            for names, order in product(((one, other), (other, one)), ORDERS):
                item = indirect_object(Draw(random.Random(seed)), order, template, names)
                prompts.append(IndirectObjectPrompt(item.prompt, item.answer, names[1], order, template))
    return prompts


def cyclic_prompts(n: int, rng: random.Random, unit: str, step: int = 1, direction: str = "after") -> list[CyclePrompt]:
    """Generate n prompts about one step and direction; every member is the start equally often, in random order."""
    prompts: list[CyclePrompt] = []
    while len(prompts) < n:
        members = list(CYCLES[unit])
        rng.shuffle(members)
        for start in members[: n - len(prompts)]:
            item = cycle_step(Draw(rng), unit, step=step, direction=direction, start=start)
            prompts.append(CyclePrompt(item.prompt, item.answer, unit, start, step, direction))
    return prompts


def persona_questions(
    n: int, rng: random.Random, *, trait: str = "warmth", stated: bool = False, shifted: bool = False
) -> list[PersonaQuestion]:
    """Generate n questions answered by A or B, counterbalanced in answer position, wording and template.

    With `stated` two sentences first establish the person's pole (both poles equally often); without, the model has no
    reason to prefer either answer. `shifted` puts a sentence of prose in front and uses the wording that the unshifted
    questions never have.
    """
    about = next(item for item in TRAITS if item.name == trait)
    templates = (SHIFTED_TEMPLATE,) if shifted else tuple(range(SHIFTED_TEMPLATE))
    poles = POLES if stated else ("open",)
    cells = list(product(templates, "AB", ("yes", "no"), poles))
    prompts: list[PersonaQuestion] = []
    for index in range(n):
        template, position, wording, pole = cells[index % len(cells)]
        draw, name = Draw(rng), rng.choice(NAMES)
        context: list[Sentence] = [prose_sentence(draw, rng.choice(TOPICS))] if shifted else []
        if stated:
            context += [persona_statement(draw, name, about, pole) for _ in range(2)]
        asked, yes_letter = yes_letter_for(position, wording)
        question = open_question(
            letter_question(draw, name, about, "positive", asked=asked, yes_letter=yes_letter, template=template)
        )
        words = [word for item in context for word in item.words] + list(question.words[:-2])
        factors = {"answer_position": position, "wording": wording, "template": str(template)}
        prompts.append(PersonaQuestion(" ".join(words), position, "B" if position == "A" else "A", factors, pole))
    return prompts


def sentiment_sentences(n: int, rng: random.Random) -> list[Sentence]:
    """Generate n sentences of reviews, positive and negative by turns, with `labels["sentiment"]`."""
    return [opinion(Draw(rng), SENTIMENTS[index % 2], rng.choice(REVIEWED)) for index in range(n)]
