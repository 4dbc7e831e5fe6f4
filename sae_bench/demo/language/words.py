"""The vocabulary, by the role a word plays. Lists are in order of frequency where a generator draws by Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass


def spread(text: str) -> tuple[str, ...]:
    """Split a text into its words."""
    return tuple(text.split())


PUNCTUATION = (".", ",", "?", ":", "(", ")")

NAMES = spread(
    "Mary John Anna Peter Laura David Emma James Sarah Paul Alice Henry "
    "Clara Simon Julia Frank Nina Oscar Helen Victor Rosa Martin Irene Thomas"
)
PLACES = spread("store park school office garden station library kitchen museum harbor")
OBJECTS = spread("drink book letter ring key ball map coin basket ticket")

DAYS = spread("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = spread("january february march april may june july august september october november december")
NUMBERS = spread("zero one two three four five six seven eight nine ten eleven twelve")


@dataclass(frozen=True)
class Trait:
    """A persona's trait with two poles: adjectives and habits (verb, object) of either."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    positive_habits: tuple[tuple[str, str], ...]
    negative_habits: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    words = spread(text)
    return tuple(zip(words[::2], words[1::2], strict=True))


TRAITS = (
    Trait(
        "warmth",
        spread("kind gentle friendly generous caring polite"),
        spread("cruel rude selfish mean greedy hostile"),
        _pairs("helps strangers shares food forgives rivals thanks people"),
        _pairs("insults strangers steals food mocks rivals ignores people"),
    ),
    Trait(
        "courage",
        spread("brave bold daring fearless"),
        spread("timid shy nervous fearful"),
        _pairs("climbs cliffs faces danger fights bullies"),
        _pairs("avoids cliffs flees danger dreads bullies"),
    ),
)

REVIEWED = spread("film play concert meal hotel book tour show")
ASPECTS = spread("story music service acting staff ending view price")
PRAISE = spread("wonderful great excellent lovely brilliant superb charming perfect delightful amazing")
BLAME = spread("terrible awful horrible boring dreadful poor ugly dull disappointing painful")
PRAISE_VERBS = spread("loved enjoyed admired praised")
BLAME_VERBS = spread("hated disliked despised regretted")


@dataclass(frozen=True)
class Topic:
    """A topic of prose: nouns and verbs as (singular, plural) forms, adjectives."""

    name: str
    nouns: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[str, str], ...]
    adjectives: tuple[str, ...]


def _topic(name: str, nouns: str, verbs: str, adjectives: str) -> Topic:
    return Topic(name, _pairs(nouns), _pairs(verbs), spread(adjectives))


TOPICS = (
    _topic(
        "sea",
        "boat boats wave waves sailor sailors island islands fish fishes captain captains whale whales "
        "anchor anchors beach beaches storm storms sail sails",
        "crosses cross follows follow reaches reach carries carry leaves leave",
        "deep salty wild distant calm",
    ),
    _topic(
        "farm",
        "farmer farmers field fields horse horses cow cows barn barns sheepdog sheepdogs fence fences "
        "crop crops tractor tractors goat goats orchard orchards",
        "feeds feed plows plow guards guard circles circle grazes graze",
        "green muddy hungry fertile dusty",
    ),
    _topic(
        "law",
        "judge judges lawyer lawyers court courts witness witnesses trial trials law laws crime crimes "
        "jury juries prison prisons verdict verdicts contract contracts",
        "accuses accuse defends defend questions question punishes punish signs sign",
        "guilty strict legal formal famous",
    ),
    _topic(
        "science",
        "scientist scientists theory theories planet planets star stars experiment experiments atom atoms "
        "telescope telescopes cell cells engine engines robot robots signal signals",
        "measures measure explains explain predicts predict observes observe orbits orbit",
        "bright precise complex tiny electric",
    ),
    _topic(
        "music",
        "singer singers song songs drum drums violin violins piano pianos choir choirs dancer dancers "
        "melody melodies crowd crowds stage stages guitar guitars",
        "plays play hears hear fills fill inspires inspire repeats repeat",
        "loud soft slow joyful rhythmic",
    ),
    _topic(
        "city",
        "street streets bus buses tower towers bridge bridges driver drivers market markets mayor mayors "
        "square squares house houses worker workers train trains",
        "builds build passes pass visits visit stops stop connects connect",
        "busy tall narrow modern crowded",
    ),
    _topic(
        "winter",
        "mountain mountains skier skiers wolf wolves river rivers forest forests glacier glaciers cabin cabins "
        "hunter hunters trail trails bear bears valley valleys",
        "hunts hunt covers cover freezes freeze climbs climb hides hide",
        "cold white steep frozen silent",
    ),
)

ADVERBS = spread("often slowly again quickly never quietly always")
PREPOSITIONS = spread("near behind beside with under")
QUANTIFIERS = ("many", "several", "few")
