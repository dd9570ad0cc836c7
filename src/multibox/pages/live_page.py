"""The page that tries a model: drop an image or show the camera, and boxes appear."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

from msgspec import to_builtins

from multibox.builtin import MODELS
from multibox.pages.page import build_page, script_text
from multibox.thresholds import class_thresholds

Backend = Literal["server", "onnx"]
"""What finds objects for the page: the server that sent it, or onnxruntime-web inside the browser."""
LOWEST = 0.05
"""Lowest score that the page asks for; its slider starts there."""
_SHARED = "live.css", "live-words.js", "live-parts.js", "live-about.js", "live-view.js", "live-camera.js", "live.js"
_STARTS = {"server": ("live-server.js",), "onnx": ("live-onnx.js",)}


class Hosted(Protocol):
    """A model of a server."""

    @property
    def source(self) -> str:
        """What `multibox.load` took."""
        ...

    @property
    def detector(self) -> Any:
        """A `Detector` or `ExportedDetector`."""
        ...


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


def page_of(
    models: Mapping[str, Hosted], wanted: str | None = None, *, secured: bool = False, links: Links | None = None
) -> str:
    """Return the page of `multibox serve` as HTML.

    Args:
        models: Of the server, by name; the first one is the default.
        wanted: Name of the model to try, as in `/?model=NAME`; the default one where there is no such model.
        secured: Whether programs need a token.
        links: Where the page leads to, besides the other models.
    """
    name = wanted if wanted is not None and wanted in models else next(iter(models))
    ways: Links = {"openapi": "openapi.json", **(links or {}), "models": list(models)}
    settings = model_settings(models[name].detector, models[name].source)
    return live_page(title=name, **settings, secured=secured, links=ways, extra={"model": name})


def model_settings(detector: Any, source: str = "") -> dict[str, Any]:
    """Return what `live_page` has to know of a detector that was opened from `source`, as its arguments."""
    about: dict[str, Any] = getattr(detector, "about", {})
    network = MODELS[source].network if source in MODELS else about.get("preset")
    post: Any = about.get("post") or to_builtins(detector.config.post)
    return {
        "names": detector.names,
        "thresholds": class_thresholds(detector.thresholds, detector.names),
        "nms": post["nms_threshold"],
        "inclusive": post.get("nms_inclusive", False),
        "most": post["max_detections"],
        "about": str(network or ""),
        "licence": str(about.get("license") or ""),
    }
