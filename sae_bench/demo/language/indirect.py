"""Indirect objects: two names, one of them gives, and only the other can receive."""

from __future__ import annotations

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import NAMES, OBJECTS, PLACES

ORDERS = ("ABBA", "BABA")

TEMPLATES = (
    "when {first} and {second} went to the {place} , {giver} gave the {object} to {receiver} .",
    "after {first} and {second} met at the {place} , {giver} handed a {object} to {receiver} .",
    "{first} and {second} were at the {place} . {giver} offered the {object} to {receiver} .",
    "while {first} and {second} waited in the {place} , {giver} passed a {object} to {receiver} .",
    "then {first} and {second} had a long talk , and {giver} sent the {object} to {receiver} .",
)


def indirect_object(
    draw: Draw, order: str | None = None, template: int | None = None, names: tuple[str, str] | None = None
) -> Sentence:
    """Generate one sentence. ABBA names the receiver first, BABA the giver; arguments that are None are drawn.

    `names` are the receiver and the giver.
    """
    receiver, giver = draw.two(NAMES) if names is None else names
    order = draw.one(ORDERS) if order is None else order
    template = draw.one(range(len(TEMPLATES))) if template is None else template
    first, second = (receiver, giver) if order == "ABBA" else (giver, receiver)
    form = TEMPLATES[template]
    place = draw.zipf(PLACES) if "{place}" in form else ""
    thing = draw.zipf(OBJECTS)
    text = form.format(first=first, second=second, giver=giver, receiver=receiver, place=place, object=thing)
    words = tuple(text.split())
    labels = {
        "kind": "indirect_object",
        "order": order,
        "template": str(template),
        "giver": giver,
        "receiver": receiver,
    }
    return Sentence("indirect_object", words, (len(words) - 2,), labels)
