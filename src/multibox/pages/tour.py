"""The page that `multibox demo` ends with: data, curves and detections, above the whole report."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from multibox.pages.page_images import data_uri

NEXT = (
    ("multibox predict coco my-photos", "finds 80 everyday classes in your own photographs, without any training"),
    ("multibox doctor my-data", "says what is wrong with a labelled data set, before it costs a night of training"),
    ("multibox train my-data --minutes 10 --open", "trains on it, and shows live in the browser how it goes"),
)
"""What a newcomer would type next, and what it does."""
SIDE = 1200
"""Longest side of an image on the page, in pixels."""


class Exhibit(NamedTuple):
    """One image of the tour."""

    anchor: str
    """Its id in the page."""
    heading: str
    text: str
    """What it shows, and how to make the same of other data; plain text, commands between backquotes."""
    image: Image.Image


def opening(exhibits: Sequence[Exhibit], seconds: float) -> str:
    """Return the HTML above the report: what was done, each image with its explanation, and the next commands.

    Args:
        exhibits: In the order in which they were made.
        seconds: The whole tour took.
    """
    links = ", ".join(f'<a href="#{one.anchor}">{html.escape(one.heading)}</a>' for one in exhibits)
    steps = "\n".join(_section(one) for one in exhibits)
    commands = "\n".join(f"<dt><code>{html.escape(line)}</code></dt><dd>{html.escape(why)}</dd>" for line, why in NEXT)
    minutes, rest = divmod(round(seconds), 60)
    return f"""<p class="intro">A detector was trained from nothing on images that the program drew itself, in
{minutes} min {rest} s. This page shows each step. Below it stands the report on the images held out of training.</p>
<section id="next" aria-labelledby="next-heading">
<h2 id="next-heading">What to type next</h2>
<dl>
{commands}
</dl>
</section>
<nav aria-label="Steps">On this page: {links}, <a href="#report">The report</a></nav>
{steps}
<h2 id="report">The report</h2>"""


def _section(one: Exhibit) -> str:
    parts = one.text.split("`")
    text = "".join(f"<code>{html.escape(p)}</code>" if place % 2 else html.escape(p) for place, p in enumerate(parts))
    alt, width, height = html.escape(one.heading, quote=True), one.image.width, one.image.height
    image = f'<img src="{data_uri(one.image, SIDE)}" alt="{alt}" width="{width}" height="{height}">'
    return f"""<section id="{one.anchor}" aria-labelledby="{one.anchor}-heading">
<h2 id="{one.anchor}-heading">{html.escape(one.heading)}</h2>
<p class="intro">{text}</p>
<figure>{image}</figure>
</section>"""
