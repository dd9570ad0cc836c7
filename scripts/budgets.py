"""Fail when a file or a function of the package has outgrown its budget (CONTRIBUTING, "House style")."""

import ast
import sys
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 50
"""Of a function's body: parameters and docstring, which a public function spells out one by one, are not counted."""
ROOT = Path(__file__).resolve().parent.parent


def overlong(path: Path) -> list[str]:
    """Name every budget that one file breaks."""
    text = path.read_text(encoding="utf-8")
    where = path.relative_to(ROOT)
    lines = text.count("\n")
    found = [f"{where}: {lines} lines, at most {FILE_LINES}"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            length = (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 1
            if length > FUNCTION_LINES:
                found.append(f"{where}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}")
    return found


if __name__ == "__main__":
    problems = [line for path in sorted((ROOT / "src").rglob("*.py")) for line in overlong(path)]
    print("\n".join(problems) or "budgets kept")
    sys.exit(bool(problems))
