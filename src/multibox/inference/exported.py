"""An exported detector: pictures in, `Detections` out, without PyTorch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multibox.inference.engines import Engine, open_engine
from multibox.inference.inputs import BATCH, Picture, checked_array, open_picture
from multibox.inference.thresholds import class_thresholds, just_below
from multibox.structures import Detections

Pixels = NDArray[np.uint8]


class ExportedDetector:
    """A file that `multibox export` wrote, in the fastest runtime at hand; used like a `Detector`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.about = engine.about
        self.names = tuple(engine.about["names"])
        self.thresholds = tuple(engine.about["post"]["thresholds"])

    @overload
    def predict(self, picture: Picture, threshold: float | None = None) -> Detections: ...
    @overload
    def predict(self, picture: Sequence[Picture], threshold: float | None = None) -> list[Detections]: ...
    def predict(
        self, picture: Picture | Sequence[Picture], threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Find objects in one picture or in a list of them.

        Args:
            picture: a path, a PIL picture or a uint8 RGB array [H, W, 3]; a list gives a list. Neighbours of one size
                are looked at together, and files are decoded while the network works.
            threshold: detections with lower scores are left out; None takes the model's threshold of each class, and
                0.3 where there are none.

        Raises:
            PictureError: a file that is missing, truncated or no picture, or an array of another shape or type.
        """
        if isinstance(picture, str | Path | Image.Image | np.ndarray):
            return self._predict(_pixels(picture)[None], threshold)[0]
        found: list[Detections] = []
        for batch in _batches(picture):
            found += self._predict(batch, threshold)
        return found

    def _predict(self, images: Pixels, threshold: float | None) -> list[Detections]:
        post = self.about["post"]
        least = np.array(class_thresholds(self.thresholds, self.names)) if threshold is None else None
        lowest = just_below(float(least.min())) if least is not None else threshold
        answer = self.engine.run(
            {
                "images": images,
                "score_threshold": np.array(lowest, np.float32),
                "nms_threshold": np.array(post["nms_threshold"], np.float32),
                "max_detections": np.array(post["max_detections"], np.int64),
            }
        )
        found: list[Detections] = []
        for boxes, scores, labels, count in zip(
            answer["boxes"], answer["scores"], answer["labels"], answer["counts"].tolist(), strict=True
        ):
            mine = Detections(boxes[:count], scores[:count], labels[:count].astype(np.int64), self.names)
            found.append(mine if least is None else mine[mine.scores >= least[mine.labels]])
        return found


def open_exported(path: Path, threads: int | None = None, precision: str | None = None) -> ExportedDetector:
    """Open a .onnx or .xml file; arguments and errors are those of `open_engine`."""
    return ExportedDetector(open_engine(path, threads, precision))


def _pixels(picture: Picture) -> Pixels:
    return checked_array(picture) if isinstance(picture, np.ndarray) else np.asarray(open_picture(picture))


def _batches(pictures: Sequence[Picture]) -> Iterator[Pixels]:
    """Yield neighbours of one size as [b, h, w, 3]."""
    for decoded in _decoded(pictures):
        for _, neighbours in groupby(decoded, key=np.shape):
            alike = list(neighbours)
            yield np.stack(alike) if len(alike) > 1 else alike[0][None]


def _decoded(pictures: Sequence[Picture]) -> Iterator[list[Pixels]]:
    """Yield up to BATCH pictures at a time; files are decoded ahead in threads, which cost more than they save else."""
    parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    if not any(isinstance(picture, str | Path) for picture in pictures):
        yield from ([_pixels(picture) for picture in part] for part in parts)
        return
    with ThreadPoolExecutor(2) as pool:
        ahead: list[Future[Pixels]] = []
        for coming in (*parts, ()):
            ready, ahead = ahead, [pool.submit(_pixels, picture) for picture in coming]
            if ready:
                yield [future.result() for future in ready]
