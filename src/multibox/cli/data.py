"""`multibox data make | convert | show`."""

from pathlib import Path
from typing import Annotated

import typer

from multibox.cli.bars import counting
from multibox.cli.train import OnBad

app = typer.Typer(no_args_is_help=True, help="Make, convert and look at data sets.")


@app.command("make")
def make(
    what: Annotated[str, typer.Argument(help="sprites: little creatures on procedural backgrounds.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")],
    images: Annotated[int, typer.Option(min=2, help="Pictures in all; a tenth is for validation.")] = 1000,
    classes: Annotated[int, typer.Option(min=1, help="Kinds of creature.")] = 1,
    objects: Annotated[str, typer.Option(help="Creatures a picture: a number or a range such as 1-6.")] = "1",
    size: Annotated[int, typer.Option(min=32, help="Width and height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    format: Annotated[str, typer.Option(help="voc, coco, yolo, csv or recordio.")] = "voc",
) -> None:
    """Make a labelled data set to learn on."""
    from multibox.data.sprites import make_sprites
    from multibox.errors import ConfigError, did_you_mean

    if what != "sprites":
        raise ConfigError(f"cannot make {what!r}{did_you_mean(what, ['sprites'])}; known: sprites")
    low, _, high = objects.partition("-")
    if not low.isdigit() or (high and not high.isdigit()) or int(high or low) < int(low):
        raise ConfigError(f"--objects {objects}: expected a number or a range such as 1-6")
    with counting("drawing", images) as progress:
        make_sprites(
            destination,
            images=images,
            classes=classes,
            objects=(int(low), int(high or low)),
            size=size,
            seed=seed,
            format=format,
            progress=progress,
        )
    typer.echo(f"wrote {images} pictures to {destination}; look at them with: multibox data show {destination}")


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="Data set to read.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")],
    to: Annotated[str, typer.Option(help="voc, coco, yolo, csv or recordio.")],
    format: Annotated[str | None, typer.Option(help="The source's format, where it cannot be told.")] = None,
    on_bad: Annotated[OnBad, typer.Option(help="A broken file: stop, or skip it and count.")] = OnBad.stop,
) -> None:
    """Write a data set in another format; pictures are copied byte for byte."""
    from multibox.data.convert import convert as run

    typer.echo(str(run(source, destination, to, format=format, on_bad=on_bad.value)))


@app.command("show")
def show(
    data: Annotated[Path, typer.Argument(help="Data set to look at.")],
    split: Annotated[str | None, typer.Option(help="Split; default the first one.")] = None,
    format: Annotated[str | None, typer.Option(help="The data set's format, where it cannot be told.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures on the sheet.")] = 16,
    augmentation: Annotated[str | None, typer.Option(help="Show them as this augmentation recipe gives them.")] = None,
    seed: Annotated[int, typer.Option(help="Which pictures are drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("sheet.png"),
) -> None:
    """Draw a contact sheet of labelled pictures, and say what the data set holds."""
    import numpy as np

    from multibox.data.formats import find_splits, open_dataset
    from multibox.plots.detections import contact_sheet

    splits = find_splits(data, format)
    dataset = open_dataset(data, split or splits[0], format=format)
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    typer.echo(f"{data}: {dataset.format}, splits {', '.join(splits)}; {dataset.split} has {len(dataset)} pictures")
    for name, number in zip(dataset.class_names, counts, strict=True):
        typer.echo(f"  {name}: {number} boxes")
    for note in dataset.notes:
        typer.echo(note)
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
    tiles = [_tile(dataset, int(index), augmentation, seed) for index in sorted(chosen)]
    sheet = contact_sheet(tiles, captions=[dataset.names[int(index)] for index in sorted(chosen)])
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    typer.echo(f"wrote {out}")


def _tile(dataset, index: int, augmentation: str | None, seed: int):
    """Return one labelled picture, as it is or as training would see it."""
    import dataclasses

    import numpy as np
    from PIL import Image

    from multibox.data.augmentation import find_augmentation, plan, project, render
    from multibox.data.samples import load_picture
    from multibox.plots.detections import draw_sample

    sample = dataset[index]
    picture = load_picture(sample)
    if augmentation is not None:
        rng = np.random.default_rng((seed, 0, index))
        view = plan(find_augmentation(augmentation), picture.size, sample.boxes_xyxy, rng)
        picture = Image.fromarray(np.ascontiguousarray(render(picture, view, (256, 256), (124, 116, 104))))
        kept = view.kept()
        columns = {name: getattr(sample, name)[kept] for name in ("labels", "difficult", "crowd")}
        sample = dataclasses.replace(sample, boxes_xyxy=project(view, sample.boxes_xyxy[kept]) * 256, **columns)
    return draw_sample(picture, sample, dataset.class_names)
