"""docs/ap-is-0.md quotes what multibox prints: every message on the page fits a string of the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ap-is-0.md").read_text(encoding="utf-8")
FIXED = 15
"""Letters that a string of the source must have of its own, or it would fit any message."""
QUOTED = [
    " ".join(block.split()) for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
]  # fmt: skip


def patterns() -> Iterator[re.Pattern[str]]:
    """Yield every string and f-string of the package, with anything in place of the f-string's values."""
    for file in (ROOT / "src" / "multibox").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            if sum(len(part) for part in parts if part) >= FIXED:
                yield re.compile(
                    "".join(".*" if part is None else re.escape(" ".join(part.split(" "))) for part in parts)
                )


@pytest.fixture(scope="module")
def printed() -> list[re.Pattern[str]]:
    return list(patterns())


@pytest.mark.parametrize("message", QUOTED, ids=lambda text: text[:40])
def test_a_quoted_message_is_one_that_is_printed(message, printed):
    text = message.removeprefix("multibox: ")
    fitting = [one.pattern for one in printed if (match := one.match(text)) and match.end() > 0.4 * len(text)]
    assert fitting, f"docs/ap-is-0.md quotes a message that the source does not have: {message}"


def test_the_page_quotes_messages():
    assert len(QUOTED) >= 8
