"""Pages of docs/: what they link to exists, and pictures are small, whole and without traces of a machine."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a git host makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings(page):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_every_picture_is_shown_and_all_are_small():
    shown = set(re.findall(r"\(pictures/([\w.-]+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8")))
    there = {path.name for path in PICTURES.iterdir()}
    assert shown == there and len(there) >= 8
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_500_000


@pytest.mark.parametrize("picture", sorted(PICTURES.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_of_a_terminal_loads_nothing_and_names_no_place_of_a_machine(picture):
    text = picture.read_text(encoding="utf-8")
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>")
    assert not re.findall(r"(?:href|src)=|url\((?!#)|@font-face", text)
    assert not re.findall(r"/(?:root|home|tmp|work)/", text.replace("&#160;", " "))
