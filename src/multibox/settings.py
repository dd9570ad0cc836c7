"""Settings by dotted key: types, ranges and meanings from the schema, values from text or JSON, hints for mistakes."""

import difflib
import functools
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

from multibox.errors import ConfigError

T = TypeVar("T", bound=Struct)

ELSEWHERE = {
    **dict.fromkeys(("batch", "bs", "batchsize"), "train.batch_size"),
    **dict.fromkeys(("imgsz", "img_size", "img", "image_size", "size", "input", "resolution"), "model.input_size"),
    **dict.fromkeys(("lr0", "learning_rate", "base_lr", "initial_lr"), "train.lr"),
    **dict.fromkeys(("epoch", "max_epochs", "num_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(("iterations", "iters", "max_iter", "max_steps", "num_steps"), "train.steps"),
    **dict.fromkeys(("minute", "time"), "train.minutes"),
    **dict.fromkeys(("wd", "decay"), "train.weight_decay"),
    **dict.fromkeys(("num_workers", "nworkers"), "train.workers"),
    **dict.fromkeys(("pretrained", "checkpoint"), "train.weights"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half"), "train.precision"),
    **dict.fromkeys(("augment", "aug", "augmentations"), "train.augmentation"),
    **dict.fromkeys(("conf", "confidence", "conf_thres"), "post.score_threshold"),
    **dict.fromkeys(("iou", "iou_thres", "nms"), "post.nms_threshold"),
    **dict.fromkeys(("max_det", "top_k", "topk"), "post.max_detections"),
    **dict.fromkeys(("arch", "network"), "model.backbone"),
}
"""Names of our settings in other programs."""
NO_SETTING = {
    **dict.fromkeys(("data", "dataset"), "the data set is the first argument: multibox train DATA"),
    "preset": "give --preset NAME",
    "recipe": "give --recipe NAME",
    "device": "give --device NAME",
    "resume": "give --resume RUN",
    **dict.fromkeys(("project", "name", "out", "output", "save_dir"), "give --out DIR"),
}
"""Names that are no setting, and what to give instead."""
WORDS: dict[type, tuple[str, str]] = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}


class Setting(NamedTuple):
    """One setting of the schema."""

    key: str
    """Dotted: section.name."""
    kind: Any
    """Its type, with constraints."""
    default: Any
    meaning: str
    example: Any
    """Of a list; None for other types."""
    extra: Mapping[str, Any]
    """`read_as`: turns a text into a value, from `--set` and from files. `expected`: words for messages where the type
    does not say enough. `separator`: between the items of a list of texts. `formerly`: an old word for the value `now`.
    `checked_as`: the type whose range holds for a named tuple, which `made` makes."""
    made: Callable[..., Any] | None = None

    @property
    def expected(self) -> str:
        """Return type and range in words."""
        if said := self.extra.get("expected"):
            return said
        return describe(self.kind) + ("" if self.example is None else f", such as {as_text(self.example)}")


@functools.cache
def list_settings(config: type[Struct]) -> dict[str, Setting]:
    """Return every setting of nested structs by its dotted key, in their order."""
    settings: dict[str, Setting] = {}
    hints = typing.get_type_hints(config, include_extras=True)
    for field in msgspec.structs.fields(config):
        kind, metas = _split(hints[field.name])
        if isinstance(kind, type) and issubclass(kind, Struct):
            inner = list_settings(kind).items()
            settings |= {f"{field.name}.{key}": one._replace(key=f"{field.name}.{key}") for key, one in inner}
            continue
        meaning = next((meta for meta in reversed(metas) if meta.description), Meta())
        constraints = tuple(meta for meta in metas if meta is not meaning)
        extra = meaning.extra or {}
        made = cast(Callable[..., Any], kind) if "checked_as" in extra else None
        kind = extra.get("checked_as", kind)
        settings[field.name] = Setting(
            field.name,
            Annotated[kind, *constraints] if constraints else kind,
            field.default,
            meaning.description or "",
            meaning.examples[0] if meaning.examples else None,
            extra,
            made,
        )
    return settings


def get_setting(config: Struct, key: str) -> Any:
    """Return the value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def change_settings(config: T, changes: Mapping[str, Any], *, parse: bool = True) -> T:
    """Return a copy of nested structs with dotted keys replaced.

    Args:
        config: The structs.
        changes: New values by dotted key.
        parse: Whether to parse a string given to a setting that is no text.

    Raises:
        ConfigError: An unknown key, or a value that its setting refuses.
    """
    known = list_settings(type(config))
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        if key not in known:
            raise ConfigError(unknown_setting(key, known, value))
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = convert(known[key], value, parse=parse)
    top = sections.pop("", {})
    inner = {name: msgspec.structs.replace(getattr(config, name), **new) for name, new in sections.items()}
    return msgspec.structs.replace(config, **top, **inner)


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Split `section.key=value` strings as given to `--set`."""
    changes: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected section.key=value, for example train.lr=0.1")
        changes[key.strip()] = value.strip()
    return changes


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in cast(Mapping[str, Any], value).items()}
        else:
            flat[key] = value
    return flat


def unknown_setting(key: str, known: Mapping[str, Setting], value: Any = None) -> str:
    """Return the sentence about a key that is no setting, with the one that was probably meant."""
    sections = list(dict.fromkeys(other.partition(".")[0] for other in known if "." in other))
    section, _, name = key.rpartition(".")
    if not section and (instead := NO_SETTING.get(plain_name(name))):
        return f"{key!r} is no setting; {instead}"
    if key in sections:
        first = next(other for other in known if other.startswith(f"{key}."))
        return f"{key!r} is a section; name a setting in it, such as {first}"
    if section in known:
        return f"{section!r} is a setting, not a section, so {key!r} does not exist"
    meant = meant_settings(key, known)
    if len(meant) == 1:
        return f"unknown setting {key!r}, did you mean {meant[0]}{assigned(known[meant[0]], value)}?"
    if meant:
        return f"unknown setting {key!r}; did you mean one of {', '.join(meant)}?"
    if section in sections:
        names = [other.partition(".")[2] for other in known if other.startswith(f"{section}.")]
        return f"unknown setting {key!r}; known in {section}: {', '.join(names)}"
    return (
        f"unknown setting {key!r}; sections are {', '.join(sections)}, and `multibox list settings` shows all of them"
    )


def assigned(setting: Setting, value: Any) -> str:
    """Return "=VALUE" as the setting takes a value that was given to a wrong key; empty if it does not take it."""
    if not isinstance(value, str):
        return ""
    items = typing.get_args(_split(setting.kind)[0])
    for text in (value, f"[{','.join([value] * len(items))}]"):
        try:
            convert(setting, text)
        except ConfigError:
            continue
        return f"={text}"
    return ""


def meant_settings(key: str, known: Mapping[str, Setting], *, near: bool = True) -> list[str]:
    """Return the settings that a wrong key may stand for; several if they have one name in different sections.

    Args:
        key: With or without a section.
        known: Every setting.
        near: Whether a name that is only similar counts.
    """
    section, _, name = key.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for other in known:
        by_name.setdefault(other.rpartition(".")[2], []).append(other)
    if named := by_name.get(plain_name(name)):
        return named
    if (other := ELSEWHERE.get(plain_name(name))) in known:
        return [cast(str, other)]
    if not near:
        return []
    if not section:
        return [
            key for similar in difflib.get_close_matches(plain_name(name), by_name, n=1) for key in by_name[similar]
        ]
    inside = [other.rpartition(".")[2] for other in known if other.startswith(f"{section}.")]
    if not inside:
        return difflib.get_close_matches(key, known, n=1)
    return [f"{section}.{similar}" for similar in difflib.get_close_matches(name, inside, n=1)]


def plain_name(name: str) -> str:
    """Return the name of an option or setting in lower case, without leading dashes."""
    return name.strip("-").replace("-", "_").lower()


def convert(setting: Setting, value: Any, *, parse: bool = True) -> Any:
    """Return a value as its setting holds it: lists become tuples, whole numbers floats where those are meant.

    Raises:
        ConfigError: The value is of another type or out of range.
    """
    given = value
    if isinstance(value, str) and value == setting.extra.get("formerly"):
        value = setting.extra["now"]
    if isinstance(value, str) and "read_as" in setting.extra:
        value = setting.extra["read_as"](value)
    elif parse and isinstance(value, str):
        value = _parse(setting, value)
    try:
        if not _finite(value):
            raise OverflowError
        converted = msgspec.convert(value, setting.kind, strict=True)
    except (msgspec.ValidationError, OverflowError):
        raise ConfigError(f"{setting.key}={_shown(given)}: expected {setting.expected}") from None
    # Items of lists stay as written: whole numbers are part of the fingerprint of older models' anchors
    if not isinstance(value, list | tuple):
        return converted
    frozen = _freeze(value)
    return setting.made(*frozen) if setting.made else frozen


def _parse(setting: Setting, text: str) -> Any:
    """Parse a text by the setting's type: JSON, a word, or items between commas."""
    bare, _ = _split(setting.kind)
    item = _split(typing.get_args(bare)[0])[0] if typing.get_origin(bare) is tuple else None
    if (item is str or _words(item)) and not text.startswith("["):
        return [part.strip() for part in text.split(setting.extra.get("separator", ",")) if part.strip()]
    if bare is str or text in _words(bare):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"{setting.key}={text}: expected {setting.expected}") from None


def read_colour(text: str) -> Any:
    """Return red, green and blue of a colour's name, of #rrggbb or of three numbers; the text itself if it is none."""
    from PIL import ImageColor

    try:
        return list(ImageColor.getrgb(text))
    except ValueError:
        pass
    try:
        return json.loads(f"[{text.strip('[]() ')}]")
    except ValueError:
        return text


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in cast(Sequence[Any], value))
    return abs(value) < 2**63 if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in cast(Sequence[Any], value)) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = as_text(value)
    return text if isinstance(value, str) or len(text) <= 80 else f"{text[:77]}..."


def as_text(value: Any) -> str:
    """Return a value as `--set` and TOML take it; a text without quotation marks."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _split(kind: Any) -> tuple[Any, tuple[Meta, ...]]:
    """Return a type without its annotations, and those."""
    if typing.get_origin(kind) is Annotated:
        bare, *metas = typing.get_args(kind)
        return bare, tuple(meta for meta in metas if isinstance(meta, Meta))
    return kind, ()


def _words(kind: Any) -> tuple[str, ...]:
    """Return the words that a type allows."""
    bare, _ = _split(kind)
    if typing.get_origin(bare) is Literal:
        return typing.get_args(bare)
    is_tuple = typing.get_origin(bare) is tuple
    return () if is_tuple else tuple(word for part in typing.get_args(bare) for word in _words(part))


def describe(kind: Any) -> str:
    """Return a type and its range in words."""
    bare, metas = _split(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        return _describe_list(arguments)
    if arguments:
        # A number, or a word in its place
        return ", or ".join(describe(part) for part in arguments)
    if bare is bool:
        return "true or false"
    return f"{WORDS[bare][0]}{_range(metas)}" if bare in WORDS else "text"


def _describe_list(arguments: tuple[Any, ...]) -> str:
    item, metas = _split(arguments[0])
    if item is str:
        return "a list of texts"
    if typing.get_origin(item) is tuple:
        return "a list of lists, one per feature map, of " + _innermost(item)
    return ("a list of " if arguments[-1] is Ellipsis else f"{len(arguments)} ") + WORDS[item][1] + _range(metas)


def _innermost(kind: Any) -> str:
    item, metas = _split(typing.get_args(kind)[0])
    if typing.get_origin(item) is tuple:
        return "pairs of " + _innermost(item)
    return WORDS[item][1] + _range(metas)


def _range(metas: Sequence[Meta]) -> str:
    low = next((m for m in metas if m.ge is not None or m.gt is not None), Meta())
    high = next((m for m in metas if m.le is not None or m.lt is not None), Meta())
    if low.ge is not None and high.le is not None:
        return f" from {low.ge:g} to {high.le:g}" if abs(high.le) < 1e6 else f" from {low.ge} to {high.le}"
    parts = (
        f"above {low.gt:g}" if low.gt is not None else "",
        f"of at least {low.ge:g}" if low.ge is not None else "",
        f"at most {high.le:g}" if high.le is not None else "",
        f"below {high.lt:g}" if high.lt is not None else "",
    )
    said = " and ".join(part for part in parts if part)
    return f" {said}" if said else ""
