"""Draw docs/images/detections.jpg, the README's image, from today's state of the tool.

    multibox data make sprites DATA --classes 5 --objects 1-6
    multibox train DATA --minutes 7 --out RUN
    python scripts/hero_image.py RUN DATA

The images are those of the split `val`, which training has not learned from; boxes are what `multibox predict` reports.
Photographs would show more, but those at hand belong to others.
"""

import sys
from pathlib import Path

import multibox
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.plots.detections import contact_sheet, draw_detections

OUT = Path(__file__).resolve().parent.parent / "docs/images/detections.jpg"
COUNT, COLUMNS = 12, 4


def main() -> None:
    run, data = sys.argv[1:]
    detector = multibox.load(run)
    dataset = open_dataset(data, "val")
    images = [load_image(dataset[index]) for index in range(min(COUNT, len(dataset)))]
    tiles = [draw_detections(image, found) for image, found in zip(images, detector.predict(images), strict=True)]
    contact_sheet(tiles, columns=COLUMNS).save(OUT, quality=88)
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
