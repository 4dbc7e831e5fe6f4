"""Every code block of docs/ is run, or says why not; what the pages name exists; the site is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sae_bench.measure.properties import built_in, load_property
from sae_bench.measure.properties.contract import CLAUSES
from tests.support.docs_pages import DOCS, Block, blocks

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
TESTED = {"tutorial.md": "test_tutorial.py", "extending.md": "test_extending.py"}
"Pages whose files and commands have a test of their own."
ALL = [block for page in PAGES for block in blocks(page)]
HERE = [block for block in ALL if block.reason == "tests/journeys/test_docs_pages.py"]


@pytest.mark.parametrize("block", ALL, ids=lambda block: f"{block.page}-{block.language}")
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    if block.reason is None:
        assert block.page in TESTED, f"{block.page} has a block that nothing runs:\n{block.text}"
    elif block.reason.startswith("tests/"):
        runner = ROOT / block.reason.split(",")[0]
        assert runner.is_file()
        assert runner.name == "test_pages.py" or block.page in runner.read_text() or "test_" in runner.name
    else:
        assert len(block.reason.split()) >= 4


@pytest.mark.parametrize("block", HERE, ids=lambda block: f"{block.page}-{block.text.split()[1]}")
def test_blocks_run_as_they_stand(block: Block, small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_bench import demo

    # The whole corpus takes a minute, and the page does not speak of its size.
    monkeypatch.setattr(demo, "CORPUS", small_corpus)
    exec(compile(block.text, block.page, "exec"), {"__name__": "page"})


def test_every_page_is_in_the_site_and_links_lead_somewhere() -> None:
    pages = [next(iter(entry.values())) for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]]
    assert sorted(pages) == PAGES
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)", (DOCS / page).read_text()):
            assert (DOCS / target).is_file(), f"{page} links to {target}"


def test_what_the_pages_name_exists() -> None:
    text = (DOCS / "properties.md").read_text()
    for clause in CLAUSES:
        assert f"`{clause}`" in text
    judged = [name for name in built_in() if load_property(name).limits]
    headings = " ".join(re.findall(r"^## (.*)", text, re.MULTILINE))
    assert [name for name in judged if name not in headings] == []


def test_the_reference_names_what_can_be_imported() -> None:
    import importlib

    for path in re.findall(r"^::: (\S+)", (DOCS / "reference.md").read_text(), re.MULTILINE):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, path
