"""From a data set and names of a preset and a recipe to a run folder."""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multibox import __version__
from multibox.analysis.anchors import box_shapes, fit_shapes
from multibox.config import Config
from multibox.data.checking import check_pictures
from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.data.formats.common import OnBad
from multibox.data.loading import AugmentedPictures, in_order, load_batches
from multibox.errors import ConfigError, DataError
from multibox.files import write_text_whole
from multibox.models.anchors import cell_shapes
from multibox.models.build import build_model
from multibox.models.ssd import SSD
from multibox.models.weights import choose_network, load_weights
from multibox.presets import resolve
from multibox.structures import Dataset
from multibox.training.capacity import choose_batch_size
from multibox.training.folder import new_folder, reopen
from multibox.training.memory import keep_freed_memory
from multibox.training.norms import unfold_norms
from multibox.training.precision import choose_device, choose_precision
from multibox.training.range_test import find_rate
from multibox.training.trainer import Trainer

DEFAULT_RECIPE = "default"
HELD_OUT = 0.1
UNFOLD_PICTURES, UNFOLD_BATCH = 64, 16


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `multibox train` was asked for, beside the data."""

    preset: str | None = None
    """None takes the one of the weights where they are a detector, and else `models.weights.default_preset`."""
    recipe: str | None = None
    """None is DEFAULT_RECIPE, and that of the run where one is resumed."""
    epochs: int | None = None
    weights: Path | None = None
    """A detector, whose network and anchors are kept where it is of the preset, or the weights of a body."""
    out: Path | None = None
    train_split: str | None = None
    val_split: str | None = None
    """None takes `val` or holds some training pictures out; "none" does without."""
    format: str | None = None
    on_bad: OnBad = "stop"
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    resume: bool = False
    device: str = "auto"


def prepare(data: Path, options: RunOptions, tell: Callable[[str], None] = lambda line: None) -> Trainer:
    """Read the data, resolve the config, fit the anchors, build the network, make or reopen the run folder.

    A mistake that is found here leaves no folder behind.

    Args:
        data: the data set.
        options: what was asked for.
        tell: gets the sentences a user should read, one by one.
    """
    if options.resume:
        folder, config = reopen(options.out)
        _refuse_other_settings(options, config)
        return _assemble(data, options, folder, config, tell)
    config = _settings(options)
    with new_folder(options.out, config.preset) as folder:
        return _assemble(data, options, folder, config, tell)


def _assemble(data: Path, options: RunOptions, folder: Path, config: Config, tell: Callable[[str], None]) -> Trainer:
    training, validation = open_splits(data, options)
    if training.crowd.all():
        raise DataError(
            f"{data}: no picture to train on (split {training.split}) has an object; there is nothing to learn"
        )
    if config.train.difficult == "drop":
        training = drop_difficult(training)
    for note in dict.fromkeys((*training.notes, *(validation.notes if validation else ()))):
        tell(note)
    if not options.resume:
        config = fit_anchors(config, training)
    device = choose_device(options.device)
    if device == "cpu":
        keep_freed_memory()
    else:
        # Steps have one shape, or few (train.scales): let cuDNN try its kernels for each and keep the fastest
        torch.backends.cudnn.benchmark = True
    precision = choose_precision(config.train, device)
    model = build_model(config, len(training.class_names), config.train.seed)
    _check_input_size(model, config)
    known = False
    if options.weights is not None:
        note, known = load_weights(model, options.weights, training.class_names)
        tell(note)
        if unfold_norms(model, _some_pictures(training, config)):
            tell("batch norms that were folded into these weights got the statistics of training pictures")
    if not options.resume:
        config = find_numbers(config, model, training, device, precision, tell)
    source = f"multibox {__version__}, recipe {config.recipe}, trained on {data} ({training.split})"
    trainer = Trainer(
        model, config, training, validation, folder,
        device=device, precision=precision, source=source, known=known, tell=tell,
    )  # fmt: skip
    if options.resume:
        trainer.resume()
    else:
        write_text_whole(folder / "config.toml", config.to_toml())
    tell(_summary(trainer, data))
    return trainer


def _settings(options: RunOptions) -> Config:
    """Return the config that was asked for."""
    changes = dict(options.changes)
    if options.epochs is not None:
        changes["train.epochs"] = options.epochs
    recipe = options.recipe or DEFAULT_RECIPE
    preset, network = choose_network(options.weights, options.preset, recipe)
    return resolve(preset, recipe, network | changes)


def open_splits(data: Path, options: RunOptions) -> tuple[Dataset, Dataset | None]:
    """Return the training split, and the validation split or a part held out of the training split."""
    splits = find_splits(data, options.format)
    train_split = options.train_split or split_for(splits, "train")

    def read(split: str | None, names: tuple[str, ...] | None = None) -> Dataset:
        dataset = open_dataset(data, split, format=options.format, class_names=names, on_bad=options.on_bad)
        return check_pictures(dataset, options.on_bad)

    training = read(train_split)
    if options.val_split == "none":
        return training, None
    val_split = options.val_split or split_for(splits, "val")
    if val_split is not None and val_split != training.split:
        return training, read(val_split, training.class_names)
    if len(training) < 2:
        raise DataError(
            f"{data}: {len(training)} picture is too few to train and validate; add more, or --val-split none"
        )
    held = held_out(training.names)
    return training.subset([i for i in range(len(training)) if i not in held]), training.subset(sorted(held))


def held_out(names: list[str]) -> set[int]:
    """Return the pictures to hold out: a tenth, chosen by a hash of the name, so that it stays the same tenth."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    return set(order[: max(1, round(len(names) * HELD_OUT))])


def drop_difficult(training: Dataset) -> Dataset:
    """Take objects marked difficult out of training; where a picture has no others, its first one stays (HiKapok)."""
    easy = ~training.difficult
    owner = np.repeat(np.arange(len(training)), np.diff(training.starts))
    hopeless = np.bincount(owner, weights=easy, minlength=len(training)) == 0
    kept = easy.copy()
    kept[training.starts[:-1][hopeless & (np.diff(training.starts) > 0)]] = True
    # A crowd is what training looks away from
    return dataclasses.replace(training, crowd=training.crowd | ~kept)


def fit_anchors(config: Config, training: Dataset) -> Config:
    """Replace the preset's anchor shapes by ones fitted to the training boxes, where the recipe asks for it."""
    if config.anchors.fit == "none":
        return config
    base = cell_shapes(config.anchors, config.model.input_size)
    shapes = fit_shapes(box_shapes(training), base, config.anchors.fit)
    fitted = {"style": "shapes", "shapes": shapes, "sizes": (), "ratios": (), "fit": "none"}
    return config.updated({f"anchors.{name}": value for name, value in fitted.items()})


def _check_input_size(model: SSD, config: Config) -> None:
    """Refuse an input that the network or memory does not hold, and single pictures where batch norms need more."""
    height, width = config.model.input_size
    picture = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            model.eval()(picture)
            if config.train.batch_size == 1:
                copy.deepcopy(model).train()(picture)
    except ValueError:
        raise ConfigError(
            "train.batch_size=1: a batch norm over a map of one cell has nothing to go by; give 2 or more"
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"model.input_size={[height, width]} does not fit {config.model.backbone} ({error}); give another one, "
            "such as [256, 256]"
        ) from None
    model.train()


def find_numbers(
    config: Config, model: SSD, training: Dataset, device: str, precision: str, tell: Callable[[str], None]
) -> Config:
    """Replace a batch size and a learning rate of `auto` by numbers, and tell them; the network stays as it is."""
    if config.train.batch_size == "auto":
        size, why = choose_batch_size(model, config, training, device=device, precision=precision)
        tell(f"batch size {size}: {why}")
        config = config.updated({"train.batch_size": size})
    if config.train.lr == "auto":
        rate = find_rate(model, config, training, device=device, precision=precision)
        tell(f"learning rate {rate:g}: in the range test nine tenths of the loss's fall were done there")
        config = config.updated({"train.lr": rate})
    return config


def _some_pictures(training: Dataset, config: Config) -> Iterator[Tensor]:
    pictures = AugmentedPictures(training, config.model.input_size, ())
    batches = in_order(min(len(training), UNFOLD_PICTURES), UNFOLD_BATCH)
    return (batch.images for batch in load_batches(pictures, batches, 0, pin=False))


def _refuse_other_settings(options: RunOptions, config: Config) -> None:
    """Refuse what would change a resumed run; what it has anyway may be said again."""
    if options.weights is not None:
        raise ConfigError("--resume goes on with the run's own weights; leave --weights away, or give another --out")
    asked: dict[str, tuple[str, Any]] = {
        "--preset": ("preset", options.preset),
        "--recipe": ("recipe", options.recipe),
        "--epochs": ("train.epochs", options.epochs),
        **{f"--set {key}": (key, value) for key, value in options.changes.items()},
    }
    for option, (key, value) in asked.items():
        # What was to be found out, the run has found
        found = key == "anchors.fit" or (key in ("train.lr", "train.batch_size") and value == "auto")
        if value is not None and not found and config.updated({key: value}) != config:
            has = functools.reduce(getattr, key.split("."), config)
            has = has if isinstance(has, str) else json.dumps(has)
            raise ConfigError(
                f"{options.out} was started with {key}={has}, got {value}; --resume goes on with the run's own "
                f"settings, so leave {option} away, or start another run without --resume"
            )


def _summary(trainer: Trainer, data: Path) -> str:
    training, validation = trainer.training, trainer.validation
    held = f"{len(validation.dataset)} for validation ({validation.dataset.split})" if validation else "no validation"
    parameters = sum(p.numel() for p in trainer.stepper.model.parameters())
    return (
        f"{data}: {len(training)} pictures ({training.split}), {held}, classes {', '.join(training.class_names)}\n"
        f"{trainer.config.preset}, recipe {trainer.config.recipe}: {parameters:,} parameters, "
        f"{trainer.batches.epochs} epochs of {trainer.batches.steps_per_epoch} steps, "
        f"{trainer.stepper.precision} on {trainer.device}, folder {trainer.folder}"
    )
