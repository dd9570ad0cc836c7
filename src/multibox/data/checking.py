"""Open every picture once before anything depends on it: better a sentence at the start than a stop at night."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from multibox.data.formats.common import OnBad, counted
from multibox.data.samples import load_picture
from multibox.errors import PictureError
from multibox.limits import available_cores
from multibox.structures import Dataset, Sample


def check_pictures(dataset: Dataset, on_bad: OnBad) -> Dataset:
    """Return the data set without pictures that cannot be decoded, and a note that counts them.

    Costs one decoding of every picture, on all cores.

    Raises:
        PictureError: a picture is missing, truncated or none, and `on_bad` is "stop"; or none is left.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        errors = list(pool.map(_problem, dataset))
    found = [error for error in errors if error is not None]
    if not found:
        return dataset
    if on_bad == "stop":
        raise PictureError(f"{found[0]}; mend or remove it, or give --on-bad skip")
    if len(found) == len(dataset):
        raise PictureError(f"no picture of {dataset.root} ({dataset.split}) can be read; the first: {found[0]}")
    kept = dataset.subset(index for index, error in enumerate(errors) if error is None)
    note = f"{len(found)} pictures that cannot be read were skipped; the first: {found[0]}"
    return dataclasses.replace(kept, notes=(*dataset.notes, note))


def _problem(sample: Sample) -> PictureError | None:
    try:
        load_picture(sample)
    except PictureError as error:
        return error
    return None


def match_classes(training: Dataset, validation: Dataset | None) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return both splits with the classes that training can teach, and what to say about the others.

    A class whose objects are all in validation does not join the model; its validation objects are left out, because
    nothing could find them. A class without objects in either split stays if it is declared.

    Args:
        training: with class names of its own.
        validation: with class names of its own, in any order.
    """
    if validation is None:
        return training, None, []
    taught = np.bincount(training.labels[~training.crowd], minlength=len(training.class_names)) > 0
    counts = np.bincount(validation.labels[~validation.crowd], minlength=len(validation.class_names))
    validated = {name: int(count) for name, count in zip(validation.class_names, counts, strict=True) if count}
    names = [name for name, known in zip(training.class_names, taught, strict=True) if known or name not in validated]
    strange = {name: count for name, count in validated.items() if name not in names}
    notes = []
    if strange:
        listed = ", ".join(f"{name} ({count})" for name, count in list(strange.items())[:5])
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        notes.append(
            f"{counted(len(strange), 'class has', 'classes have')} objects in validation ({validation.split}) but none "
            f"in training ({training.split}) and {'is' if len(strange) == 1 else 'are'} left out: {listed}{more}"
        )
    return with_classes(training, names), with_classes(validation, names), notes


def with_classes(dataset: Dataset, names: Sequence[str], renamed: Mapping[str, str] | None = None) -> Dataset:
    """Return the data set with other class names; objects of classes that are not among them are dropped.

    Args:
        dataset: the data set.
        names: its classes from now on, in order.
        renamed: its present class names to those among `names`; several may become one. Others keep theirs.
    """
    if dataset.class_names == tuple(names) and not renamed:
        return dataset
    present = [(renamed or {}).get(name, name) for name in dataset.class_names]
    table = np.array([names.index(name) if name in names else -1 for name in present], np.int64)
    labels = table[dataset.labels]
    keep = labels >= 0
    return dataclasses.replace(
        dataset,
        class_names=tuple(names),
        starts=np.concatenate([[0], np.cumsum(keep)])[dataset.starts].astype(np.int64),
        boxes_xyxy=dataset.boxes_xyxy[keep],
        labels=labels[keep],
        difficult=dataset.difficult[keep],
        crowd=dataset.crowd[keep],
    )
