"""Open every picture once before anything depends on it: better a sentence at the start than a stop at night."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

from multibox.data.formats.common import OnBad
from multibox.data.samples import load_picture
from multibox.errors import PictureError
from multibox.structures import Dataset, Sample


def check_pictures(dataset: Dataset, on_bad: OnBad) -> Dataset:
    """Return the data set without pictures that cannot be decoded, and a note that counts them.

    Costs one decoding of every picture, on all cores.

    Raises:
        PictureError: a picture is missing, truncated or none, and `on_bad` is "stop"; or none is left.
    """
    with ThreadPoolExecutor() as pool:
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
