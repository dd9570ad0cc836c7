"""Which classes take part: some of a data set's, and several joined under one name."""

from collections.abc import Iterable, Mapping, Sequence

from multibox.data.checking import with_classes
from multibox.errors import ConfigError, did_you_mean
from multibox.structures import Dataset


def parse_merges(rules: Iterable[str]) -> dict[str, str]:
    """Return the new name of each class that the rules join, such as `car=truck,bus`.

    Raises:
        ConfigError: a rule without "=" or without names, or a class that two rules join under different names.
    """
    joined: dict[str, str] = {}
    for rule in rules:
        new, equals, old = (part.strip() for part in rule.partition("="))
        parts = [part.strip() for part in old.split(",")]
        if not (new and equals and all(parts)):
            raise ConfigError(f"merge {rule!r}: expected NEW=A,B, such as car=truck,bus")
        for part in parts:
            if joined.setdefault(part, new) != new:
                raise ConfigError(f"merge: class {part!r} is to become {joined[part]!r} and {new!r}; name it once")
    return joined


def choose_classes(datasets: Sequence[Dataset], classes: Sequence[str], merge: Iterable[str]) -> list[Dataset]:
    """Return splits with the classes that `merge` joins under new names and `classes` chooses.

    Args:
        datasets: splits whose classes may stand in any order.
        classes: those to keep, in this order, after merging; none keeps all.
        merge: rules such as `car=truck,bus`.

    Raises:
        ConfigError: a class that no split has.
    """
    joined = parse_merges(merge)
    if not joined and not classes:
        return list(datasets)
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.class_names))
    _check_known("merge", joined, names)
    after = list(dict.fromkeys(joined.get(name, name) for name in names))
    _check_known("classes", classes, after)
    wanted = list(dict.fromkeys(classes)) or after
    return [with_classes(dataset, wanted, joined) for dataset in datasets]


def merges_known(merge: Iterable[str], class_names: Iterable[str]) -> Mapping[str, str]:
    """Return the merges of a trained model's run that lead to a class it has: new name by old name."""
    known = set(class_names)
    return {old: new for old, new in parse_merges(merge).items() if new in known}


def in_use(class_names: Iterable[str]) -> list[str]:
    """Return the classes without those that only fill COCO's gaps, such as `unused 12` of the built-in model."""
    return [name for name in class_names if not name.startswith("unused ")]


def check_renamed(rename: Mapping[str, str] | None, class_names: Sequence[str]) -> None:
    """Refuse a new name that a trained model does not know; an empty one, which leaves a class out, is right.

    Raises:
        ConfigError: such a name.
    """
    for old, new in (rename or {}).items():
        if new and new not in class_names:
            more = f" and {len(class_names) - 10} more" if len(class_names) > 10 else ""
            raise ConfigError(
                f"rename {old}={new}: no class {new!r} in the model{did_you_mean(new, class_names)}; "
                f"it has {', '.join(class_names[:10])}{more}; {old}= leaves the class out"
            )


def _check_known(setting: str, wanted: Iterable[str], class_names: Sequence[str]) -> None:
    for name in wanted:
        if name not in class_names:
            raise ConfigError(
                f"data.{setting}: the data has no class {name!r}{did_you_mean(name, class_names)}; "
                f"it has {', '.join(class_names)}"
            )
