"""Batch norms folded into the convolutions before them, for networks that only answer."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(model: nn.Module) -> None:
    """Fold, in place, each batch norm right behind a convolution in an `nn.Sequential`; the result only evaluates."""
    for parent in list(model.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        before: nn.Module | None = None
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                _fold(before, module)
                setattr(parent, name, nn.Identity())
            before = module


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(  # pyright: ignore[reportAttributeAccessIssue]
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
