"""All settings of one run: the sections together, TOML in and out, changes by dotted key.

Precedence: preset < recipe < the recipe's tuning for the preset < `--config FILE` < `--set` (`multibox.presets`).
Values are plain (numbers, texts, booleans, tuples), so a config is its own text form.
"""

import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Self

import msgspec
from msgspec import Struct

from multibox.errors import ConfigError
from multibox.sections import SIGMOID_LOSSES as SIGMOID_LOSSES
from multibox.sections import (
    AnchorConfig,
    DataConfig,
    LossConfig,
    MatchingConfig,
    ModelConfig,
    Name,
    PostConfig,
    means,
)
from multibox.sections import ShapesPerLevel as ShapesPerLevel
from multibox.sections import SizesPerLevel as SizesPerLevel
from multibox.sections import Variances as Variances
from multibox.settings import change_settings, flatten
from multibox.train_section import TrainConfig

LENGTHS = ("train.epochs", "train.steps", "train.minutes")
"""Exactly one of them is a number."""
RUN_ONLY = ("data",)
"""Sections that describe a run and never its model."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one run. The defaults are TinySSD and a plain training, without any recipe."""

    preset: Annotated[
        Name, means("Network with its anchors. `--preset` sets it.", expected="a name of `multibox list presets`")
    ] = "tinyssd"
    recipe: Annotated[
        Name, means("How to train it. `--recipe` sets it.", expected="a name of `multibox list recipes`")
    ] = "default"
    model: ModelConfig = ModelConfig()
    anchors: AnchorConfig = AnchorConfig()
    matching: MatchingConfig = MatchingConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    post: PostConfig = PostConfig()
    data: DataConfig = DataConfig()

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with dotted keys replaced: `{"train.lr": 0.1}`. Strings are parsed to the setting's type.

        A change of one of `train.epochs`, `train.steps` and `train.minutes` sets the other two to none.

        Raises:
            ConfigError: An unknown key, a value out of range, or settings that contradict each other.
        """
        config = change_settings(self, with_one_length(changes))
        check_settings(config)
        return config

    def to_toml(self, *, with_data: bool = False) -> str:
        """Return every setting as TOML, sections in order; `[data]` only if `with_data` is set."""
        lines = [f"preset = {json.dumps(self.preset)}", f"recipe = {json.dumps(self.recipe)}"]
        for name in self.__struct_fields__:
            section = getattr(self, name)
            if isinstance(section, Struct) and (with_data or name not in RUN_ONLY):
                lines += ["", f"[{name}]"]
                # Numbers, strings, booleans and nested lists are written alike in JSON and TOML
                lines += [f"{key} = {json.dumps(value)}" for key, value in msgspec.structs.asdict(section).items()]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON, without `[data]`."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name not in RUN_ONLY}
        return {k: msgspec.structs.asdict(v) if isinstance(v, Struct) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Self:
        """Build from nested plain values, all or some of them.

        Raises:
            ConfigError: An unknown key, or a value of another type or out of range.
        """
        try:
            config = change_settings(cls(), with_one_length(flatten(values)), parse=False)
            check_settings(config)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return config

    @classmethod
    def from_toml(cls, text: str, where: str = "config") -> Self:
        """Read what `to_toml` wrote, in this or an older version, or a part of it."""
        return cls.from_dict(read_toml(text, where), where)


def with_one_length(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return one layer of settings in which setting one length of the run sets the others to none.

    Raises:
        ConfigError: Two lengths at once.
    """
    given = [key for key in LENGTHS if changes.get(key, "none") != "none"]
    if len(given) > 1:
        values = " and ".join(f"{key}={changes[key]}" for key in given)
        raise ConfigError(f"{values} are two lengths of one run; give one of {', '.join(LENGTHS)}")
    return {**changes, **{key: "none" for key in LENGTHS if key not in given}} if given else changes


def check_settings(config: Config) -> None:
    """Refuse settings that contradict each other, though each alone is in range.

    Raises:
        ConfigError: Two settings that contradict each other.
    """
    loss, train, matching = config.loss, config.train, config.matching
    if all(value == "none" for value in (train.epochs, train.steps, train.minutes)):
        raise ConfigError(f"{', '.join(LENGTHS)} are all none; give one, such as train.epochs=20")
    if loss.classification_weight == loss.localization_weight == 0:
        raise ConfigError("loss.classification_weight=0 and loss.localization_weight=0: expected one of them above 0")
    if matching.matcher == "dual_max" and matching.low > matching.threshold:
        raise ConfigError(f"matching.low={matching.low:g}: expected at most matching.threshold={matching.threshold:g}")
    if train.backbone_lr == train.head_lr == 0:
        raise ConfigError(
            "train.backbone_lr=0 and train.head_lr=0 leave nothing to learn: expected one of them above 0"
        )
    if train.batch_size != "auto" and train.accumulate > train.batch_size:
        raise ConfigError(
            f"train.accumulate={train.accumulate}: expected at most train.batch_size={train.batch_size}, as a part has "
            "an image or more"
        )
    if train.schedule == "steps" and train.lr != "auto" and train.minimum_lr > train.lr:
        raise ConfigError(f"train.minimum_lr={train.minimum_lr:g}: expected at most train.lr={train.lr:g}")
    if train.scales[0] > train.scales[1]:
        raise ConfigError(
            f"train.scales={list(train.scales)}: expected the smallest and the largest scale, such as [0.75, 1.25]"
        )
    if any(low >= high for low, high in zip(train.boundaries, train.boundaries[1:], strict=False)):
        raise ConfigError(
            f"train.boundaries={list(train.boundaries)}: expected ascending shares of the run, such as [0.67, 0.83]"
        )
    if train.schedule == "steps" and len(train.factors) != len(train.boundaries) + 1:
        raise ConfigError(
            f"train.factors={list(train.factors)}: expected one more than train.boundaries={list(train.boundaries)}, "
            "for train.schedule=steps; set both, such as train.boundaries=[0.67,0.83] and train.factors=[1,0.1,0.01]"
        )
    if train.schedule == "steps" and not any(train.factors):
        raise ConfigError(f"train.factors={list(train.factors)}: expected a factor above 0")


ZERO_WORDS: dict[str, dict[str, str]] = {
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
"""By section and setting, the word that replaces 0 and below of formats 1 and 2."""
MOST_WORKERS = 64


def read_toml(text: str, where: str = "config") -> dict[str, Any]:
    """Return the nested values in a TOML text; those of an older multibox in today's words.

    Raises:
        ConfigError: The text is no TOML, or it is old and its schedule cannot be migrated.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML ({error})") from None
    train: Any = values.get("train", {})
    # Today at most one of the two lengths is a number
    if isinstance(train, dict) and all(isinstance(train.get(key), int) for key in ("epochs", "steps")):  # pyright: ignore[reportUnknownMemberType]
        migrate_settings(values, where)
    return values


def migrate_settings(values: dict[str, Any], where: str = "", *, resume: bool = True) -> None:
    """Turn nested settings of formats 1 and 2 into today's, in place.

    Args:
        values: All settings of an old config.
        where: Their file, for messages.
        resume: Whether the schedule matters. The steps at which the learning rate falls cannot become shares of a run
            whose length is given in epochs; a checkpoint, which is not resumed, keeps their proportions.

    Raises:
        ConfigError: Such a schedule, if `resume` is set.
    """
    for section, words in ZERO_WORDS.items():
        settings = values.get(section, {})
        for name, word in words.items():
            if name in settings and not isinstance(settings[name], str) and settings[name] <= 0:
                settings[name] = word
    loss, train = values.get("loss", {}), values.get("train", {})
    if loss.get("negative_overlap", 0) > 1:
        loss["negative_overlap"] = "any"
    if "workers" in train:
        train["workers"] = "auto" if train["workers"] < 0 else min(train["workers"], MOST_WORKERS)
    _migrate_boundaries(train, where, resume)
    train["steps" if train.get("epochs", 0) > 0 else "epochs"] = "none"


def _migrate_boundaries(train: dict[str, Any], where: str, resume: bool) -> None:
    """Turn boundaries in steps into shares of the run; those that the run does not reach go."""
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
