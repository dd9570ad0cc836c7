"""`multibox demo`: the tour, from nothing to a page with boxes, curves and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.console import counting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from multibox.pages.report_data import Subject
    from multibox.pages.tour import Exhibit
    from multibox.structures import Dataset, Detections

IMAGES = 1000
EPOCHS = 8
SHOWN = 12
"""Images on a sheet."""


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the data, the run and the images. Default: demo, or demo-2 and so on."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 900 training images.")] = EPOCHS,
) -> None:
    """Make synthetic data, train TinySSD on it, score it on held-out images, and show it all on one page.

    Example: multibox demo --epochs 2
    """
    import os
    import time

    from multibox.cli.progress import train_with_progress
    from multibox.data.formats import open_dataset
    from multibox.data.sprites import make_sprites
    from multibox.errors import ConfigError
    from multibox.files import free_path
    from multibox.pages.tour import NEXT
    from multibox.training.run import RunOptions

    out = out or free_path("demo")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; give another --out")
    started = time.monotonic()
    typer.echo("1. make 900 + 100 images of a little creature")
    with counting("drawing", IMAGES) as progress:
        make_sprites(out / "sprites", images=IMAGES, progress=progress)
    _labelled(open_dataset(out / "sprites", "train")).save(out / "data.png")
    typer.echo(f"2. train TinySSD for {epochs} epochs")
    # Four validations are enough to see it learn
    changes = {"train.validate_every": max(1, epochs // 4)}
    train_with_progress(out / "sprites", RunOptions(preset="tinyssd", epochs=epochs, out=out / "run", changes=changes))
    typer.echo("3. score it on the 100 held-out images and report why it fails where it does")
    page = _report(out, started)
    typer.echo(f"all of it on one page: {page}; {time.monotonic() - started:.0f} seconds in all")
    typer.echo("Next:")
    for command, why in NEXT:
        typer.echo(f"  {command:44} # {why}")


def _report(out: Path, started: float) -> Path:
    """Score the run on the held-out images, print what stands out, and return the page with all of it."""
    import time

    from multibox.api import open_for
    from multibox.cli.evaluate import print_metrics
    from multibox.inference.detector import open_checkpoint
    from multibox.pages.report_data import Subject, make_report_data, predict
    from multibox.pages.report_page import write_report_page
    from multibox.pages.report_words import verdict
    from multibox.pages.tour import opening

    last = out / "run" / "last.safetensors"
    detector = open_checkpoint(last)
    dataset = open_for(detector, out / "sprites", split="val")
    subject = Subject(detector, dataset, str(last), [str(out / "sprites")], command="multibox demo", counting=counting)
    detections = predict(subject)
    _detected(subject, detections).save(out / "detections.png")
    report = make_report_data(subject, detections)
    print_metrics(report["metrics"], "held-out sprites")
    for line in verdict(report):
        typer.echo(line.text)
    typer.echo(f"mAP@0.5 {report['metrics']['voc12']['mAP']:.3f} on {len(dataset)} held-out images")
    above = opening(_exhibits(out), time.monotonic() - started)
    return write_report_page(report, dataset, detections, out, title="multibox demo", opening=above)


def _labelled(dataset: "Dataset") -> "Image.Image":
    """Return a sheet of images with their labels."""
    from multibox.data.images import load_image
    from multibox.plots.detections import contact_sheet, draw_sample

    samples = [dataset[place] for place in range(min(SHOWN, len(dataset)))]
    tiles = [draw_sample(load_image(sample), sample, dataset.class_names) for sample in samples]
    return contact_sheet(tiles, columns=4)


def _detected(subject: "Subject", detections: "Sequence[Detections]") -> "Image.Image":
    """Return a sheet of images with their detections."""
    from multibox.data.images import load_image
    from multibox.plots.detections import contact_sheet, draw_detections

    least, dataset = min(subject.lowest), subject.dataset
    places = range(min(SHOWN, len(dataset)))
    tiles = [draw_detections(load_image(dataset[place]), detections[place], least) for place in places]
    return contact_sheet(tiles, columns=4)


def _exhibits(out: Path) -> "list[Exhibit]":
    from PIL import Image

    from multibox.pages.tour import Exhibit

    texts = (
        (
            "tour-data",
            "The data",
            "Training images with their labels. `multibox data show my-data` draws yours.",
            "data.png",
        ),
        (
            "tour-curves",
            "The training curves",
            "Losses fall and the mean average precision (mAP) of held-out images rises. `multibox monitor` shows them "
            "live.",
            "run/images/curves.png",
        ),
        (
            "tour-detections",
            "The detections",
            "What the detector finds in images held out of training. `multibox predict RUN my-photos` draws yours.",
            "detections.png",
        ),
    )
    return [Exhibit(anchor, heading, text, Image.open(out / file)) for anchor, heading, text, file in texts]
