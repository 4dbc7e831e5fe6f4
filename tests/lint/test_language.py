"""Names and docstrings follow the language of the field: ``python -m tests.lint.language`` lists the hits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lint import language


def test_names_and_docstrings_are_plain() -> None:
    problems = language.problems()
    assert not problems, "\n".join(problems[:40])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def found(): ...", "'found' does not say"),
        ("def f(told): ...", "'told' does not say"),
        ("class A:\n    beside: int", "'beside' does not say"),
        ("class A:\n    def f(self):\n        self._held = 1", "'_held' does not say"),
        ('def f():\n    """What is worth a line."""', "opens with 'What'"),
        ('"""How it is done."""', "opens with 'How'"),
        ('class A:\n    n: int\n    "What is counted."', "docstring of 'n' opens with 'What'"),
        ('N = 1\n"Memory beside the model."', "docstring of 'N' says 'beside'"),
        ("class A:\n    left: int", "'left' does not say"),
        ("def f():\n    found = 1", "'found' does not say"),
        ("def cached_companions(): ...", "'cached_companions' does not say"),
        ('Metric("a", "", "lower", "the same of all features")', "does not stand alone"),
    ],
)
def test_a_riddle_is_a_hit(code: str, message: str) -> None:
    hits = list(language.hits_in(language.PACKAGE / "measure" / "some" / "module.py", code))
    assert len(hits) == 1
    assert message in str(hits[0])


def test_plain_code_has_no_hit() -> None:
    code = '"""Nearest neighbours."""\n\ndef kept_rows(rows):\n    """Return rows of ``arm``."""\n    return rows\n'
    assert not list(language.hits_in(Path(language.PACKAGE / "measure" / "some" / "module.py"), code))
