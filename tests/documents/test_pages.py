"""The pages fit a screen, their links lead somewhere, and commands and files that they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRITTEN_BY_CODE = {"settings.md", "doctor-kinds.md"}
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/lab/*.md"),
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks/README.md",
    ]
    if page.name not in WRITTEN_BY_CODE
)
TABLE_WIDTH, TABLE_ROWS, CELL, LINE = 100, 12, 120, 120
INSIDE_WORDS = ("lineages?", "post A", "post B", "the aim was", "(?:are|is) said to")


def shown(row: str) -> str:
    """Return a row of a table without the targets of its links."""
    return re.sub(r"\]\([^)]*\)", "]", row)


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def tables(text: str) -> list[list[str]]:
    """Return the rows of each table of a page, without heading and rule."""
    return [block.splitlines()[2:] for block in re.findall(r"(?:^\|.*\n)+", prose(text), re.MULTILINE)]


def anchor(heading: str) -> str:
    """Return the name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_tables_fit_a_screen(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for rows in tables(text):
        assert len(rows) <= TABLE_ROWS, rows[0]
        for row in map(shown, rows):
            assert len(row) <= TABLE_WIDTH, row
            assert all(len(cell) < CELL for cell in row.split("|")), row


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit_a_screen(page):
    for line in prose((ROOT / page).read_text(encoding="utf-8")).splitlines():
        assert len(shown(line)) <= LINE or line.startswith("|") or re.match(r"\[\w+\]: ", line), line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_page_and_its_heading(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, fragment in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(text)):
        if target.startswith("http"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", prose(file.read_text(encoding="utf-8")), re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, (target, fragment)


@pytest.mark.parametrize("page", PAGES)
def test_links_by_reference_are_defined(page):
    text = prose((ROOT / page).read_text(encoding="utf-8"))
    named = set(re.findall(r"\]\[(\w+)\]", text))
    assert named == set(re.findall(r"^\[(\w+)\]: http\S+$", text, re.MULTILINE))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/originals.md"])
def test_no_words_from_inside_the_project(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [word for word in INSIDE_WORDS if re.search(rf"\b{word}\b", text)]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_named_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:benchmarks|scripts|examples|tests|docs|src)/[\w/.]+\.(?:py|md|png))\b", text):
        assert (ROOT / path).exists(), path


def test_decisions_are_paragraphs_of_four_lines():
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip().splitlines()
        assert len(lines) <= 4, lines
        assert all(len(line) <= 120 for line in lines), lines
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        assert heading.endswith("?"), heading
