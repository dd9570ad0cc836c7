"""Parts of a network that training must treat with care: frozen ones, and batch norms folded by another framework."""

import copy
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, distributed, nn

from multibox.errors import ConfigError, did_you_mean
from multibox.ops.boxes import at_least_float32, widest


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Stop the parameters whose names fit a pattern from learning and return their names.

    Raises:
        ConfigError: a pattern that fits no parameter.
    """
    parameters = dict(model.named_parameters())
    frozen: list[str] = []
    for pattern in patterns:
        fitting = [name for name in parameters if fnmatchcase(name, pattern)]
        if not fitting:
            hint = did_you_mean(pattern, parameters)
            raise ConfigError(
                f"train.freeze: {pattern!r} fits no parameter{hint}; names look like {next(iter(parameters))}"
            )
        for name in fitting:
            parameters[name].requires_grad_(False)
        frozen += fitting
    return frozen


def thaw(model: nn.Module, names: Iterable[str]) -> None:
    """Let the parameters of these names learn again."""
    for name in names:
        model.get_parameter(name).requires_grad_(True)


class CommonNorm(nn.BatchNorm2d):
    """Batch norm by the mean and variance of all processes' images together, on CPUs: torch has it for GPUs alone.

    Images, and what comes out: [images, channels, height, width] in the type of the images. Computes in float32 at
    least.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training mode all processes must do it at the same time."""
        if not self.training:
            return super().forward(input)
        images, over = at_least_float32(input), (0, 2, 3)
        cells = images.new_tensor([images.numel() / images.shape[1]])
        sums = _sum_of_all(torch.cat([images.sum(over), cells]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        # Not the mean of squares less the square of the mean, which loses digits
        centred = images - mean[:, None, None]
        variance = _sum_of_all(centred.square().sum(over)) / count
        self._remember(mean, variance * (count / (count - 1)))
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.momentum is not None
        for kept, new in zip(_statistics(self), (mean, variance), strict=True):
            kept.lerp_(new.to(kept.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _SumOfAll(torch.autograd.Function):
    """The sum over the processes; the gradient is summed likewise."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


def _sum_of_all(own: Tensor) -> Tensor:
    apply: Any = _SumOfAll.apply  # without types
    return apply(own)


def with_common_norms(model: nn.Module) -> Any:
    """Return the network with batch norms over the batches of all processes; its weights and statistics are the same.

    On GPUs they are torch's.
    """
    same = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    common = copy.deepcopy(model, same)
    if next(model.parameters()).is_cuda:
        torch_norm: Any = nn.SyncBatchNorm  # its method has no types
        return torch_norm.convert_sync_batchnorm(common)
    for parent in list(common.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, _common(norm))
    return common


def _common(norm: nn.BatchNorm2d) -> CommonNorm:
    common = CommonNorm(norm.num_features, norm.eps, norm.momentum)
    common.weight, common.bias = norm.weight, norm.bias
    common.running_mean, common.running_var = norm.running_mean, norm.running_var
    common.num_batches_tracked = norm.num_batches_tracked
    return common.train(norm.training)


def train_mode(model: nn.Module) -> None:
    """Set training mode, except for frozen batch norms: they keep the statistics they have."""
    model.train()
    for norm in _norms(model):
        if not norm.weight.requires_grad:
            norm.eval()


def without_norms(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the learning parameters with their names, except those of batch norms."""
    norms = {id(parameter) for norm in _norms(model) for parameter in norm.parameters()}
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in norms)


def norms_without_statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norms that only add a bias: an exporter of another project merged the rest into the convolution.

    A fresh batch norm looks the same except for its bias.
    """
    return [
        norm
        for norm in _norms(model)
        if norm.bias.any() and not _statistics(norm)[0].any() and bool((norm.weight - 1).abs().max() < 1e-6)
    ]


@torch.no_grad()
def measure_norms(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Measure the statistics of such batch norms on real images, without changing what the network computes.

    Their stored mean of 0 and variance of 1 are not true. The first step in training mode normalises by the batch and
    would destroy the weights. Returns how many were measured.

    Args:
        model: the network, in any mode; it is in evaluation mode afterwards.
        batches: images as the network takes them, a few dozen in all.
    """
    norms = norms_without_statistics(model)
    if not norms:
        return 0
    device = next(model.parameters()).device
    sums = {norm: torch.zeros(3, norm.num_features, dtype=widest(device), device=device) for norm in norms}
    handles = [norm.register_forward_pre_hook(_collector(sums[norm])) for norm in norms]
    model.eval()
    for images in batches:
        model(images)
    for handle in handles:
        handle.remove()
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        running_mean, running_var = _statistics(norm)
        # In evaluation mode: (x - mean) / sd * sd + (mean + bias) is x + bias, as before
        norm.bias.add_(mean)
        norm.weight.copy_((variance + norm.eps).sqrt())
        running_mean.copy_(mean)
        running_var.copy_(variance)
    return len(norms)


def _collector(sums: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].to(sums.dtype)
        sums[0] += values.numel() / values.shape[1]
        sums[1] += values.sum((0, 2, 3))
        sums[2] += values.square().sum((0, 2, 3))

    return collect


def _norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
