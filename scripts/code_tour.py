"""Point the links of docs/explain/code-tour.md at today's lines.

    python scripts/code_tour.py

A link's text is a name in backticks and its target a file of the package: the script looks the name up in that file and
writes its line behind `#L`. It fails if a file or a name is gone. tests/documents/test_code_tour.py checks the same.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/explain/code-tour.md"
LINK = re.compile(r"\[`([\w.]+)(?:\(\))?`\]\(\.\./\.\./([\w/]+\.py)(?:#L(\d+))?\)")
"""Name, file from the repository's root, line."""


def line_of(name: str, file: Path) -> int:
    """Return the line on which a file defines `name`: a function, a class, a constant, or `Class.method`.

    Raises:
        KeyError: the file does not define it.
    """
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    line = 0
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            raise KeyError(f"{file.relative_to(ROOT)} does not define {name}; correct docs/explain/code-tour.md")
        line, body = found.lineno, getattr(found, "body", [])
    return line


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def with_todays_lines(text: str) -> str:
    """Return the page with the line of every link brought up to date."""
    return LINK.sub(lambda link: f"[`{link[1]}`](../../{link[2]}#L{line_of(link[1], ROOT / link[2])})", text)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = with_todays_lines(before)
    PAGE.write_text(after, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {'lines updated' if after != before else 'up to date'}")
    sys.exit(0)
