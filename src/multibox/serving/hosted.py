"""The models of a server, by name; each can be read again while requests go on."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.builtin import MODELS, find_model, runnable
from multibox.errors import ConfigError
from multibox.inference.engines import SUFFIXES
from multibox.inference.load import load
from multibox.inference.streaming import open_copies
from multibox.serving.batching import AnyDetector, Batcher, Looked, Work
from multibox.thresholds import lowest_scores


class Hosted:
    """A model that answers requests.

    Args:
        name: By which clients ask for it.
        source: What `multibox.load` takes.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self._batcher = Batcher(open_detectors(source))

    @property
    def detector(self) -> AnyDetector:
        """One of the detectors; its names and thresholds are those of all."""
        return self._batcher.detectors[0]

    async def look(self, image: Any, threshold: float | None = None, *, raw: bool = False) -> Looked:
        """Return what is found in an image: an encoded file or RGB pixels [H, W, 3].

        Args:
            image: The image.
            threshold: Lowest score to report; None takes the model's of each class.
            raw: Whether candidates before suppression are wanted, too.

        Raises:
            ConfigError: The threshold is no number from 0 to 1.
            ImageError: The image cannot be read.
            Busy: Too many images are waiting.
        """
        detector = self.detector
        lowest = lowest_scores(threshold, detector.thresholds, detector.names)
        return await self._batcher.look(Work(image, lowest, raw))

    async def reload(self) -> None:
        """Read the file again; requests that wait are answered by the old model, later ones by the new one.

        Raises:
            MultiboxError: The file cannot be opened; the old model stays.
        """
        old, self._batcher = self._batcher, Batcher(await asyncio.to_thread(open_detectors, self.source))
        await asyncio.to_thread(old.close)

    def close(self) -> None:
        """Answer what waits, and end."""
        self._batcher.close()


def open_models(arguments: list[str]) -> dict[str, Hosted]:
    """Open the models of the command line, each `MODEL` or `name=MODEL`; the first one is the default.

    Raises:
        ConfigError: Two models have one name.
        MultiboxError: A model cannot be opened.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            name, source = _name_of(argument), argument
        if name in named:
            raise ConfigError(f"{argument}: two models are called {name}; give them names, as in other={source}")
        named[name] = source
    return {name: Hosted(name, source) for name, source in named.items()}


def _name_of(source: str) -> str:
    return source if source in MODELS else Path(source).resolve().stem


def open_detectors(source: str) -> list[AnyDetector]:
    """Open a model: an exported file as copies that share the cores, a checkpoint once."""
    if runnable(find_model(source)).suffix in SUFFIXES:
        return open_copies(lambda threads: load(source, threads=threads))
    return [load(source)]


Models = Mapping[str, Hosted]
"""By name; the first one is the default."""
