"""The code tour links to the lines that define what it names."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("code_tour", ROOT / "scripts/code_tour.py")
assert SPEC is not None and SPEC.loader is not None
code_tour = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(code_tour)


def test_every_link_points_at_the_line_that_defines_its_name():
    text = code_tour.PAGE.read_text(encoding="utf-8")
    links = code_tour.LINK.findall(text)
    assert len(links) >= 40
    assert text.count("](../../src/") == len(links), "a link to source code that is not a name in backticks"
    wrong = [
        f"{name}: {file}#L{line}, defined on line {code_tour.line_of(name, ROOT / file)}"
        for name, file, line in links
        if not line or int(line) != code_tour.line_of(name, ROOT / file)
    ]
    assert not wrong, f"{wrong}; run python scripts/code_tour.py"
