"""docs/settings.md is the schema. `multibox list settings --markdown > docs/settings.md` writes it anew."""

import re
from pathlib import Path

from multibox.cli.settings_page import settings_json, settings_markdown, settings_rows
from multibox.config import Config
from multibox.models.weights import DEFAULT_PRESET
from multibox.presets import PRESETS, resolve
from multibox.settings import get_setting, list_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_the_schema():
    assert PAGE.read_text(encoding="utf-8") == settings_markdown(), (
        "write it anew: multibox list settings --markdown > docs/settings.md"
    )


def test_no_setting_is_missing():
    named = re.findall(r"^### `([\w.]+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert named == list(list_settings(Config))
    # The schema itself, read in another way
    fields = [
        f"{section}.{name}" for section in Config().__struct_fields__ if section not in ("preset", "recipe")
        for name in getattr(Config(), section).__struct_fields__
    ]  # fmt: skip
    assert named == ["preset", "recipe", *fields]


def test_rows_hold_the_default_of_every_preset():
    rows = {row.setting: row for row in settings_rows()}
    for key, row in rows.items():
        for preset in PRESETS:
            wanted = get_setting(resolve(preset), key)
            assert row.presets.get(preset, row.default) == wanted or key == "preset"
    assert rows["train.lr"].presets["ssd300-vgg16"] == 3e-4
    assert rows["preset"].default == DEFAULT_PRESET
    assert [one["setting"] for one in settings_json()] == list(rows)
