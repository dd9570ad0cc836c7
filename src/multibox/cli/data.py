"""`multibox data make | convert | split | show`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multibox.cli.console import counting
from multibox.cli.options import (
    IMAGES,
    Classes,
    DataSets,
    Format,
    Merge,
    OnBad,
    SkipOrStop,
    WrittenFormat,
    check_suffix,
    class_list,
)

if TYPE_CHECKING:
    from PIL import Image

    from multibox.data.splitting import Division
    from multibox.structures import Dataset

app = typer.Typer(no_args_is_help=True, help="Make, convert, divide and look at data sets.")
_GROUP_BY = "Images whose names agree in this regular expression's first group, or in its match, stay together."
Destination = Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")]


@app.command("make")
def make(
    what: Annotated[str, typer.Argument(help="sprites: little creatures on procedural backgrounds.")],
    destination: Destination,
    images: Annotated[int, typer.Option(min=2, help="Images in all; a tenth is for validation.")] = 1000,
    classes: Annotated[int, typer.Option(min=1, help="Kinds of creature.")] = 1,
    objects: Annotated[str, typer.Option(help="Creatures per image: a number or a range such as 1-6.")] = "1",
    size: Annotated[int, typer.Option(min=32, help="Width and height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    format: WrittenFormat = "voc",
) -> None:
    """Make a labelled data set to learn on.

    Example: multibox data make sprites data/sprites --images 200 --classes 3
    """
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
    typer.echo(f"wrote {images} images to {destination}; look at them with: multibox data show {destination}")


@app.command("convert")
def convert(
    source: DataSets,
    destination: Destination,
    to: WrittenFormat,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    classes: Classes = None,
    merge: Merge = None,
) -> None:
    """Write a data set in another format; images are copied byte for byte.

    Example: multibox data convert data/cells data/cells-yolo --to yolo
    """
    from multibox.data.convert import convert as run

    done = run(
        *(source, destination, to),
        format=format,
        on_bad=on_bad.value,
        classes=class_list(classes) or (),
        merge=merge or (),
    )
    for note in done.notes:
        typer.echo(note)
    splits = ", ".join(f"{name} {count:,}" for name, count in done.splits.items())
    typer.echo(
        f"wrote {done.destination} as {done.written_as}, from {_named(source, done.source)} ({done.read_as}): "
        f"{sum(done.splits.values()):,} images ({splits}), {done.boxes:,} boxes, classes {', '.join(done.class_names)}"
    )


def _named(given: list[Path], found: Path) -> str:
    return str(found) if len(given) == 1 else ", ".join(map(str, given))


@app.command("split")
def split(
    source: DataSets,
    destination: Destination,
    val: Annotated[float, typer.Option(help="Share of the images for validation; 0 for none.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the images for the test; 0 for none.")] = 0.0,
    group_by: Annotated[str | None, typer.Option(metavar="PATTERN", help=_GROUP_BY)] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Keep the share of each class in each split, where groups allow it.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same splits.")] = 0,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    classes: Classes = None,
    merge: Merge = None,
) -> None:
    """Divide DATA into train, val and test; near-duplicates and bursts stay in one split, and DATA as it is.

    Example: multibox data split data/cells data/cells-split --val 0.1 --test 0.2 --stratify
    """
    from multibox.cli.console import counting_up
    from multibox.data.splitting import split_dataset

    with counting_up("images looked at") as progress:
        done = split_dataset(
            *(source, destination),
            val=val,
            test=test,
            group_by=group_by,
            stratify=stratify,
            seed=seed,
            format=format,
            on_bad=on_bad.value,
            classes=class_list(classes) or (),
            merge=merge or (),
            progress=progress,
        )
    for note in done.notes:
        typer.echo(note)
    _print_division(done)
    images = ", ".join(f"{name} {count:,}" for name, count in done.images.items())
    typer.echo(
        f"wrote {done.destination} as {done.written_as}: {sum(done.images.values()):,} images ({images}) in "
        f"{sum(done.groups.values()):,} groups"
    )


def _print_division(done: "Division") -> None:
    """Print the images and groups of each split, and the share of each class's objects that it holds."""
    from multibox.cli.console import print_rows

    totals = {
        name: sum(objects[name] for objects in done.objects.values()) for name in next(iter(done.objects.values()))
    }
    rows = [
        ["images", f"{sum(done.images.values()):,}", *(f"{count:,}" for count in done.images.values())],
        ["groups", f"{sum(done.groups.values()):,}", *(f"{count:,}" for count in done.groups.values())],
    ]
    for name, total in ((name, total) for name, total in totals.items() if total):
        shares = (f"{objects[name] / max(total, 1):.1%}" for objects in done.objects.values())
        rows.append([f"objects of {name}", f"{total:,}", *shares])
    print_rows(["", ">in all", *(f">{name}" for name in done.images)], rows)


@app.command("show")
def show(
    data: DataSets,
    split: Annotated[str | None, typer.Option(help="Split; default the first one.")] = None,
    format: Format = None,
    count: Annotated[int, typer.Option(min=1, help="Images, or draws, on the sheet.")] = 16,
    augmentation: Annotated[str | None, typer.Option(help="Show draws of this augmentation recipe.")] = None,
    seed: Annotated[int, typer.Option(help="Which images are drawn.")] = 0,
    on_bad: SkipOrStop = OnBad.stop,
    classes: Classes = None,
    merge: Merge = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG or JPEG to write. Default: sheet.png, or sheet-2.png and so on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out; a file of DATA never.")] = False,
) -> None:
    """Draw a contact sheet of labelled images, and print what the data set holds.

    Example: multibox data show data/cells --augmentation default
    """
    import io

    import numpy as np

    from multibox.data.checking import check_images
    from multibox.data.choosing import choose_classes
    from multibox.data.formats import locate, open_dataset
    from multibox.data.images import load_image
    from multibox.files import check_outputs, free_path, write_bytes_whole
    from multibox.plots.detections import contact_sheet, draw_sample

    out = out or free_path("sheet.png")
    check_suffix(out, IMAGES)
    check_outputs([out], overwrite=overwrite, inputs=data)
    found = locate(data, format)
    splits = found.splits()
    dataset = open_dataset(found, split or splits[0], on_bad=on_bad.value)
    (dataset,) = choose_classes([dataset], class_list(classes) or (), merge or ())
    if on_bad is OnBad.skip:
        dataset = check_images(dataset, "skip")
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    named = ", ".join(map(str, data))
    typer.echo(f"{named}: {dataset.format}, splits {', '.join(splits)}; {dataset.split} has {len(dataset)} images")
    for name, number in zip(dataset.class_names, counts, strict=True):
        typer.echo(f"  {name}: {number} boxes")
    for note in dataset.notes:
        typer.echo(note)
    order = np.random.default_rng(seed).permutation(len(dataset))
    chosen: list[int]
    if augmentation is None:
        chosen = np.sort(order[:count]).tolist()
        tiles = [draw_sample(load_image(dataset[i]), dataset[i], dataset.class_names) for i in chosen]
    else:
        chosen = np.sort(np.resize(order, count)).tolist()
        tiles = _draws(dataset, chosen, augmentation, seed)
    sheet = contact_sheet(tiles, captions=[dataset.image_names[i] for i in chosen])
    image = io.BytesIO()
    sheet.save(image, "PNG" if out.suffix.lower() == ".png" else "JPEG")
    write_bytes_whole(out, image.getvalue())
    typer.echo(f"wrote {out}")


def _draws(dataset: "Dataset", indices: list[int], augmentation: str, seed: int) -> "list[Image.Image]":
    """Return images as training would see them; each draw has its own epoch, so repeated images differ."""
    import numpy as np
    from PIL import Image

    from multibox.data.augmentation import find_augmentation
    from multibox.data.loading import AugmentedImages
    from multibox.plots.detections import draw_sample
    from multibox.structures import Sample, Size

    images = AugmentedImages(dataset, Size(256, 256), find_augmentation(augmentation), seed=seed)
    tiles: list[Image.Image] = []
    for epoch, index in enumerate(indices):
        scene, name, _ = images[epoch, index]
        none = np.zeros(len(scene.labels), np.bool_)
        sample = Sample(name, dataset.root, scene.boxes_xyxy * 256, scene.labels, difficult=none, crowd=none)
        tiles.append(draw_sample(Image.fromarray(np.ascontiguousarray(scene.pixels)), sample, dataset.class_names))
    return tiles
