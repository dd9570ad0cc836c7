"""Settings of multibox before they had words and shares (checkpoints up to format 2, the config.toml of such runs)."""

from collections.abc import Mapping
from typing import Any

from multibox.errors import ConfigError

NOTHING: dict[str, dict[str, str]] = {
    "model": {"prior": "none"},
    "anchors": {"design_size": "none", "fit": "none"},
    "loss": {"negative_ratio": "all", "hard_examples": "none"},
    "train": {
        "batch_size": "auto",
        "lr": "auto",
        "warmup_steps": "none",
        "clip_norm": "none",
        "ema": "none",
        "validate_every": "auto",
        "patience": "none",
    },
    "post": {"max_per_class": "none"},
}
"""By section and setting the word in place of 0 (and of what was below and meant the same)."""

MOST_WORKERS = 64


def is_old(values: Mapping[str, Any]) -> bool:
    """Return whether nested settings were written before the words: then both lengths of the run are numbers."""
    train: Any = values.get("train")
    lengths = (train.get("epochs"), train.get("steps")) if isinstance(train, Mapping) else ()
    return bool(lengths) and all(isinstance(length, int) for length in lengths)


def migrate_settings(values: dict[str, Any], where: str = "", *, resume: bool = True) -> None:
    """Turn nested old settings into today's, in place.

    Args:
        values: all settings of an old config.
        where: of what, for messages.
        resume: whether the run's learning rates matter. Steps at which they fall cannot become shares of a run given in
            epochs alone; a checkpoint keeps their proportions.

    Raises:
        ConfigError: such a schedule, of a run that is to go on.
    """
    for section, words in NOTHING.items():
        held = values.get(section, {})
        for name, word in words.items():
            if name in held and not isinstance(held[name], str) and held[name] <= 0:
                held[name] = word
    loss, train = values.get("loss", {}), values.get("train", {})
    if loss.get("negative_overlap", 0) > 1:
        loss["negative_overlap"] = "any"
    if "workers" in train:
        train["workers"] = "auto" if train["workers"] < 0 else min(train["workers"], MOST_WORKERS)
    _migrate_boundaries(train, where, resume)
    if train.get("epochs", 0) > 0:
        train["steps"] = "none"
    else:
        train["epochs"] = "none"


def _migrate_boundaries(train: dict[str, Any], where: str, resume: bool) -> None:
    """Turn boundaries in steps of a run of `steps` into shares; those that no step reaches go."""
    boundaries, factors = list(train.get("boundaries", ())), list(train.get("factors", ()))
    if train.get("schedule") != "steps" or not boundaries:
        train["boundaries"] = []
        return
    steps = train.get("steps", 0)
    if steps <= 0:
        if resume:
            raise ConfigError(
                f"{where}: train.boundaries={boundaries} are steps of a run given in epochs, whose shares are not "
                'known; write them as shares, such as [0.67, 0.83], and train.steps as "none"'
            )
        steps = boundaries[-1] + 1
    while boundaries and boundaries[-1] >= steps:
        boundaries.pop()
        factors.pop()
    while boundaries and boundaries[0] <= 0:
        boundaries.pop(0)
        factors.pop(0)
    train["boundaries"], train["factors"] = [boundary / steps for boundary in boundaries], factors
