"""`multibox predict` on videos, streams and cameras."""

import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from multibox.cli.console import counting
from multibox.cli.options import OnBad

if TYPE_CHECKING:
    from collections.abc import Callable

    from multibox.analysis.drift import Seen
    from multibox.cli.predict import Job, Tally
    from multibox.video.addresses import Video
    from multibox.video.pipeline import Plan, Progress


@dataclass
class _Counts:
    """What became of the videos."""

    read: int = 0
    frames: int = 0
    broken: list[str] = field(default_factory=list[str])
    """What is wrong with each source that is damaged or cannot be read."""
    told: list[str] = field(default_factory=list[str])
    """Summaries to print once standard output has its whole list, which they would stand in on a terminal."""


def check_videos(videos: "Sequence[Video]", *, track: bool, every: int, images_only: Mapping[str, Path | None]) -> None:
    """Refuse options that do not fit the sources, and videos that cannot be read here.

    Raises:
        ConfigError: an option for videos without a video, or one for images with a video.
        MissingExtraError: the packages that read videos, or those that track, are not installed.
    """
    from multibox.errors import ConfigError, MissingExtraError

    if not videos:
        given = "--track" if track else "--every" if every > 1 else None
        if given is not None:
            raise ConfigError(f"{given} is for videos, streams and cameras, and none is among the sources")
        return
    unfit = [option for option, value in images_only.items() if value is not None]
    if unfit:
        raise ConfigError(
            f"{unfit[0]} names images, which frames of a video are not ({videos[0].shown}); take --json or --csv, or "
            "give the images alone"
        )
    if find_spec("av") is None:
        raise MissingExtraError(f"Reading {videos[0].shown}", "video")
    if track and (find_spec("trackers") is None or find_spec("supervision") is None):
        raise MissingExtraError("--track", "video")


def predict_videos(
    job: "Job", videos: "Mapping[str, Video]", folder: Path, tally: "Tally", *, track: bool, every: int
) -> None:
    """Predict the images, if there are any, and then each video; say what was done.

    Args:
        job: the images, and what is common to both.
        videos: by the stem of the file to write.
        folder: where images and videos are drawn.
        tally: of the images.
        track: number the objects.
        every: look at every N-th frame.
    """
    from multibox.analysis.drift import Seen
    from multibox.cli.predict import run_images, tell_drift
    from multibox.errors import DataError
    from multibox.video.pipeline import Plan
    from multibox.video.tables import open_tables

    say = _speaker(job)
    plan = Plan(job.detectors, job.threshold, track, every, job.on_bad is OnBad.stop)
    counts, seen, stopped = _Counts(), Seen(job.detectors[0].statistics), False
    with (
        _told_last(counts, say),
        open_tables(job.outputs.json_target, job.outputs.csv) as write,
        _whole_rows(write) as add,
    ):
        tell = counts.told.append if job.outputs.to_stdout else say
        try:
            if job.images:
                run_images(job, folder, tally, add)
                tell(tally.summary(folder))
            for stem, video in videos.items():
                _predict_one(job, plan, video, folder / f"{stem}.mp4", counts, add, seen)
        except KeyboardInterrupt:
            stopped = True
        if not tally.images and not counts.read:
            # Leaving the block by an exception leaves result files as they were
            if stopped:
                say("stopped before anything was read; nothing is written")
                raise typer.Exit(130)
            first = tally.first or counts.broken[0]
            alone = len(job.images) + len(videos) == 1
            raise DataError(first if alone else f"no source could be read, so nothing is written; the first: {first}")
    if stopped:
        say("stopped; what was done until then is kept")
        raise typer.Exit(130)
    if job.images:
        tell_drift(job.detectors[0], tally.seen, f"{tally.images:,} images")
    tell_drift(job.detectors[0], seen, f"{counts.frames:,} frames")
    if tally.broken:
        typer.echo(f"multibox: {tally.complaint()}", err=True)
    for line in counts.broken:
        typer.echo(f"multibox: {line}", err=True)
    if tally.broken or counts.broken:
        raise typer.Exit(1)


@contextmanager
def _whole_rows(
    write: "Callable[[dict[str, Any]], None]",
) -> "Generator[Callable[[dict[str, Any]], None], None, None]":
    """Yield `write` such that Ctrl-C waits until the rows of a frame are in all files."""
    writing = asked = False

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal asked
        if not writing:
            raise KeyboardInterrupt
        asked = True

    def write_whole(entry: "dict[str, Any]") -> None:
        nonlocal writing
        writing = True
        try:
            write(entry)
        finally:
            writing = False
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield write_whole
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _told_last(counts: _Counts, say: "Callable[[str], None]") -> Generator[None, None, None]:
    """Print the summaries that waited, however the block ends."""
    try:
        yield
    finally:
        for text in counts.told:
            say(text)


def _speaker(job: "Job") -> "Callable[[str], None]":
    return lambda text: typer.echo(text, err=job.outputs.to_stdout)


def _predict_one(
    job: "Job",
    plan: "Plan",
    video: "Video",
    target: Path,
    counts: _Counts,
    add: "Callable[[dict[str, Any]], None]",
    seen: "Seen",
) -> None:
    """Predict one video, and say what was found."""
    from multibox.errors import DataError
    from multibox.video.pipeline import Progress, predict_video

    say = _speaker(job)
    progress = Progress()
    try:
        with _bar(video, say) as show:
            stream = predict_video(video, plan, target, progress, add=add, seen=seen, tell=show)
            with closing(stream):
                for _ in stream:
                    pass
    except DataError as error:
        if plan.stop_on_bad:
            raise
        counts.broken.append(str(error))
        return
    finally:
        if progress.frames:
            counts.read += 1
            counts.frames += progress.looked
            tell = counts.told.append if job.outputs.to_stdout else say
            tell("\n".join(_summary(video, progress, plan, target)))
    if progress.bad:
        counts.broken.append(
            f"{video.shown}: {progress.bad:,} damaged place{'s' if progress.bad > 1 else ''}; the first: "
            f"{progress.complaint}"
        )


@contextmanager
def _bar(video: "Video", say: "Callable[[str], None]") -> "Generator[Callable[[int, int | None], None], None, None]":
    """Show progress; the total is known once the video is open."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        report: list[Callable[[int], None]] = []

        def tell(done: int, total: int | None) -> None:
            if not report:
                if video.live:
                    say(f"{video.shown}: until it ends, or Ctrl-C")
                report.append(stack.enter_context(counting(f"frames of {video.shown}", total)))
            report[0](done)

        yield tell


def _summary(video: "Video", progress: "Progress", plan: "Plan", target: Path) -> list[str]:
    """Return lines on what was done to a video."""
    from multibox.errors import one_line

    looked = f", {progress.looked:,} of them looked at" if plan.every > 1 else ""
    tracks = f" of {progress.tracks:,} tracks" if plan.track else ""
    lines = [
        f"{one_line(video.shown)}: {progress.frames:,} frames{looked}, {progress.objects:,} detections{tracks}, drawn "
        f"in {target}"
    ]
    if progress.missed:
        lines.append(f"  {progress.missed:,} frames passed over, as they came faster than the network looks")
    return lines + [f"  {note}" for note in progress.notes]
