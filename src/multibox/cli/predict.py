"""`multibox predict`."""

import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import typer

from multibox.cli.console import counting
from multibox.cli.options import Background, Device, Flip, Model, OnBad, background_colour, own_files

if TYPE_CHECKING:
    from multibox.analysis.drift import Seen
    from multibox.inference.detector import Detector
    from multibox.inference.load import ExportedDetector
    from multibox.inference.streaming import Seen as SeenImage
    from multibox.video.addresses import Video

MANY = 20
"""Images above which there is a bar instead of a line per image."""
SHARED_FROM = 200
"""Images from which copies of an exported file save more time than they take to open, 0.3 s each."""
_OUT = (
    "Folder for what is drawn: STEM.jpg for an image, STEM.mp4 for a video. Default: predictions, or predictions-2 and "
    "so on."
)
_ON_BAD = (
    "An image or frame that cannot be read. skip: go on, count it, and end with exit code 1. stop: end at once with "
    "exit code 2; no --json, --coco or --voc file of images is written then."
)
_SOURCES = "Images, videos, folders, glob patterns, rtsp:// or http:// addresses, camera:0."
_JSON = "Write all detections here; - for standard output; of a video, .jsonl gets a line for each frame."
_RAY = (
    "Look at images on a Ray cluster: HOST:PORT of its head, or auto. Without an address on RAY_ADDRESS, else on a "
    "cluster of this machine's cores. --out is a folder for Parquet; SOURCE also lists, .parquet, .tar, s3://."
)
_TRACK = "Number the objects of a video: one that stays in sight keeps its number."


def predict(
    model: Model,
    sources: Annotated[list[str], typer.Argument(help=_SOURCES)],
    threshold: Annotated[
        float | None,
        typer.Option(help="Lowest score to report, 0 to 1. Default: the model's for each class, or 0.3."),
    ] = None,
    out_folder: Annotated[str | None, typer.Option("--out", help=_OUT)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help=_JSON)] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each detection here.")] = None,
    coco: Annotated[Path | None, typer.Option(help="Write COCO's results JSON here.")] = None,
    yolo: Annotated[Path | None, typer.Option(help="Folder for YOLO text files with scores.")] = None,
    voc: Annotated[Path | None, typer.Option(help="Folder for VOC's comp4_det_test_CLASS.txt files.")] = None,
    track: Annotated[bool, typer.Option("--track", help=_TRACK)] = False,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Look at every N-th frame of a video.")] = 1,
    ray: Annotated[str | None, typer.Option(metavar="[ADDRESS]", help=_RAY)] = None,
    on_bad: Annotated[OnBad, typer.Option(help=_ON_BAD)] = OnBad.skip,
    background: Background = None,
    device: Device = "auto",
    flip: Flip = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist; an image given as input never.")
    ] = False,
) -> None:
    """Find objects in images, videos or a camera; draw them, and write result files in pixels of the originals.

    Example: multibox predict model.onnx photos --json found.json
    """
    from multibox.cli.predict_video import check_videos, predict_videos
    from multibox.inference.results import distinct_names
    from multibox.video.addresses import find_sources

    check_threshold(threshold)
    colour = background_colour(background) if background is not None else None
    if ray is not None:
        from multibox.cli.predict_ray import RayRun, predict_on_ray

        files = {"--json": json_file, "--csv": csv, "--coco": coco, "--yolo": yolo, "--voc": voc}
        others = [name for name, given in {**files, "--track": track, "--every": every > 1}.items() if given]
        run = RayRun(model, sources, ray, out_folder, threshold, device, flip, colour, on_bad, overwrite)
        predict_on_ray(run, others)
        return
    out = None if out_folder is None else Path(out_folder)
    images, videos, notes = find_sources(sources)
    stems = distinct_names(path.stem for path in images)
    films = distinct_names(video.stem for video in videos)
    inputs = (*images, *(Path(video.shown) for video in videos if video.is_file), *own_files(model))
    outputs = _Outputs(out, json_file, coco, yolo, voc, csv, overwrite, inputs)
    check_videos(videos, track=track, every=every, images_only={"--coco": coco, "--yolo": yolo, "--voc": voc})
    outputs.check(stems, films)
    detector, *_ = detectors = _open(model, device, flip, len(images), videos)
    for each in detectors:
        each.background = each.background if colour is None else colour
    outputs.check(stems, films, detector.names)
    say = partial(typer.echo, err=outputs.to_stdout)
    say("\n".join([*notes, describe_thresholds(detector.thresholds, detector.names, threshold)]))
    job = Job(detectors, images, stems, threshold, on_bad, outputs)
    tally = Tally()
    with outputs.folder() as folder:
        if videos:
            predict_videos(job, dict(zip(films, videos, strict=True)), folder, tally, track=track, every=every)
            return
        try:
            run_images(job, folder, tally)
        except KeyboardInterrupt:
            say(f"stopped: {tally.summary(folder)}; no --json, --csv, --coco or --voc file is written")
            raise typer.Exit(130) from None
        say(tally.summary(folder))
    tell_drift(detector, tally.seen, _count(tally.images))
    if tally.broken:
        typer.echo(f"multibox: {tally.complaint()}", err=True)
        raise typer.Exit(1)


def _open(
    model: str, device: str, flip: bool, images: int, videos: "Sequence[Video]"
) -> "Sequence[Detector | ExportedDetector]":
    """Open the model; an exported file that runs on many images on the CPU as copies that share the cores."""
    from multibox.builtin import find_model, runnable
    from multibox.inference.engines import SUFFIXES
    from multibox.inference.load import load
    from multibox.inference.streaming import open_copies

    if videos:
        from multibox.video.reading import expected_frames

        # Nobody knows how long a stream is
        images += sum(frames if (frames := expected_frames(video)) is not None else SHARED_FROM for video in videos)
    exported = runnable(find_model(model)).suffix in SUFFIXES and not flip
    # An exported file has threads of its own; those of a checkpoint belong to the whole process
    if images >= SHARED_FROM and device in ("auto", "cpu") and exported:
        return open_copies(lambda threads: load(model, device=device, threads=threads))
    return [load(model, device=device, flip=flip)]


class _Outputs(NamedTuple):
    """Where the results go."""

    out: Path | None
    json: Path | None
    coco: Path | None
    yolo: Path | None
    voc: Path | None
    csv: Path | None
    overwrite: bool
    inputs: Sequence[Path]

    @property
    def to_stdout(self) -> bool:
        return self.json == Path("-")

    @property
    def json_target(self) -> "Path | BinaryIO | None":
        return sys.stdout.buffer if self.to_stdout else self.json

    def check(self, stems: Sequence[str], films: Sequence[str], names: Sequence[str] = ()) -> None:
        """Refuse outputs that collide; those of VOC once the class names are known."""
        from multibox.files import check_outputs
        from multibox.inference.results import voc_file

        files = (None if self.to_stdout else self.json, self.coco, self.csv)
        targets = [path for path in files if path is not None]
        drawn = [*(f"{stem}.jpg" for stem in stems), *(f"{film}.mp4" for film in films)]
        targets += [self.out / name for name in drawn] if self.out is not None else []
        targets += [self.yolo / f"{stem}.txt" for stem in stems] if self.yolo is not None else []
        targets += [self.voc / voc_file(name) for name in names] if self.voc is not None else []
        check_outputs(targets, overwrite=self.overwrite, inputs=self.inputs)

    @contextmanager
    def folder(self) -> Generator[Path, None, None]:
        """Yield the folder for drawn images; remove it again if it is new and stays empty."""
        from multibox.files import make_numbered_folder

        new = self.out is None or not self.out.exists()
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        folder = self.out or make_numbered_folder("predictions")
        try:
            yield folder
        finally:
            if new and not any(folder.iterdir()):
                folder.rmdir()


class Job(NamedTuple):
    """What is done to images."""

    detectors: "Sequence[Detector | ExportedDetector]"
    images: Sequence[Path]
    stems: Sequence[str]
    threshold: float | None
    on_bad: OnBad
    outputs: _Outputs


@dataclass
class Tally:
    """Counts of a prediction run."""

    images: int = 0
    objects: int = 0
    broken: int = 0
    first: str = ""
    """What is wrong with the first broken image."""
    seen: "Seen | None" = None
    """Statistics of the images, where the model says what it learned from."""

    def summary(self, folder: Path) -> str:
        """Return what was done."""
        return f"{_count(self.images)} with {self.objects:,} objects drawn in {folder}"

    def complaint(self) -> str:
        """Return what could not be read."""
        return f"{_count(self.broken)} of {self.images + self.broken:,} could not be read; the first: {self.first}"


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images:,} images"


def run_images(job: Job, folder: Path, tally: Tally, also: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Detect in every image, draw it, write its results and count.

    Args:
        job: the images.
        folder: where they are drawn.
        tally: counts, which are kept up to date.
        also: takes the object of each image; there is no other JSON or CSV then.

    Raises:
        ImageError: An image cannot be read and `--on-bad` is stop, or none can be read and `also` is None.
    """
    from multibox.analysis.drift import Seen
    from multibox.errors import ImageError
    from multibox.inference.results import ImageResult, json_entry, result_files
    from multibox.inference.streaming import drawing, predict_stream

    outputs, many = job.outputs, len(job.images) > MANY
    tally.seen = seen_here = Seen(job.detectors[0].statistics)
    with ExitStack() as stack:
        progress = stack.enter_context(counting("images", len(job.images))) if many else None
        add = stack.enter_context(
            result_files(
                [str(path) for path in job.images],
                job.detectors[0].names,
                json_file=None if also is not None else outputs.json_target,
                csv_file=None if also is not None else outputs.csv,
                coco=outputs.coco,
                yolo=outputs.yolo,
                voc=outputs.voc,
            )
        )
        draw = stack.enter_context(drawing())
        stream = stack.enter_context(closing(predict_stream(job.detectors, job.images, job.threshold)))
        for index, seen in enumerate(stream):
            if seen.image is None or isinstance(seen.found, ImageError):
                _count_broken(tally, seen, job)
            else:
                draw(folder / f"{job.stems[index]}.jpg", seen.image, seen.found)
                row = ImageResult(str(seen.path), seen.image.width, seen.image.height, seen.found)
                add(index, row)
                if also is not None:
                    also(json_entry(row))
                # A threshold of the user's finds other numbers of objects than the model's own
                seen_here.add(seen.image, seen.found if job.threshold is None else None)
                tally.images += 1
                tally.objects += len(seen.found)
            if progress is not None:
                progress(index + 1)
            elif seen.image is not None:
                typer.echo(describe(seen), err=outputs.to_stdout)
        if not tally.images and also is None:
            raise ImageError(f"no image could be read, so nothing is written: {tally.complaint()}")


def tell_drift(detector: "Detector | ExportedDetector", seen: "Seen | None", counted: str) -> None:
    """Say on stderr how images differ from those that the model was trained on, where they are far from them."""
    from multibox.analysis.drift import drift_warnings

    lines = drift_warnings(detector.statistics, seen) if seen is not None else []
    if lines:
        typer.echo(
            "\n".join(
                [
                    f"{counted} far from those that the model was trained on; look at the "
                    "detections before you rely on them:",
                    *(f"  {line}" for line in lines),
                ]
            ),
            err=True,
        )


def _count_broken(tally: Tally, seen: "SeenImage", job: Job) -> None:
    """Count an image that cannot be read, or end with its error."""
    if job.on_bad is OnBad.stop and isinstance(seen.found, Exception):
        raise seen.found
    tally.broken += 1
    tally.first = tally.first or str(seen.found)
    if len(job.images) <= MANY:
        typer.echo(f"skipped: {seen.found}", err=True)


def check_threshold(threshold: float | None) -> None:
    """Refuse a score threshold outside of 0 to 1.

    Raises:
        ConfigError: It is no number from 0 to 1.
    """
    from multibox.errors import ConfigError

    if threshold is not None and (math.isnan(threshold) or not 0 <= threshold <= 1):
        raise ConfigError(f"--threshold {threshold:g}: expected a score from 0 to 1, such as 0.3")


def describe(seen: "SeenImage") -> str:
    """Return a line with an image and its detections."""
    from multibox.errors import one_line
    from multibox.structures import Detections

    detections = seen.found
    if not isinstance(detections, Detections) or not len(detections):
        return f"{one_line(str(seen.path))}: nothing"
    pairs = zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    return f"{one_line(str(seen.path))}: " + ", ".join(
        f"{detections.names[label]} {score:.2f}" for label, score in pairs
    )


def describe_thresholds(own: tuple[float, ...], names: tuple[str, ...], threshold: float | None) -> str:
    """Return a line with the scores from which detections are reported."""
    from multibox.data.choosing import in_use
    from multibox.thresholds import class_thresholds

    if threshold is not None:
        return f"scores from {threshold:g} are reported"
    used = set(in_use(names) or names)
    known = [pair for pair in zip(names, class_thresholds(own, names), strict=True) if pair[0] in used]
    values = [value for _, value in known]
    if not own:
        return f"scores from {values[0]:g} are reported; the model has no thresholds of its own"
    usual = max(values, key=values.count)
    listed = [(name, value) for name, value in known if value != usual or len(known) <= 8]
    parts = [f"{name} {value:.3f}" for name, value in listed[:8]]
    if others := len(known) - len(parts):
        parts.append(f"the other {others} classes {usual:.3f}" if len(listed) <= 8 else f"{others} more")
    return f"scores from the model's thresholds are reported: {', '.join(parts)}"
