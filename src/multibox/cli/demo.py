"""`multibox demo`: the tour, from nothing to an image with boxes."""

from pathlib import Path
from typing import Annotated

import typer

from multibox.cli.console import counting

IMAGES = 1000
EPOCHS = 8


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the data, the run and the images. Default: demo, or demo-2 and so on."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 900 training images.")] = EPOCHS,
) -> None:
    """Make synthetic data, train TinySSD on it, score it on held-out images and draw its detections.

    Example: multibox demo --epochs 2
    """
    import os
    import time

    from multibox.api import open_for
    from multibox.cli.evaluate import print_metrics
    from multibox.cli.progress import train_with_progress
    from multibox.data.images import load_image
    from multibox.data.sprites import make_sprites
    from multibox.errors import ConfigError
    from multibox.evaluation.report import evaluate
    from multibox.files import free_path
    from multibox.inference.detector import find_all, open_checkpoint
    from multibox.plots.detections import contact_sheet, draw_detections
    from multibox.thresholds import class_thresholds
    from multibox.training.run import RunOptions

    out = out or free_path("demo")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; give another --out")
    started = time.monotonic()
    typer.echo("1. make 900 + 100 images of a little creature")
    with counting("drawing", IMAGES) as progress:
        make_sprites(out / "sprites", images=IMAGES, progress=progress)
    typer.echo(f"2. train TinySSD for {epochs} epochs")
    # Four validations are enough to see it learn
    changes = {"train.validate_every": max(1, epochs // 4)}
    options = RunOptions(preset="tinyssd", epochs=epochs, out=out / "run", changes=changes)
    trainer = train_with_progress(out / "sprites", options)
    typer.echo("3. score it on the 100 held-out images")
    detector = open_checkpoint(trainer.folder / "last.safetensors")
    dataset = open_for(detector, out / "sprites", split="val")
    detections = find_all(detector, dataset)
    metrics = evaluate(detections, dataset, detector.names)
    print_metrics(metrics, "held-out sprites")
    (least,) = class_thresholds(detector.thresholds, detector.names)
    tiles = [draw_detections(load_image(dataset[i]), detections[i], least) for i in range(min(12, len(dataset)))]
    contact_sheet(tiles, columns=4).save(out / "detections.png")
    typer.echo(f"mAP@0.5 {metrics['voc12']['mAP']:.3f} on {metrics['images']} held-out images")
    typer.echo(f"images with boxes: {out / 'detections.png'}; {time.monotonic() - started:.0f} seconds in all")
