"""Check the sizes of files, functions and packages in `src` (CONTRIBUTING, "House style"); print every problem."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

MOST_LINES, LEAST_LINES = 500, 50
"""Of a file. Files under `LEAST_LINES` are allowed in `cli/`, where each verb has a file, and if named in `TABLES`."""
FUNCTION_LINES = 50
"""Of a function's body. Parameters and docstring are not counted, since a public function documents each parameter."""
PACKAGE_FILES = 3
SPECIAL = ("__init__.py", "__main__.py")
TABLES = {"presets/networks.py", "presets/recipes.py"}
"""Files of data, which may be as short as their data."""
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "multibox"


def check_file(path: Path) -> list[str]:
    """Return the budgets that one file breaks."""
    name = path.relative_to(PACKAGE).as_posix()
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    problems = [f"{name}: {lines} lines, at most {MOST_LINES}"] if lines > MOST_LINES else []
    exempt = path.name in SPECIAL or name.startswith("cli/") or name in TABLES
    if lines < LEAST_LINES and not exempt:
        problems.append(f"{name}: {lines} lines, at least {LEAST_LINES}; join it with the file that uses it")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            length = (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 1
            if length > FUNCTION_LINES:
                problems.append(f"{name}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}")
    return problems


def check_package(files: list[Path]) -> list[str]:
    """Return repeated file names, packages of too few files and entries of this script without a file."""
    problems: list[str] = []
    places, packages = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        packages[path.parent.relative_to(ROOT / "src").as_posix()].append(name)
        if path.name not in SPECIAL and not name.startswith("cli/"):
            places[path.name].append(name)
    for names in places.values():
        if len(names) > 1:
            problems.append(f"{' and '.join(names)}: one file name in {len(names)} places")
    for package, names in packages.items():
        if len(names) < PACKAGE_FILES:
            problems.append(f"{package}: a package of {len(names)} files, at least {PACKAGE_FILES}")
    for name in sorted(TABLES - {path.relative_to(PACKAGE).as_posix() for path in files}):
        problems.append(f"{name}: no such file; remove its entry from scripts/budgets.py")
    return problems


if __name__ == "__main__":
    files = sorted(PACKAGE.rglob("*.py"))
    problems = [problem for path in files for problem in check_file(path)] + check_package(files)
    print("\n".join(problems) or f"budgets kept by {len(files)} files")
    sys.exit(bool(problems))
