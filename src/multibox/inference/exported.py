"""An exported detector: images in, `Detections` out, without PyTorch."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from multibox.inference.engines import Engine, open_engine
from multibox.inference.inputs import Picture, Pictures, is_one, pixels_of, several
from multibox.inference.thresholds import just_below, lowest_scores, reaching
from multibox.structures import Detections

Pixels = NDArray[np.uint8]


class ExportedDetector:
    """A file that `multibox export` wrote, in the fastest runtime at hand; used like a `Detector`.

    Can be pickled, and so sent to a process pool: the file is opened again there, with the same options.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.about = engine.about
        self.names = tuple(engine.about["names"])
        self.thresholds = tuple(engine.about["post"]["thresholds"])

    def __reduce__(self) -> tuple[Any, ...]:
        return open_exported, self.engine.opened

    @overload
    def predict(self, picture: Picture, threshold: float | None = None) -> Detections: ...
    @overload
    def predict(self, picture: Iterator[Picture], threshold: float | None = None) -> Iterator[Detections]: ...
    @overload
    def predict(self, picture: Iterable[Picture], threshold: float | None = None) -> list[Detections]: ...
    def predict(
        self, picture: Picture | Pictures, threshold: float | None = None
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in one image, or in several.

        Args:
            picture: one image: a path, a PIL image of any mode, a uint8 RGB array [H, W, 3], a uint8 RGB tensor
                [3, H, W] or [H, W, 3], or an encoded file as bytes or as a binary file object. OpenCV's arrays are BGR:
                give `image[..., ::-1]`. A list or tuple gives a list of `Detections`; a generator or another iterator
                gives a generator, which takes images as it is read, so memory does not grow. Neighbours of one size go
                through the network together, and files are decoded while it works.
            threshold: lowest score to report, 0 to 1; a score equal to it is reported, a score of 0 never. None takes
                the model's threshold of each class, and 0.3 where it has none.

        Returns:
            Boxes as xyxy in pixels of the original image (turned as its EXIF orientation says), best first.

        Raises:
            PictureError: a file that is missing, truncated or no image, or an array or tensor of another shape or type.
            ConfigError: `threshold` is no number from 0 to 1.
        """
        lowest = lowest_scores(threshold, self.thresholds, self.names)
        if is_one(picture):
            return self._predict([pixels_of(picture)], lowest)[0]
        return several(picture, pixels_of, partial(self._predict, lowest=lowest))

    def detect(self, images: list[Pixels], above: float) -> list[Detections]:
        """Return what scores above `above` in each of some images [H, W, 3]; neighbours of one size share a batch."""
        found: list[Detections] = []
        for _, neighbours in groupby(images, key=np.shape):
            alike = list(neighbours)
            found += self._run(np.stack(alike) if len(alike) > 1 else alike[0][None], above)
        return found

    def _predict(self, images: list[Pixels], lowest: NDArray[np.float32]) -> list[Detections]:
        return [reaching(found, lowest) for found in self.detect(images, just_below(float(lowest.min())))]

    def _run(self, images: Pixels, above: float) -> list[Detections]:
        post = self.about["post"]
        answer = self.engine.run(
            {
                "images": images,
                "score_threshold": np.array(above, np.float32),
                "nms_threshold": np.array(post["nms_threshold"], np.float32),
                "max_detections": np.array(post["max_detections"], np.int64),
            }
        )
        rows = zip(answer["boxes"], answer["scores"], answer["labels"], answer["counts"].tolist(), strict=True)
        return [
            Detections(boxes[:count], scores[:count], labels[:count].astype(np.int64), self.names)
            for boxes, scores, labels, count in rows
        ]


def open_exported(
    path: Path, threads: int | None = None, precision: str | None = None, device: str = "auto"
) -> ExportedDetector:
    """Open a .onnx or .xml file; arguments and errors are those of `open_engine`."""
    return ExportedDetector(open_engine(path, threads, precision, device))
