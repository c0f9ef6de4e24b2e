"""The documents name what there is: every file, every page, every place that a link leads to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cache_schema", "pipeline", "training")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
LISTED_TOGETHER = ("pipeline/phantom", "training/models", "training/federated/strategies")
"""Rooms that architecture.md lists in one row, without the files' endings."""


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def room_table(room):
    """Cut the table of a room out of architecture.md: from its head to the next blank line."""
    return (
        page("docs/architecture.md").partition(f"| `{room}/` | |")[2].strip().partition("\n\n")[0]
    )


def files_of(room):
    """List the files of a room by their path in it; those that are listed together stay out."""
    paths = [p for p in (ROOT / room).rglob("*") if p.suffix in {".py", ".j2"}]
    names = [path.relative_to(ROOT).as_posix() for path in paths if path.stem != "__init__"]
    return {
        name.removeprefix(f"{room}/")
        for name in names
        if not name.startswith(tuple(f"{folder}/" for folder in LISTED_TOGETHER))
    }


def anchors(path):
    """Make the anchors of a page's headings as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("room", ROOMS)
def test_the_architecture_lists_every_file_of_a_room_and_no_other(room):
    listed = {
        name
        for row in room_table(room).splitlines()
        for name in re.findall(r"`([\w./]+\.(?:py|j2))`", row.split("|")[1])
    }
    assert listed == files_of(room)


def test_the_table_of_contents_lists_every_page():
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", page("docs/index.md"), re.MULTILINE)
    found = {(ROOT / "docs" / name).resolve() for name in listed}
    assert found == set(PAGES) - {ROOT / "docs" / "index.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        place = path.parent / target if target else path
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), f"{target}#{anchor}"
