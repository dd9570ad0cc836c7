"""`multibox predict --ray`: many images on a cluster, as Parquet."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperCommand

from multibox.cli.console import counting
from multibox.cli.options import OnBad
from multibox.cli.predict import describe_thresholds

if TYPE_CHECKING:
    from multibox.cluster.plan import Block, Part, Plan

_ADDRESS = re.compile(r"auto|local|\w+://.+|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


class PredictCommand(TyperCommand):
    """The command `predict`, whose option --ray may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments as typer does, which knows no options with an optional value."""
        return super().parse_args(ctx, with_address(args))


def with_address(args: Sequence[str]) -> list[str]:
    """Return the arguments with an empty value after each --ray that no address follows."""
    full: list[str] = []
    for place, text in enumerate(args):
        full.append(text)
        following = args[place + 1] if place + 1 < len(args) else ""
        if text == "--ray" and "--" not in args[:place] and not _ADDRESS.fullmatch(following):
            full.append("")
    return full


@dataclass
class _Count:
    """What is done so far."""

    parts: "list[Part]"
    """Those of an earlier run first."""

    @property
    def images(self) -> int:
        return sum(part.images for part in self.parts)

    def summary(self, out: str) -> str:
        """Return what is in the folder."""
        objects = sum(part.objects for part in self.parts)
        parts = "1 part" if len(self.parts) == 1 else f"{len(self.parts):,} parts"
        return f"{_images(self.images)} with {objects:,} objects in {out.partition('?')[0]} ({parts})"

    def told_before(self, plan: "Plan") -> list[str]:
        """Return a line on what an earlier run did, if there was one."""
        done = f"{_images(self.images)} done before ({len(self.parts):,} of {plan.blocks:,} parts)"
        return [done] if self.parts else []

    def left(self, blocks: "Sequence[Block]") -> "list[tuple[int, Block]]":
        """Return the blocks that are to be done, with their numbers."""
        done = {part.block for part in self.parts}
        return [(number, block) for number, block in enumerate(blocks) if number not in done]


class RayRun(NamedTuple):
    """Arguments of `multibox predict --ray`."""

    model: str
    sources: Sequence[str]
    address: str
    """Of the cluster; empty for RAY_ADDRESS, or else a cluster of this machine's cores."""
    out: str | None
    threshold: float | None
    device: str
    flip: bool
    background: tuple[int, int, int] | None
    on_bad: OnBad
    overwrite: bool


def predict_on_ray(run: RayRun, others: Sequence[str]) -> None:
    """Find objects in the images of the sources on a Ray cluster, and write Parquet.

    Args:
        run: What to do.
        others: Options that are given and do not go with --ray.
    """
    from multibox.builtin import find_model, runnable
    from multibox.cluster.block_worker import Task, model_files, model_hash
    from multibox.cluster.image_sources import find_blocks
    from multibox.cluster.places import is_address
    from multibox.cluster.plan import finish, make_plan, open_folder
    from multibox.cluster.ray_job import choose_address, choose_pool, cluster, do_blocks

    folder = _checked(run.out, others)
    address = choose_address(run.address)
    file = find_model(run.model)
    file = runnable(file) if run.device in ("cpu", "auto") and not run.flip else file
    files = model_files(file)
    _tell_thresholds(file, run.threshold)
    blocks, notes = find_blocks(run.sources)
    plan = make_plan(blocks, model_hash(files), run.threshold, run.flip, run.background)
    count = _Count(open_folder(folder, plan, overwrite=run.overwrite))
    for line in [*notes, *count.told_before(plan)]:
        typer.echo(line)
    place = folder if is_address(folder) else str(Path(folder).absolute())
    if len(count.parts) < plan.blocks:
        try:
            with cluster(address) as ray:
                pool = choose_pool(ray, run.device)
                typer.echo(f"{pool.actors} actors, {pool.device}, cores each: {pool.cores}")
                task = Task(plan, place, str(Path.cwd()), pool.device, pool.cores, run.on_bad is OnBad.stop)
                _follow(do_blocks(ray, count.left(blocks), files, task, pool), count, plan)
        except KeyboardInterrupt:
            # What came back from the actors may be less than what they wrote
            count.parts = open_folder(folder, plan)
            typer.echo(f"stopped: {count.summary(folder)} of {plan.blocks:,}; the same command does the others")
            raise typer.Exit(130) from None
    finish(folder, count.parts, plan)
    typer.echo(count.summary(folder))
    _tell_unreadable(count.parts)


def _checked(out: str | None, others: Sequence[str]) -> str:
    """Return the folder for the results.

    Raises:
        ConfigError: There is none, or another option does not go with --ray.
    """
    from multibox.errors import ConfigError

    if others:
        raise ConfigError(f"{others[0]} does not go with --ray, which writes Parquet to --out; leave it out")
    if out is None:
        raise ConfigError(
            "--ray needs --out: a folder for Parquet files, such as found.parquet or s3://bucket/found.parquet"
        )
    return out


def _tell_thresholds(file: Path, threshold: float | None) -> None:
    """Print from which scores objects are reported, where the model can be opened here; the nodes may have more."""
    from multibox.errors import MissingExtraError
    from multibox.inference.engines import SUFFIXES
    from multibox.inference.load import load

    if file.suffix not in SUFFIXES:
        return
    try:
        detector = load(file, device="cpu", threads=1)
    except MissingExtraError:
        return
    typer.echo(describe_thresholds(detector.thresholds, detector.names, threshold))


def _follow(parts: "Iterator[Part]", count: _Count, plan: "Plan") -> None:
    """Collect what gets done, and show progress: in images, or in parts where tars are counted only when read."""
    started, before = time.monotonic(), count.images
    what = "images" if plan.images is not None else "parts"
    total = plan.blocks - len(count.parts) if plan.images is None else plan.images - before
    with counting(what, total) as report:
        for finished, part in enumerate(parts, 1):
            count.parts.append(part)
            report(finished if plan.images is None else count.images - before)
    seconds, images = time.monotonic() - started, count.images - before
    typer.echo(f"{images / seconds:.1f} images per second, the start of the actors included")


def _tell_unreadable(parts: "Sequence[Part]") -> None:
    """Say which images could not be read, and end with exit code 1 if there are any."""
    bad = [part for part in sorted(parts, key=lambda part: part.block) if part.unreadable]
    if not bad:
        return
    number, total = sum(part.unreadable for part in bad), sum(part.images for part in parts)
    text = f"{_images(number)} of {total:,} could not be read; the first: {bad[0].complaint}"
    typer.echo(f"multibox: {text}; their rows have an error and no detections", err=True)
    raise typer.Exit(1)


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"
