"""Several data sets as one: splits joined by purpose, classes by name, image names kept apart by a prefix."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from multibox.columns import Numbers, Paths, Texts
from multibox.data.formats.locating import Found
from multibox.data.formats.raw_labels import RawLabels
from multibox.data.formats.text import ReadOptions, canonical, in_order, is_split_name
from multibox.structures import Dataset, Sizes


@dataclass(frozen=True)
class Joined:
    """Data sets that are read as one. A split holds the images of every set's split of that purpose."""

    sets: tuple[Found, ...]

    @property
    def path(self) -> Path:
        """The first set's path, for messages."""
        return self.sets[0].path

    @property
    def format(self) -> str:
        """The formats, each once."""
        return ", ".join(dict.fromkeys(one.format for one in self.sets))

    def splits(self) -> list[str]:
        """Return the names of the splits by purpose, train and val first."""
        return in_order({name for one in self.sets for name in purposes(one)})

    def read(self, split: str, options: ReadOptions) -> Dataset:
        """Read one split of every set that has it."""
        own = [purposes(one) for one in self.sets]
        labels = set_labels(one.path for one in self.sets)
        rows = [i for i, splits in enumerate(own) if split in splits]
        datasets = [self.sets[i].read(own[i][split], options) for i in rows]
        joined = join(datasets, [labels[i] for i in rows], split)
        if options.raw:
            options.raw[:] = [_join_raw(options.raw, joined.image_names, split)]
        without = [label for label, splits in zip(labels, own, strict=True) if split not in splits]
        note = (f"split {split}: there is none in {', '.join(without)}",) if without else ()
        return replace(joined, notes=(*note, *joined.notes))


def purposes(found: Found) -> dict[str, str]:
    """Return each split's name by its purpose: `val` for `valid` and `val2017`, unless the set has both."""
    splits = found.splits()
    short = {canonical(split): split for split in splits if is_split_name(split)}
    return {split: split for split in splits} if len(short) < len(splits) else short


def set_labels(paths: Iterable[Path]) -> list[str]:
    """Return a name for each data set, different ones: its folder's, or its file's without ending."""
    labels: list[str] = []
    for path in paths:
        folder = path.parent if path.suffix.lower() in (".yaml", ".yml", ".data") else path
        name = folder.name if folder.is_dir() else folder.stem
        same = sum(label == name or label.rpartition("-")[0] == name for label in labels)
        labels.append(f"{name}-{same + 1}" if same else name)
    return labels


def join(datasets: Sequence[Dataset], labels: Sequence[str], split: str) -> Dataset:
    """Return one split that holds the images of several; classes are joined by name, in the order met.

    Args:
        datasets: at least one.
        labels: a name of each set, which its images' names get as their first folder.
        split: the name of the result.
    """
    names = tuple(dict.fromkeys(name for one in datasets for name in one.class_names))
    tables = [np.array([names.index(name) for name in one.class_names], np.int64) for one in datasets]
    shifts = [0, *accumulate(int(one.starts[-1]) for one in datasets)]
    starts = [one.starts[:-1] + shift for one, shift in zip(datasets, shifts[:-1], strict=True)]
    lengths = [one.lengths or [None] * len(one) for one in datasets]
    named = list(zip(labels, datasets, strict=True))
    return Dataset(
        root=datasets[0].root,
        format=", ".join(dict.fromkeys(one.format for one in datasets)),
        split=split,
        class_names=names,
        image_names=Texts.of(f"{label}/{name}" for label, one in named for name in one.image_names),
        paths=Paths.of(path for one in datasets for path in one.paths),
        sizes=Sizes.of(size for one in datasets for size in one.sizes),
        offsets=Numbers.of(offset for one in datasets for offset in one.offsets),
        starts=np.concatenate([*starts, [shifts[-1]]]).astype(np.int64),
        boxes_xyxy=np.concatenate([one.boxes_xyxy for one in datasets]),
        labels=np.concatenate([table[one.labels] for one, table in zip(datasets, tables, strict=True)]),
        difficult=np.concatenate([one.difficult for one in datasets]),
        crowd=np.concatenate([one.crowd for one in datasets]),
        notes=tuple(dict.fromkeys(f"{label}: {note}" for label, one in named for note in one.notes)),
        left_out=dict(sum((Counter(one.left_out) for one in datasets), Counter[str]())),
        lengths=Numbers.of(chain(*lengths) if any(one.lengths for one in datasets) else ()),
    )


def _join_raw(parts: Sequence[RawLabels], image_names: Texts, split: str) -> RawLabels:
    """Return labels as written of several sets, in the order of `join`."""
    names = list(dict.fromkeys(name for one in parts for name in one.class_names))
    tables = [np.array([names.index(name) for name in one.class_names], np.int64) for one in parts]
    shifts = [0, *accumulate(len(one.image_names) for one in parts)]
    owners = [one.owners + shift for one, shift in zip(parts, shifts[:-1], strict=True)]
    return RawLabels(
        root=parts[0].root,
        format=", ".join(dict.fromkeys(one.format for one in parts)),
        split=split,
        class_names=names,
        image_names=image_names,
        paths=Paths.of(path for one in parts for path in one.paths),
        sources=Paths.of(source for one in parts for source in one.sources),
        sizes=Sizes.of(size for one in parts for size in one.sizes),
        offsets=Numbers.of(offset for one in parts for offset in one.offsets),
        lengths=Numbers.of(length for one in parts for length in one.lengths),
        boxes_xyxy=np.concatenate([one.boxes_xyxy for one in parts]),
        owners=np.concatenate(owners),
        labels=np.concatenate([table[one.labels] for one, table in zip(parts, tables, strict=True)]),
        lines=np.concatenate([one.lines for one in parts]),
        difficult=np.concatenate([one.difficult for one in parts]),
        crowd=np.concatenate([one.crowd for one in parts]),
        outline=np.concatenate([one.outline for one in parts]),
        fractions=all(one.fractions for one in parts),
        problems=[
            problem if problem.image < 0 else problem._replace(image=problem.image + shift)
            for one, shift in zip(parts, shifts[:-1], strict=True)
            for problem in one.problems
        ],
        notes=list(dict.fromkeys(note for one in parts for note in one.notes)),
    )
