"""Days and months: facts about a cycle, from one step to six, forwards and backwards."""

from __future__ import annotations

from sae_bench.demo.language.draw import Draw
from sae_bench.demo.language.sentence import Sentence
from sae_bench.demo.language.words import DAYS, MONTHS, NUMBERS

CYCLES = {"day": DAYS, "month": MONTHS}
DIRECTIONS = ("after", "before")

# One step is what the longer ones are made of, so it comes most often.
STEP_WEIGHTS = {"day": (0.22, 0.2, 0.17, 0.15, 0.13, 0.13), "month": (0.6, 0.25, 0.15)}
FORM_WEIGHTS = (0.7, 0.15, 0.15)


def cycle_member(unit: str, start: str, step: int, direction: str) -> str:
    """Return the member of the cycle that lies `step` places after or before `start`."""
    cycle = CYCLES[unit]
    sign = 1 if direction == "after" else -1
    return cycle[(cycle.index(start) + sign * step) % len(cycle)]


def cycle_step(
    draw: Draw, unit: str, step: int | None = None, direction: str | None = None, start: str | None = None
) -> Sentence:
    """Generate "three days after monday comes thursday .", and for one step "the day after monday is tuesday ."."""
    weights = STEP_WEIGHTS[unit]
    step = draw.weighted(range(1, len(weights) + 1), weights) if step is None else step
    direction = draw.one(DIRECTIONS) if direction is None else direction
    start = draw.one(CYCLES[unit]) if start is None else start
    end = cycle_member(unit, start, step, direction)
    if step == 1:
        text = f"the {unit} {direction} {start} is {end} ."
    else:
        text = f"{NUMBERS[step]} {unit}s {direction} {start} comes {end} ."
    words = tuple(text.split())
    labels = {
        "kind": f"{unit}_next" if step == 1 else f"{unit}_steps",
        "unit": unit,
        "step": str(step),
        "direction": direction,
        "start": start,
        "end": end,
    }
    return Sentence("cycle", words, (len(words) - 2,), labels)


def cycle_order(draw: Draw, unit: str) -> Sentence:
    """Generate the cycle in order from any member on; the months stop after six."""
    start = draw.one(CYCLES[unit])
    members = [cycle_member(unit, start, step, "after") for step in range(7 if unit == "day" else 6)]
    words = ("the", f"{unit}s", "in", "order", ":", *members, ".")
    labels = {"kind": f"{unit}_order", "unit": unit, "start": start}
    return Sentence("cycle", words, tuple(range(6, 5 + len(members))), labels)


def cycle_neighbours(draw: Draw, unit: str) -> Sentence:
    """Generate "if this day is monday , the next is tuesday and the last was sunday ."."""
    start = draw.one(CYCLES[unit])
    after, before = cycle_member(unit, start, 1, "after"), cycle_member(unit, start, 1, "before")
    words = tuple(f"if this {unit} is {start} , the next is {after} and the last was {before} .".split())
    labels = {"kind": f"{unit}_neighbours", "unit": unit, "start": start}
    return Sentence("cycle", words, (words.index("next") + 2, len(words) - 2), labels)


def cycle_fact(draw: Draw, unit: str) -> Sentence:
    """Generate one of the three forms."""
    form = draw.weighted(("step", "order", "neighbours"), FORM_WEIGHTS)
    if form == "step":
        return cycle_step(draw, unit)
    return cycle_order(draw, unit) if form == "order" else cycle_neighbours(draw, unit)
