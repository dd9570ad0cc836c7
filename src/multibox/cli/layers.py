"""The resolved settings of a run, each with the layer that set it (`multibox train --dry-run`)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multibox.config import Config


def print_layers(config: "Config", origins: Mapping[str, str]) -> None:
    """Print every setting, its value and the layer that it came from.

    Args:
        config: what `resolve_layers` returned.
        origins: the same: by dotted key the name of the layer.
    """
    from rich.markup import escape
    from rich.table import Table

    from multibox.cli.tables import table_console
    from multibox.settings import as_text, get_setting, list_settings

    table = Table("setting", "value", "from", box=None, pad_edge=False)
    section = None
    for key in list_settings(type(config)):
        if key.partition(".")[0] != section and "." in key:
            section = key.partition(".")[0]
            table.add_section()
        table.add_row(key, escape(as_text(get_setting(config, key))), origins.get(key, "default"))
    table_console().print(table, highlight=False)
