"""Every setting with range, defaults and meaning, for `multibox list settings` and docs/settings.md."""

from typing import Any, NamedTuple

from multibox.config import Config
from multibox.models.weights import DEFAULT_PRESET
from multibox.presets import PRESETS, resolve
from multibox.settings import as_text, get_setting, list_settings

LONG = 48
"""Characters above which only the number of lists is printed."""
MANY = 4
"""Different values above which a long one is not listed per preset."""
INTRODUCTION = """# Settings

Every setting of a run stands in the run folder's `config.toml`. Give one on the command line as
`--set train.lr=0.001`, and many in a TOML file with `--config FILE`. `multibox list settings --markdown` writes this
page, and a test compares it with the code.

Which value counts? The last of these that sets it: the preset, the recipe, the recipe's tuning for the preset,
`--config FILE`, `--set`. `multibox train DATA --dry-run` prints each setting with the layer it came from.

The default is that of a plain `multibox train DATA` (preset `{preset}`, recipe `default`). Behind it stand the presets
that have another one under the same recipe. `multibox list recipes --diff default caffe` prints what another recipe
changes.

Some settings take a word in place of a number: `none` is nothing or no limit, `auto` is found by the run, `all` and
`any` choose everything.
"""


class Row(NamedTuple):
    """One setting as it is printed, with the keys of `multibox list settings --json`."""

    setting: str
    expected: str
    """Type and range in words."""
    default: Any
    """Under the default preset and recipe."""
    presets: dict[str, Any]
    """The values of the presets that have another one."""
    meaning: str


def settings_rows() -> list[Row]:
    """Return every setting with its default and the presets that have another one."""
    configs = {preset: resolve(preset) for preset in PRESETS}
    rows: list[Row] = []
    for key, setting in list_settings(Config).items():
        values = {preset: get_setting(config, key) for preset, config in configs.items()}
        default = values[DEFAULT_PRESET]
        others = {preset: value for preset, value in values.items() if value != default and key != "preset"}
        rows.append(Row(key, setting.expected, default, others, setting.meaning))
    return rows


def settings_json() -> list[dict[str, Any]]:
    """Return the rows for JSON."""
    return [row._asdict() for row in settings_rows()]


def defaults_text(row: Row, code: str = "") -> str:
    """Return the default, and after it those of other presets, grouped by value.

    Args:
        row: The setting.
        code: Quotes around values and names, such as a backtick.
    """
    by_value: dict[str, list[str]] = {}
    for preset, value in row.presets.items():
        by_value.setdefault(_short(value, code), []).append(f"{code}{preset}{code}")
    first = _short(row.default, code)
    if len({as_text(value) for value in row.presets.values()}) > MANY and len(as_text(row.default)) > LONG:
        return f"{first}; every preset has its own"
    most = max(by_value, key=lambda value: len(by_value[value]), default="")
    parts = [f"{value} with {', '.join(names)}" for value, names in by_value.items() if value != most]
    if most:
        rest = len(row.presets) == len(PRESETS) - 1 and len(by_value[most]) > MANY
        parts.append(f"{most} with " + ("the other presets" if rest else ", ".join(by_value[most])))
    return "; ".join([first, *parts])


def _short(value: Any, code: str) -> str:
    text = as_text(value)
    if len(text) > LONG:
        return f"{len(value)} lists"
    return f"{code}{text}{code}" if text else "empty"


def settings_markdown() -> str:
    """Return docs/settings.md."""
    lines = [INTRODUCTION.format(preset=DEFAULT_PRESET)]
    section = ""
    for row in settings_rows():
        if (name := row.setting.rpartition(".")[0]) != section:
            section = name
            lines += [f"## `[{section}]`\n", f"{(type(getattr(Config(), section)).__doc__ or '').strip()}\n"]
        lines += [
            f"### `{row.setting}`\n",
            f"{row.meaning}\n",
            f"- Value: {row.expected}",
            f"- Default: {defaults_text(row, '`')}\n",
        ]
    return "\n".join(lines).rstrip("\n") + "\n"
