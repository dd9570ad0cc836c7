"""Settings by dotted key: typed values from text or JSON, typos answered by their nearest neighbour."""

import dataclasses
import json
import typing
from typing import Annotated, Any, Literal, TypeVar, cast

from multibox.errors import ConfigError, did_you_mean

T = TypeVar("T")

AUTO = 0
"""What a setting that may be `auto` holds until a run has found its number."""
AutoFloat = Annotated[float, "auto"]
AutoInt = Annotated[int, "auto"]


def replace_setting(config: T, key: str, value: Any) -> T:
    """Return a copy of nested dataclasses with one dotted key replaced; a string is parsed to the field's type.

    Raises:
        ConfigError: an unknown key, or a value of another type.
    """
    return _set(config, key, key.split("."), value)


def parse_assignments(assignments: list[str]) -> dict[str, str]:
    """Split `section.key=value` strings as given to `--set`."""
    changes: dict[str, str] = {}
    for text in assignments:
        key, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"--set {text}: expected section.key=value, for example train.lr=0.1")
        changes[key.strip()] = value.strip()
    return changes


def _set(section: T, full_key: str, keys: list[str], value: Any) -> T:
    hints = typing.get_type_hints(type(section), include_extras=True)
    if keys[0] not in hints:
        raise ConfigError(f"unknown setting {full_key!r}{did_you_mean(keys[0], hints)}; known: {', '.join(hints)}")
    current = getattr(section, keys[0])
    if dataclasses.is_dataclass(current):
        if len(keys) == 1:
            raise ConfigError(f"{full_key!r} is a section; name a setting in it, such as {full_key}.{_first(current)}")
        new = _set(current, full_key, keys[1:], value)
    elif len(keys) > 1:
        raise ConfigError(f"{'.'.join(keys[:-1])!r} is a setting, not a section, so {full_key!r} does not exist")
    else:
        new = _convert(full_key, hints[keys[0]], value)
    return dataclasses.replace(cast(Any, section), **{keys[0]: new})


def _first(section: Any) -> str:
    return dataclasses.fields(section)[0].name


def _convert(key: str, kind: Any, value: Any, other: str = "") -> Any:
    """Turn a string or JSON value into the field's type, or say what was expected."""
    if typing.get_origin(kind) is Annotated:
        number = typing.get_args(kind)[0]
        return number(AUTO) if value == "auto" else _convert(key, number, value, ", or auto")
    if kind == tuple[str, ...] and isinstance(value, str) and not value.startswith("["):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, str) and kind is not str and typing.get_origin(kind) is not Literal:
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(f"{key}={value}: expected {_describe(kind)}{other}") from None
    if not _fits(kind, value):
        raise ConfigError(f"{key}={json.dumps(value)}: expected {_describe(kind)}{other}")
    return _freeze(float(value) if kind is float else value)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in cast(list[Any], value)) if isinstance(value, list | tuple) else value


def _fits(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        items = cast(list[Any], value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(arguments[0], item) for item in items)
        return len(items) == len(arguments) and all(_fits(a, item) for a, item in zip(arguments, items, strict=True))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if kind == tuple[str, ...]:
        return "texts separated by commas"
    if origin is tuple:
        return f"a list such as {json.dumps(_example(kind))}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))


def _example(kind: Any) -> Any:
    """Return numbers nested as a field of this type has them."""
    arguments = typing.get_args(kind)
    if not arguments:
        return 256 if kind is int else 0.5
    return [_example(item) for item in (arguments[:1] * 2 if arguments[-1] is Ellipsis else arguments)]
