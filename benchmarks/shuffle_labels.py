"""Write a copy of a data set whose training labels belong to other images: nothing can be learnt from it.

A detector trained on the copy must score near zero on the true validation labels; a higher score would mean that
figures leak from somewhere. `python benchmarks/shuffle_labels.py SOURCE DESTINATION`
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from multibox.data.convert import write_dataset
from multibox.data.formats import open_dataset
from multibox.structures import Dataset, Sample, pack


def shuffled(dataset: Dataset, seed: int = 0) -> Dataset:
    """Return the images of `dataset` with each other's labels; no image keeps its own."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    # Along one cycle every image takes the labels of the next
    donor = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    samples = [_with_labels_of(dataset[i], dataset[donor[i]]) for i in range(len(dataset))]
    return pack(samples, root=dataset.root, format=dataset.format, split=dataset.split, class_names=dataset.class_names)


def _with_labels_of(sample: Sample, other: Sample) -> Sample:
    return dataclasses.replace(
        sample, boxes_xyxy=other.boxes_xyxy, labels=other.labels, difficult=other.difficult, crowd=other.crowd
    )


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    splits = {"train": shuffled(open_dataset(source, "train")), "val": open_dataset(source, "val")}
    write_dataset(splits, destination, "voc")
    print(f"wrote {destination}")
