"""Draw docs/images/augmentations.png: a row of six draws for every augmentation recipe, of sprites.

`python scripts/contact_sheet.py [FILE]`
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multibox.data.augmentation import AUGMENTATIONS
from multibox.data.formats import open_dataset
from multibox.data.loading import AugmentedImages
from multibox.data.sprites import make_sprites
from multibox.files import write_bytes_whole
from multibox.plots.detections import contact_sheet, draw_sample
from multibox.structures import Dataset, Sample, Size

DRAWS = 6
TILE = 112
SEED = 2
"""One with which every kind of mixing is seen."""
MARGIN = 150
"""Pixels for the names at the left."""
TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "augmentations.png"


def draws(dataset: Dataset, name: str) -> list[Image.Image]:
    """Return the first images of the data set as a recipe gives them, with boxes in the colours of their classes."""
    images = AugmentedImages(dataset, Size(TILE, TILE), AUGMENTATIONS[name], seed=SEED)
    tiles: list[Image.Image] = []
    for index in range(DRAWS):
        (pixels, boxes, labels, _), title, _ = images[0, index]
        none = np.zeros(len(labels), np.bool_)
        sample = Sample(title, dataset.root, boxes * TILE, labels, difficult=none, crowd=none)
        # Names would hide the images at this size
        unnamed = [""] * len(dataset.class_names)
        tiles.append(draw_sample(Image.fromarray(np.ascontiguousarray(pixels)), sample, unnamed))
    return tiles


def draw_sheet(dataset: Dataset) -> Image.Image:
    """Return the sheet: recipes from top to bottom, the same six images in every row."""
    grid = contact_sheet([tile for name in AUGMENTATIONS for tile in draws(dataset, name)], DRAWS, TILE)
    sheet = Image.new("RGB", (MARGIN + grid.width, grid.height), "#ffffff")
    sheet.paste(grid, (MARGIN, 0))
    pencil, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for row, name in enumerate(AUGMENTATIONS):
        pencil.text((MARGIN - 6, grid.height * (row + 0.5) / len(AUGMENTATIONS)), name, "#000000", font, anchor="rm")
    return sheet


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    with tempfile.TemporaryDirectory() as scratch:
        make_sprites(Path(scratch) / "sprites", images=16, classes=3, objects=(1, 4), seed=5)
        drawn = draw_sheet(open_dataset(Path(scratch) / "sprites", "train"))
    # A palette makes a third of the bytes; Pillow dithers, against bands of colour, only with one that is given
    packed = io.BytesIO()
    palette = drawn.quantize(256, kmeans=3)
    drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(packed, "PNG", optimize=True)
    write_bytes_whole(target, packed.getvalue())
    print(f"wrote {target}: {drawn.width} x {drawn.height} pixels, {len(packed.getvalue()) // 1000} kB")
