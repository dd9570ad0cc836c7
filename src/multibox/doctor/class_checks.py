"""What the class names and the numbers of objects say about a data set."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from multibox.data.formats.text import canonical
from multibox.doctor.findings import Finding, finding
from multibox.doctor.survey import Survey

FEW = 20
"""Objects of a class below which it is called rare; also in `analysis.advice`."""
UNEVEN = 10
"""Times that the commonest class has more objects than the rarest, from which they are called unbalanced."""
CHANCE = 0.001
"""A class is missing in a split by mistake if images drawn by chance would lack it this rarely."""
NO_CLASS = frozenset(
    ("background", "bg", "ignore", "ignored", "ignoredregions", "ignoreregion", "dontcare", "void", "unlabeled")
)
"""Names that stand for no class, without capitals, spaces and signs."""
_QUOTABLE = re.compile(r"[\w .+()/&:;#-]+")
"""Names that `--merge` takes between double quotes, in every shell."""
_LONG = 6
"""Letters that a name needs to be taken for another with one letter wrong."""

Surveys = Mapping[str, Survey]


def check_classes(surveys: Surveys) -> Iterator[Finding]:
    """Yield findings about class names and numbers of objects over all splits."""
    counts = {split: class_counts(survey) for split, survey in surveys.items()}
    total = Counter[str]()
    for split, one in counts.items():
        if not _joins_others(split, surveys):
            total.update(one)
    place = next(iter(surveys.values())).raw.root if surveys else ""
    for rare, common, certain in twins(total):
        what = f"class {rare!r} ({total[rare]} objects) seems to be {common!r} ({total[common]})"
        fix = _joining(rare, common, certain)
        yield finding("misspelt-class", place, what, f"class {rare}", fix=fix)
    yield from _named_twice(surveys)
    for name, count in total.items():
        if not count and not _dropped_by_reader(name, surveys):
            yield finding("unused-class", place, f"class {name!r} has no objects", f"class {name}")
        if _letters(name) in NO_CLASS and (count or not _dropped_by_reader(name, surveys)):
            what = f"{name!r} is among the classes, with {_objects(count)}"
            yield finding("background-class", place, what, f"class {name}")
        if 0 < count < FEW:
            yield finding("rare-class", place, f"class {name!r} has {_objects(count)}", f"class {name}")
    yield from _one_split(surveys, counts, total)
    used = [(count, name) for name, count in total.items() if count]
    if used and max(used)[0] >= UNEVEN * min(used)[0] and sum(total.values()) >= FEW:
        (most, common), (least, rare) = max(used), min(used)
        what = f"class {common!r} has {_objects(most)}, {rare!r} {least}: {most / least:.0f} times as many"
        yield finding("class-imbalance", place, what, f"class {rare}")
    yield from _objects_at_all(surveys)


def _joining(rare: str, common: str, certain: bool) -> str:
    """Return how two spellings become one class, as a command line takes it."""
    names, give = (rare, common), "Give" if certain else "If they are one class, give"
    if any(name != name.strip() or not _QUOTABLE.fullmatch(name) for name in names):
        return f"{give} it one spelling in the label files."
    bare = all(re.fullmatch(r"[\w.+-]+", name) for name in names)
    rule = f"{common}={rare}" if bare else f'"{common}={rare}"'
    return f"{give} it one spelling, or join both with --merge {rule}."


def _named_twice(surveys: Surveys) -> Iterator[Finding]:
    """Yield names that stand in a list of classes twice, as spellings that differ in spaces at the ends do."""
    for split, survey in surveys.items():
        for name, count in Counter(survey.raw.class_names).items():
            if count > 1:
                what = f"class {name!r} stands in the list of classes {count} times"
                yield finding("misspelt-class", survey.raw.root, what, f"class {name}, split {split}")


def class_counts(survey: Survey) -> Counter[str]:
    """Return the objects of each class that a split declares or uses."""
    names = survey.raw.class_names
    counts = np.bincount(survey.raw.labels, minlength=len(names)).tolist()
    found = Counter[str](dict.fromkeys(names, 0))
    for name, count in zip(names, counts, strict=True):
        found[name] += count  # a name may stand in the file twice
    return found


def twins(counts: Mapping[str, int]) -> list[tuple[str, str, bool]]:
    """Return pairs of a rare and a common spelling of what seems one class, and whether that is certain.

    Certain are names that differ in capitals, spaces and signs only. Plurals, and long names of which one has few
    objects and one letter wrong, are likely. Names that differ in a number never are: class1 and class2.
    """
    found: dict[str, tuple[str, str, bool]] = {}
    for one, other in combinations(sorted(counts), 2):
        rare, common = sorted((one, other), key=lambda name: (counts[name], name != name.lower()))
        if counts[rare] == counts[common]:
            rare, common = sorted((one, other), key=lambda name: (name == name.lower(), name))
        certain = spelling(one) == spelling(other) and len(spelling(one)) > 1
        if (certain or _likely(rare, common, counts)) and (rare not in found or certain):
            found[rare] = (rare, common, certain)
    return list(found.values())


def spelling(name: str) -> str:
    """Return a key that is equal for spellings that differ in capitals, width, spaces, `-` and `_` only."""
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def _likely(rare: str, common: str, counts: Mapping[str, int]) -> bool:
    one, other = spelling(rare), spelling(common)
    if re.sub(r"\D", "", one) != re.sub(r"\D", "", other):
        return False
    short, long = sorted((one, other), key=len)
    if len(short) >= 3 and long in (f"{short}s", f"{short}es", f"{short[:-1]}ies"):
        return True
    few = counts[rare] <= max(2, counts[common] / 4)
    return few and min(len(one), len(other)) >= _LONG and _one_slip(one, other)


def _one_slip(one: str, other: str) -> bool:
    """Return whether one letter is wrong, missing, too many or exchanged with the next."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    swapped = len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0] and a[2:] == b[2:]
    return swapped or a[1:] == b[1:] or a[1:] == b or a == b[1:]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.casefold())


def _dropped_by_reader(name: str, surveys: Surveys) -> bool:
    """Return whether it is COCO's category without boxes that stands for the background, which readers drop."""
    return _letters(name) in NO_CLASS and all(survey.raw.format == "coco" for survey in surveys.values())


def _joins_others(split: str, surveys: Surveys) -> bool:
    """Return whether a split is the sum of two others, as VOC's trainval is."""
    return canonical(split) == "trainval" and {"train", "val"} <= {canonical(name) for name in surveys}


def _one_split(surveys: Surveys, counts: Mapping[str, Counter[str]], total: Counter[str]) -> Iterator[Finding]:
    images = {
        split: len(survey.raw.image_names)
        for split, survey in surveys.items()
        if not _joins_others(split, surveys) and len(survey.raw.labels)
    }
    if len(images) < 2:
        return
    for name in total:
        holding = [split for split in images if counts[split][name]]
        if len(holding) != 1:
            continue
        split, others = holding[0], [other for other in images if other != holding[0]]
        # How likely all of its images would have come to this split, had they been shared by chance
        raw = surveys[split].raw
        label = [place for place, one in enumerate(raw.class_names) if one == name]
        held = len(np.unique(raw.owners[np.isin(raw.labels, label)]))
        chance = (images[split] / sum(images.values())) ** held
        missing = _and(others)
        what = f"class {name!r} has {_objects(counts[split][name])} in split {split!r} and none in {missing}"
        severity = "warning" if chance < CHANCE else "note"
        yield finding("class-in-one-split", raw.root, what, f"class {name}", severity=severity)


def _objects_at_all(surveys: Surveys) -> Iterator[Finding]:
    for split, survey in surveys.items():
        raw = survey.raw
        if raw.image_names and not len(raw.labels):
            what = f"none of the {len(raw.image_names)} images of split {split!r} has an object"
            # Sets for competitions keep the labels of their test split back
            severity = "warning" if canonical(split) == "test" and len(surveys) > 1 else "error"
            yield finding("no-objects", raw.root, what, f"split {split}", severity=severity)
        flagged = int(raw.difficult.sum())
        if len(raw.labels) >= 5 and flagged >= 0.9 * len(raw.labels):
            what = f"{flagged} of {len(raw.labels)} objects of split {split!r} are flagged as difficult"
            yield finding("difficult-everything", raw.root, what, f"split {split}")


def _and(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"
