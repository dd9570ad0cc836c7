"""Presets (networks with their anchors) and recipes (how to train them), as data over the config's defaults.

Precedence: preset < recipe < the recipe's tuning for the preset < `--config FILE` < `--set`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from multibox.config import SIGMOID_LOSSES, Config, check_settings, with_one_length
from multibox.errors import ConfigError, did_you_mean
from multibox.presets.networks import PRESETS
from multibox.presets.recipes import RECIPES
from multibox.settings import change_settings, list_settings

__all__ = ["PRESETS", "RECIPES", "SET", "fitting", "resolve", "resolve_layers"]

SET = "--set"
"""Name of the layer of single settings, the highest one."""


def fitting(recipe: str) -> list[str]:
    """Return the presets that a recipe was made for."""
    return [name for name in PRESETS if not RECIPES[recipe].fits or name in RECIPES[recipe].fits]


def resolve(preset: str, recipe: str = "default", changes: Mapping[str, Any] | None = None) -> Config:
    """Return the config of a preset trained by a recipe, with `changes` (dotted keys) on top.

    Raises:
        ConfigError: an unknown preset, recipe or key, a value out of its range, or a recipe that does not fit the
            preset.
    """
    return resolve_layers(preset, recipe, [(SET, changes or {})])[0]


def resolve_layers(
    preset: str, recipe: str = "default", layers: Iterable[tuple[str, Mapping[str, Any]]] = ()
) -> tuple[Config, dict[str, str]]:
    """Return the config of a preset trained by a recipe under further layers, and the layer that set each setting.

    Args:
        preset: the lowest layer, called "preset NAME".
        recipe: the next one, called "recipe NAME"; its tuning for the preset follows as "tuning of NAME".
        layers: further ones as (name, settings by dotted key), the last one wins: such as those of a file and `SET`,
            whose values may be texts to parse.

    Returns:
        The config, and by dotted key the name of the last layer that set it; "default" where none did.

    Raises:
        ConfigError: as `resolve`; the message names the layer, unless it is `SET`.
    """
    _check("preset", preset, PRESETS)
    _check("recipe", recipe, RECIPES)
    if preset not in fitting(recipe):
        raise ConfigError(f"recipe {recipe!r} was made for {', '.join(fitting(recipe))}, not for preset {preset!r}")
    names = {"preset": preset, "recipe": recipe}
    chosen = RECIPES[recipe]
    stack: list[tuple[str, Mapping[str, Any]]] = [
        (f"preset {preset}", PRESETS[preset].settings),
        (f"recipe {recipe}", chosen.settings),
        (f"tuning of {preset}", chosen.tuning.get(preset, {})),
        *layers,
    ]
    config = change_settings(Config(), names)
    origins: dict[str, str] = {key: "--" + key if key in names else "default" for key in list_settings(Config)}
    for layer, values in stack:
        if given := next((key for key, name in names.items() if values.get(key, name) != name), None):
            raise ConfigError(f"{layer}: {given}={values[given]} comes too late; give --{given} {values[given]}")
        try:
            changes = with_one_length(values)
            # Only the command line has no types
            config = change_settings(config, changes, parse=layer == SET)
        except ConfigError as error:
            raise error if layer == SET else ConfigError(f"{layer}: {error}") from None
        origins |= {key: layer for key in changes}
    check_settings(config)
    needed = "sigmoid" if config.loss.classification in SIGMOID_LOSSES else "softmax"
    if config.model.score != needed:
        raise ConfigError(
            f"loss.classification={config.loss.classification} needs model.score={needed}, got {config.model.score}; "
            f"add --set model.score={needed}, or choose another loss"
        )
    return config, origins


def _check(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
