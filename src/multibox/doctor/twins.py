"""The same image twice: equal bytes or the same sight, inside a split and in two of them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multibox.data.formats.joining import Joined, purposes, set_labels
from multibox.data.formats.locating import Found
from multibox.data.formats.text import canonical
from multibox.data.left_out import counted
from multibox.data.similar import near_duplicate_groups
from multibox.doctor.findings import Finding, finding
from multibox.doctor.image_files import Key, Looks, key_of
from multibox.doctor.survey import Survey

_KEPT = ("test", "val", "trainval", "train")
"""Splits, those to be left as they are first: of two with the same image, the later one should lose it."""
_PARTS = {"trainval": ("train", "val")}
_WHOLE = ("all", "default")
"""Splits that hold others by intention: those named, and any."""

Roles = Mapping[str, Mapping[str, str]]
"""Of each of several sets, by its label: what training takes each split for, by the split's name."""


class _Place(NamedTuple):
    """An image in a split."""

    split: str
    name: str
    path: Path
    objects: int
    digest: bytes
    sight: int
    """Number of the group of images that look the same; -1 where it cannot be read."""
    origin: str
    """Label of the data set that it comes from, where several are joined; else empty."""
    role: str
    """What training takes its split for."""

    def beside(self, other: "_Place") -> bool:
        """Return whether training has both in one split."""
        same_role = self.origin != other.origin and self.role == other.role
        return self.split == other.split or same_role

    def apart(self, other: "_Place") -> bool:
        """Return whether only one of the splits should have the image."""
        if self.origin != other.origin:
            return _apart(self.role, other.role)
        return _apart(self.split, other.split)


def joined_roles(found: Found | Joined) -> Roles:
    """Return the roles of each set's splits; nothing for a single set.

    The only split of a set is trained on, whatever its name; one that is called val or test is meant as such.
    """
    if isinstance(found, Found):
        return {}
    roles: dict[str, dict[str, str]] = {}
    for label, one in zip(set_labels(part.path for part in found.sets), found.sets, strict=True):
        splits = list(purposes(one))
        only = len(splits) == 1 and canonical(splits[0]) not in _KEPT
        roles[label] = {split: "train" if only else canonical(split) for split in splits}
    return roles


def check_twins(surveys: Mapping[str, Survey], looks: Looks, roles: Roles) -> Iterator[Finding]:
    """Yield images that are there twice, and those that two splits share; `roles` as `joined_roles` returns them."""
    yield from _overlaps(surveys)
    places = _places(surveys, looks, roles)
    same_bytes: dict[bytes, list[_Place]] = {}
    same_sight: dict[int, list[_Place]] = {}
    for place in places:
        same_bytes.setdefault(place.digest, []).append(place)
        same_sight.setdefault(place.sight, []).append(place)
    same_bytes.pop(b"", None)
    same_sight.pop(-1, None)
    for group in same_bytes.values():
        if len(group) > 1:
            yield from _copies(group)
    for group in same_sight.values():
        if len({place.digest for place in group}) > 1:
            yield from _alike(group)


def _places(surveys: Mapping[str, Survey], looks: Looks, roles: Roles) -> list[_Place]:
    """Return every image of every split, in the order of `_KEPT`."""
    seen = [key for key, look in looks.items() if look.hashes is not None]
    numbers: dict[Key, int] = {}
    if len(seen) > 1:
        hashes = np.stack([look.hashes for look in looks.values() if look.hashes is not None])
        numbers = dict(zip(seen, near_duplicate_groups(hashes).tolist(), strict=True))
    places: list[_Place] = []
    for split in sorted(surveys, key=_rank):
        raw = surveys[split].raw
        for row in range(len(raw.image_names)):
            sample = raw.sample(row)
            key = key_of(sample)
            about = (sample.name, sample.path, len(sample.labels))
            origin = sample.name.partition("/")[0] if roles else ""  # `join` puts it there
            role = roles[origin][split] if roles else split
            places.append(_Place(split, *about, looks[key].digest, numbers.get(key, -1), origin, role))
    return places


def _rank(split: str) -> int:
    word = canonical(split)
    return _KEPT.index(word) if word in _KEPT else len(_KEPT)


def _apart(one: str, other: str) -> bool:
    """Return whether two splits should share no image."""
    first, second = canonical(one), canonical(other)
    holds = first in _WHOLE or second in _WHOLE or second in _PARTS.get(first, ()) or first in _PARTS.get(second, ())
    return one != other and not holds


def _overlaps(surveys: Mapping[str, Survey]) -> Iterator[Finding]:
    """Yield the pairs of splits that list the same image files."""
    held: dict[str, dict[Key, str]] = {}
    for split, survey in surveys.items():
        raw = survey.raw
        keys = zip(map(str, raw.paths), raw.offsets, strict=True)
        held[split] = dict(zip(keys, raw.image_names, strict=True))
    for one, other in combinations(held, 2):
        shared = [name for key, name in held[one].items() if key in held[other]]
        if not shared or not _apart(one, other):
            continue
        named = {canonical(one), canonical(other)} <= set(_KEPT)
        if not named and len(shared) in (len(held[one]), len(held[other])):
            continue  # some images of another split, as minival is
        what = counted(
            len(shared), f"image is in both {one} and {other}", f"images are in both {one} and {other}", shared
        )
        yield finding("split-overlap", surveys[one].raw.root, what, f"splits {one} and {other}")


def _copies(group: Sequence[_Place]) -> Iterator[Finding]:
    """Yield one finding per image with the same bytes as an earlier one."""
    for number, place in enumerate(group):
        twin = next((one for one in group[:number] if one.beside(place)), None)
        if twin is not None:
            labels = (
                "" if place.objects == twin.objects else f", with {place.objects} objects instead of {twin.objects}"
            )
            what = f"{place.name} has the same bytes as {twin.name}{labels}"
            yield finding("duplicate-image", place.path, what, _where(place))
            continue
        other = next((one for one in group[:number] if one.apart(place)), None)
        if other is not None:
            what = f"{place.name} of {place.split} has the same bytes as {other.name} of {other.split}"
            if other.path == place.path:
                what = f"{place.name} is in {place.split} and in {other.split}"
            yield finding("leaked-image", place.path, what, _where(place))


def _alike(group: Sequence[_Place]) -> Iterator[Finding]:
    """Yield one finding per image that looks like an earlier one with other bytes."""
    for number, place in enumerate(group):
        before = group[:number]
        if any(one.digest == place.digest for one in before):
            continue  # a copy of one that is named already
        twin = next((one for one in before if one.beside(place)), None)
        other = next((one for one in before if one.apart(place)), None)
        if other is not None:
            what = f"{place.name} of {place.split} shows the same as {other.name} of {other.split}"
            yield finding("leaked-image", place.path, what, _where(place), severity="warning")
        elif twin is not None:
            what = f"{place.name} shows nearly the same as {twin.name}"
            yield finding("near-duplicate-image", place.path, what, _where(place))


def _where(place: _Place) -> str:
    return f"{place.name}, split {place.split}"
