"""Parameter groups, the optimiser and the learning rate as a function of the step."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multibox.config import TrainConfig
from multibox.errors import ConfigError
from multibox.models.ssd import SSD


class Average:
    """The average of a network's weights and batch-norm statistics, as a network of its own.

    torch's AveragedModel reads its counter back from the device several times per step; this one counts on the host.
    """

    def __init__(self, model: SSD, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module, held: Tensor | None = None) -> None:
        """Move the average towards `model`; at first quickly, so that the random start is soon forgotten.

        Args:
            model: The network.
            held: 1 on the device where nothing is to change, else 0; None always changes.
        """
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        averaged, current = self.module.state_dict(), model.state_dict()
        floating = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        move_towards([averaged[name] for name in floating], [current[name] for name in floating], 1 - keep, held)
        for name in averaged.keys() - floating:
            averaged[name].copy_(current[name])


def move_towards(old: list[Tensor], new: list[Tensor], share: float, held: Tensor | None) -> None:
    """Move tensors by a share of the way to others, by few kernels; by nothing where `held` is 1."""
    if held is None:
        _foreach("lerp_", old, new, share)
        return
    way = _foreach("sub", new, old)
    _foreach("mul_", way, (1 - held) * share)
    _foreach("add_", old, way)


def _foreach(name: str, *arguments: Any) -> list[Tensor]:
    """Compute on many tensors by few kernels; torch calls these functions private, its optimisers rest on them."""
    return getattr(torch, f"_foreach_{name}")(*arguments)


def make_average(model: SSD, decay: float | Literal["none"]) -> Average | None:
    """Return the average of `model`, or None when `decay` is "none"."""
    return None if decay == "none" else Average(model, decay)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Group the learning parameters by how fast they learn and what decays, and make the optimiser.

    Raises:
        ConfigError: every parameter is frozen.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alike.setdefault((_scale(name, config), _decay(model, name, parameter, config)), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "scale": scale} for (scale, decay), parameters in alike.items()
    ]
    if not groups:
        raise ConfigError(
            f"train.freeze={','.join(config.freeze)} leaves nothing to learn; freeze a part, such as backbone.*, "
            "or for a part of the run by train.freeze_until"
        )
    if config.optimizer == "adamw":
        # One pass over all weights: 2.4 instead of 12.7 ms per step of TinySSD (one core), and one launch on a GPU
        return torch.optim.AdamW(groups, lr=known_rate(config), fused=True)
    return torch.optim.SGD(groups, lr=known_rate(config), momentum=config.momentum, fused=True)


def _scale(name: str, config: TrainConfig) -> float:
    part = config.backbone_lr if name.startswith("backbone.") else config.head_lr
    return part * (config.bias_lr if name.endswith(".bias") else 1.0)


def _decay(model: nn.Module, name: str, parameter: nn.Parameter, config: TrainConfig) -> float:
    """Return the weight decay of a parameter, by the kind of layer that it belongs to."""
    if parameter.dim() > 1:
        return config.weight_decay
    convolution = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv2d)
    return (config.bias_decay if convolution else config.norm_decay) * config.weight_decay


def decay_penalty(optimizer: torch.optim.Optimizer) -> float:
    """Return the penalty whose gradient is SGD's weight decay: half of decay * sum of squares."""
    terms = [
        parameter.detach().float().square().sum() * (group["weight_decay"] * 0.5)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    ]
    return torch.stack(terms).sum().item() if terms else 0.0


def learning_rate(step: float, steps: float, config: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0) in a run of `steps`: linear warm-up, then what the schedule says.

    A timed run, whose number of steps is an estimate, gives its position on the schedule as a fraction of steps.
    """
    peak = known_rate(config)
    warm = round(config.warmup * steps)
    warm = warm if config.warmup_steps == "none" else min(warm, config.warmup_steps)
    if step < warm:
        return peak * (step + 1) / warm
    if config.schedule == "constant":
        return peak
    if config.schedule == "steps":
        passed = sum(step >= round(share * steps) for share in config.boundaries)
        return max(peak * config.factors[passed], config.minimum_lr)
    progress = (step - warm) / max(1, steps - warm)
    return peak * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def known_batch_size(config: TrainConfig) -> int:
    """Return the images per step, once a run has replaced `auto` by a number.

    Raises:
        ConfigError: it is still auto.
    """
    if config.batch_size == "auto":
        raise ConfigError("train.batch_size=auto: expected the number that a run found, such as 16")
    return config.batch_size


def known_rate(config: TrainConfig) -> float:
    """Return the peak learning rate; 0 while it is `auto`, as in the range test, which sets its own."""
    return 0.0 if config.lr == "auto" else config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
