"""The page that tries a model: drop an image or show the camera, and boxes appear."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from msgspec import to_builtins

from multibox.pages.page import build_page, script_text
from multibox.thresholds import class_thresholds

Backend = Literal["server", "onnx"]
"""What finds objects for the page: the server that sent it, or onnxruntime-web inside the browser."""
LOWEST = 0.05
"""Lowest score that the page asks for; its slider starts there."""
_SHARED = "live.css", "live-words.js", "live-parts.js", "live-view.js", "live-camera.js", "live.js"
_STARTS = {"server": ("live-server.js",), "onnx": ("live-onnx.js",)}


class Links(TypedDict, total=False):
    """Where the page leads to; what is absent is not shown."""

    models: Sequence[str]
    """Names of all models of the server; the page has a choice where there are several (`/?model=NAME`)."""
    docs: str
    """Address of the documents."""
    openapi: str
    """Address of the description of the server's interface."""


def live_scripts(backend: Backend) -> list[str]:
    """Return the names of the page's assets, in the order in which they run."""
    return [*_SHARED, *_STARTS[backend], "live-start.js"]


def live_script(backend: Backend) -> str:
    """Return all scripts of the page as the text of one file, for a page with `source`."""
    return script_text(live_scripts(backend))


def live_page(
    *,
    title: str,
    names: Sequence[str],
    thresholds: Sequence[float],
    nms: float,
    most: int,
    backend: Backend = "server",
    inclusive: bool = False,
    about: str = "",
    licence: str = "",
    secured: bool = False,
    links: Links | None = None,
    extra: Mapping[str, Any] | None = None,
    source: str | None = None,
    rules: str | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        title: Name of the model.
        names: Of its classes.
        thresholds: The model's own lowest scores to report, one per class.
        nms: IoU above which the model suppresses a box.
        most: Detections per image, at most.
        backend: What finds objects.
        inclusive: Whether an IoU equal to `nms` suppresses, too.
        about: One line about the model, such as its network.
        licence: Of the weights.
        secured: Whether programs need a token.
        links: Where the page leads to.
        extra: Further data for the back end, `multibox.data.NAME` in JavaScript.
        source: Address of a file beside the page that holds `live_script(backend)`; None puts it inside.
        rules: Content-Security-Policy; None takes that of pages that talk to their own server.
    """
    data: dict[str, Any] = {
        "title": title,
        "names": list(names),
        "thresholds": list(thresholds),
        "nms": nms,
        "inclusive": inclusive,
        "most": most,
        "lowest": LOWEST,
        "about": about,
        "licence": licence,
        "secured": secured,
        "links": dict(links or {}),
        **(extra or {}),
    }
    body = '<div id="live"></div>\n<noscript>This page needs JavaScript.</noscript>'
    scripts = live_scripts(backend)
    return build_page(title, body=body, data=data, scripts=scripts, connect=True, source=source, rules=rules)


def page_for(
    name: str, detector: Any, *, about: str = "", models: Sequence[str] = (), secured: bool = False, docs: str = ""
) -> str:
    """Return the page of `multibox serve` for a detector, as HTML.

    Args:
        name: Of the model on this server.
        detector: A `Detector` or `ExportedDetector`.
        about: One line about the model.
        models: Names of all models of the server.
        secured: Whether programs need a token.
        docs: Address of the documents.
    """
    links: Links = {"openapi": "openapi.json", "docs": docs, "models": models}
    settings = model_settings(detector)
    return live_page(title=name, **settings, about=about, secured=secured, links=links, extra={"model": name})


def model_settings(detector: Any) -> dict[str, Any]:
    """Return what the page has to know of a detector: its names, thresholds, limits and licence."""
    about: dict[str, Any] = getattr(detector, "about", {})
    post: Any = about.get("post") or to_builtins(detector.config.post)
    return {
        "names": detector.names,
        "thresholds": class_thresholds(detector.thresholds, detector.names),
        "nms": post["nms_threshold"],
        "inclusive": post.get("nms_inclusive", False),
        "most": post["max_detections"],
        "licence": about.get("license", ""),
    }
