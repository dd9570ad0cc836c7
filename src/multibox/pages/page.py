"""One self-contained HTML page: styles, scripts and data inside, nothing loaded from elsewhere."""

import html
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

_POLICY = "default-src 'none'; img-src data: blob: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load (Content-Security-Policy): the page itself and images inside or beside it."""


def build_page(
    title: str,
    *,
    body: str,
    data: Mapping[str, Any],
    scripts: Iterable[str] = (),
    attached: Mapping[str, Any] | None = None,
    connect: bool = False,
    source: str | None = None,
    rules: str | None = None,
) -> str:
    """Return a page as HTML.

    Every page has `base.css` and `base.js`, which draw charts, sliders, tables and boxes alike on all of them, follow
    the system's light or dark colours, and fit a phone.

    Args:
        title: Of the page; shown in the browser's tab and as its heading.
        body: HTML below the heading. Escape what comes from the user's data: `html.escape`.
        data: What the scripts show; `multibox.data` in JavaScript. Plain values and numpy arrays.
        scripts: Names of further files in `assets`, `.js` or `.css`, such as "inspector.js".
        attached: Further data by id, behind everything else, so that much of it does not delay the page. The script
            parses one where it needs it: `JSON.parse(document.getElementById(ID).textContent)`.
        connect: Whether the page may talk to the server that it came from.
        source: Address of a file beside the page that holds all scripts (`script_text`); None puts them inside.
        rules: Content-Security-Policy; None takes `policy(connect)`.
    """
    names = list(scripts)
    style = "\n".join(asset(name) for name in ("base.css", *names) if name.endswith(".css"))
    inside = "\n".join(f"<script>\n{asset(name)}\n</script>" for name in ("base.js", *names) if name.endswith(".js"))
    code = inside if source is None else f'<script src="{html.escape(source)}"></script>'
    allowed = html.escape(policy(connect) if rules is None else rules, quote=False)
    late = "\n".join(embedded(name, value) for name, value in (attached or {}).items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to content</a>
<header><h1>{html.escape(title)}</h1></header>
<main id="main">
{body}
</main>
{embedded("data", data)}
{code}
{late}
</body>
</html>
"""


def script_text(scripts: Iterable[str]) -> str:
    """Return `base.js` and the `.js` files among `scripts` as the text of one file; names are those of `build_page`."""
    return "\n".join(asset(name) for name in ("base.js", *scripts) if name.endswith(".js"))


def policy(connect: bool) -> str:
    """Return what the browser may load for a page, as a Content-Security-Policy."""
    return f"{_POLICY}; connect-src 'self'" if connect else _POLICY


def embedded(name: str, value: Any) -> str:
    """Return a script element that holds `value` as JSON under the id `name`; the browser does not run it."""
    return f'<script type="application/json" id="{html.escape(name)}">{to_json(value)}</script>'


def to_json(value: Any) -> str:
    """Return JSON that may stand inside a script element; NaN and infinity become null, arrays lists."""
    # `<` ends the element in "</script>" and changes its meaning in "<!--"
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: arrays and tuples as lists, numpy's numbers as Python's, NaN as None."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return value


@cache
def asset(name: str) -> str:
    """Return the text of a file in `assets`."""
    return (files("multibox.pages") / "assets" / name).read_text(encoding="utf-8")
