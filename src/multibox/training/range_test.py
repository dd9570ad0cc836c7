"""A learning-rate range test (Smith 2017): let the rate grow from tiny to large and see where the loss has fallen."""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.models.ssd import SSD
from multibox.structures import Dataset
from multibox.training.norms import train_mode
from multibox.training.optimizer import set_learning_rate
from multibox.training.step import Stepper
from multibox.training.trainer import load_training, order_images

LOWEST, HIGHEST, STEPS = 1e-5, 10.0, 60
WINDOW = 7
"""Losses that are averaged: they differ from batch to batch."""
WORSE = 1.5
"""The test ends where the averaged loss is this many times the lowest one."""
ENOUGH = 0.9
"""The chosen rate is the first with this share of the whole fall."""


def find_rate(model: SSD, config: Config, training: Dataset, *, device: str, precision: str) -> float:
    """Return a learning rate for this network, optimiser and data; nothing of what is given changes.

    Raises:
        ConfigError: the loss falls at no rate.
    """
    return choose_rate(*sweep_rates(model, config, training, device=device, precision=precision))


def sweep_rates(
    model: SSD, config: Config, training: Dataset, *, device: str, precision: str
) -> tuple[list[float], list[float]]:
    """Train a copy of the network on the run's own first batches, each at a higher rate; return rates and losses.

    The global random state is as before afterwards. The sweep ends at `STEPS` or where the loss gets worse.
    """
    rates = [LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)) for step in range(STEPS)]
    losses: list[float] = []
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        alone = config.updated({"train.ema": "none"})
        stepper = Stepper(copy.deepcopy(model), alone, device=device, precision=precision)
        train_mode(stepper.model)
        batches = order_images(training, config)
        batches.steps = STEPS
        for rate, batch in zip(rates, load_training(training, config, batches, device), strict=False):
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

    It lies on the slope, where the noise of single batches moves it little: the lowest point itself (a tenth of whose
    rate is an old rule of fastai) lies somewhere on a flat floor, and the steepest one (Lightning's) anywhere on a long
    even slope.

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
