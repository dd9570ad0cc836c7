"""Names of output files that several verbs take."""

from collections.abc import Collection
from pathlib import Path

from multibox.builtin import MODELS

PLOTS = (".png", ".svg", ".pdf")
"""Endings that plots are written for."""
IMAGES = (".png", ".jpg", ".jpeg")
"""Endings that contact sheets are written for."""


def check_suffix(path: Path, known: Collection[str]) -> None:
    """Refuse a file name whose ending says a format that is not written.

    Raises:
        ConfigError: the ending is not among the known ones.
    """
    from multibox.errors import ConfigError

    if path.suffix.lower() not in known:
        raise ConfigError(f"{path}: expected a file name that ends in {', '.join(known)}")


def own_files(model: str | Path) -> list[Path]:
    """Return the files of a model: itself, or what lies directly in a run folder. Results may lie below that folder.

    Built-in models have none of the user's.
    """
    if model in MODELS:
        return []
    model = Path(model)
    return [path for path in (model.iterdir() if model.is_dir() else (model,)) if path.is_file()]
