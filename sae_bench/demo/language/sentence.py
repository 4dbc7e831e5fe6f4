"""Sentence with its ground truth, the result of every generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BOS = "<bos>"


@dataclass(frozen=True)
class Sentence:
    """One generated sentence."""

    construction: str
    """Generator of the sentence: `indirect_object`, `cycle`, `persona`, `sentiment`, `number`, `prose`, `headline`."""
    words: tuple[str, ...]
    """Its tokens: words and punctuation."""
    answers: tuple[int, ...] = ()
    """Indices of the words that the words before determine; the grammar leaves no choice there."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ground truth by name: the indirect object, the order of the names, the step, the sentiment."""

    @property
    def prompt(self) -> str:
        """The text up to the last answer."""
        return " ".join(self.words[: self.answers[-1]])

    @property
    def answer(self) -> str:
        """The word at the last answer."""
        return self.words[self.answers[-1]]
