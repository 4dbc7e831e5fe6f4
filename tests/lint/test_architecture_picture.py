"""The picture in docs/architecture.md shows the imports as they are, and every room opens with its question."""

from __future__ import annotations

from tests.lint import architecture_picture


def test_the_picture_is_drawn_from_the_imports_of_today() -> None:
    assert architecture_picture.PICTURE.read_text(encoding="utf-8") == architecture_picture.draw(), (
        "imports changed: run python -m tests.lint.architecture_picture"
    )


def test_every_room_opens_with_one_question() -> None:
    for room in architecture_picture.rooms():
        assert len(room.question) <= 90, f"{room.name}/__init__.py opens with {room.question!r}"
