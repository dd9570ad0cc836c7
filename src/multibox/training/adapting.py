"""Settings that follow the data: input size, anchors, batch size, learning rate."""

import copy
import math

import numpy as np
from numpy.typing import NDArray

from multibox.analysis.advice import enlarged_size, median_side
from multibox.analysis.anchor_fit import box_shapes, fitted_as_asked
from multibox.config import Config
from multibox.data.decoded import DecodedImages
from multibox.errors import ConfigError
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.training.capacity import choose_batch_size
from multibox.training.norms import train_mode
from multibox.training.optimizer import set_learning_rate
from multibox.training.precision import same_random_state
from multibox.training.reporter import Reporter
from multibox.training.splits import load_training, order_images
from multibox.training.step import Stepper
from multibox.training.validation import Validation

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 60
"""Learning rates of the range test, and its steps."""
WINDOW = 7
"""Losses that are averaged: they differ from batch to batch."""
WORSE = 1.5
"""The test ends where the averaged loss is this many times the lowest one."""
ENOUGH = 0.9
"""The chosen learning rate is the first with this share of the whole fall."""
KNOWN, TRIED = 0.4, 100
"""The mAP@0.5 of the starting weights from which `train.known_lr` is taken, and the images that it is measured on."""
BATCH = 16
"""Images per batch while the starting weights are scored."""


def enlarge_input(config: Config, training: Dataset, reporter: Reporter) -> Config:
    """Enlarge the input where most objects would be small at it, up to `train.largest_input`, and tell it."""
    if config.train.largest_input == "none":
        return config
    height, width = config.model.input_size
    side = median_side(training, config.model.input_size)
    larger = enlarged_size(config, side)
    if larger == (height, width):
        return config
    reporter.note(
        f"half of the objects are smaller than {side:.0f} pixels at an input of {height}x{width}, so it is enlarged to "
        f"{larger[0]}x{larger[1]}; --set model.input_size=[{height},{width}] keeps it, for "
        f"{larger[0] * larger[1] / (height * width):.1f} times as many steps in the same time"
    )
    return config.updated({"model.input_size": larger})


def fit_anchors(config: Config, training: Dataset) -> Config:
    """Replace the preset's anchor shapes by ones fitted to the training boxes, where the recipe asks for it."""
    return config if config.anchors.fit == "none" else fitted_as_asked(config, box_shapes(training))


def spare_knowledge(model: SSD, config: Config, data: Dataset, device: str, reporter: Reporter) -> Config:
    """Take `train.known_lr` where the starting weights detect most objects of up to 100 images, and tell it."""
    if config.train.known_lr == "none":
        return config
    some = data.subset(range(0, len(data), -(-len(data) // TRIED)))
    score = Validation(some, config.updated({"train.batch_size": BATCH}), device).score(model)["val_map50"]
    model.train()
    if score is None or score < KNOWN:
        return config
    reporter.note(
        f"the weights know every class and find them already (mAP@0.5 {score:.2f} on {len(some)} images), so they "
        f"learn at a low rate, {config.train.known_lr:g}; --set train.lr={config.train.lr} keeps the usual one"
    )
    return config.updated({"train.lr": config.train.known_lr})


def find_numbers(
    config: Config,
    model: SSD,
    training: Dataset,
    device: str,
    precision: str,
    reporter: Reporter,
    decoded: DecodedImages | None = None,
) -> Config:
    """Replace a batch size and a learning rate of `auto` by numbers, and tell them; the network stays as it is.

    Raises:
        ConfigError: the loss falls at no learning rate.
    """
    if config.train.batch_size == "auto":
        size, why = choose_batch_size(model, config, training, device=device, precision=precision)
        reporter.note(f"batch size {size}: {why}")
        config = config.updated({"train.batch_size": size})
    if config.train.lr == "auto":
        rates = sweep_rates(model, config, training, device=device, precision=precision, decoded=decoded)
        rate = choose_rate(*rates)
        reporter.note(f"learning rate {rate:g}: in the range test nine tenths of the loss's fall were done there")
        config = config.updated({"train.lr": rate})
    return config


def sweep_rates(
    model: SSD,
    config: Config,
    training: Dataset,
    *,
    device: str,
    precision: str,
    decoded: DecodedImages | None = None,
) -> tuple[list[float], list[float]]:
    """Train a copy of the network on the run's own first batches, each at a higher rate; return rates and losses.

    The sweep ends after `STEPS` or where the loss gets worse. The global random state is as before afterwards.
    """
    rates = [LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)) for step in range(STEPS)]
    losses: list[float] = []
    with same_random_state(device):
        alone = config.updated({"train.ema": "none"})
        stepper = Stepper(copy.deepcopy(model), alone, device=device, precision=precision)
        train_mode(stepper.model)
        batches = order_images(training, config)
        batches.steps = STEPS
        loaded = load_training(training, config, batches, device, Reporter(lambda line: None), decoded)
        for rate, batch in zip(rates, loaded, strict=False):
            set_learning_rate(stepper.optimizer, rate)
            loss = stepper.step(batch.to(device)).total.item()
            if not math.isfinite(loss):
                break
            losses.append(loss)
            if gets_worse(losses):
                break
    return rates[: len(losses)], losses


def gets_worse(losses: list[float]) -> bool:
    """Return whether the last losses are well above the lowest ones: this rate is too high, and all that follow."""
    if len(losses) < 2 * WINDOW:
        return False
    means = np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")
    return bool(means[-1] > WORSE * means.min())


def choose_rate(rates: list[float], losses: list[float]) -> float:
    """Return the lowest rate at which nine tenths of the loss's fall are done, to two digits.

    It lies on the slope, where the noise of single batches moves it little. The lowest point (a tenth of whose rate is
    an old rule of fastai) lies somewhere on a flat floor, and the steepest one (Lightning's) anywhere on an even slope.

    Raises:
        ConfigError: the loss falls at no rate.
    """
    means = _centred_means(np.array(losses)) if len(losses) >= WINDOW else np.ones(1)
    fall = means[0] - means.min()
    if fall < 0.05 * means[0]:
        raise ConfigError(
            f"train.lr=auto: the loss fell at no learning rate from {LOWEST:g} up (tried: {len(losses)}); "
            "leave train.lr to the preset, or set a number"
        )
    rate = rates[int(np.argmax(means <= means[0] - ENOUGH * fall))]
    return float(f"{rate:.2g}")


def _centred_means(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each loss and its neighbours, of those that there are."""
    ones = np.ones(WINDOW)
    return np.convolve(losses, ones, "same") / np.convolve(np.ones(len(losses)), ones, "same")
