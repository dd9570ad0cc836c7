"""Any convolutional model of timm with intermediate features, with as many extra maps as the anchors ask for."""

from typing import Any, cast

from torch import Tensor, nn

from multibox.errors import ConfigError, MissingExtraError, did_you_mean
from multibox.models.backbones.layers import extra_block, with_extras

FINEST = 8
"""Smallest stride that is used: finer maps cost most and hold too many anchors."""
NARROWEST = 128
"""Fewest channels of an extra map."""


class TimmBackbone(nn.Module):
    """The model's maps from stride 8 on, then extra ones of half the size each.

    Args:
        name: of the model in timm, such as resnet18.
        levels: how many maps to return.
    """

    def __init__(self, name: str, levels: int) -> None:
        super().__init__()
        self.net = _create(name)
        info = cast(Any, self.net.feature_info)
        self.kept = [index for index, stride in enumerate(info.reduction()) if stride >= FINEST][:levels]
        if not self.kept:
            raise ConfigError(f"timm's {name} has no feature map of stride {FINEST} or more; choose another model")
        channels = [info.channels()[index] for index in self.kept]
        self.extras = nn.ModuleList()
        while len(channels) < levels:
            wide = max(NARROWEST, channels[-1] // 2)
            self.extras.append(extra_block(channels[-1], wide // 2, wide))
            channels.append(wide)
        self.channels = tuple(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to the feature maps, finest first."""
        features = self.net(images)
        return with_extras([features[index] for index in self.kept], self.extras)


def _create(name: str) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise MissingExtraError(f"Backbone timm:{name}", "timm") from None
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}{hint}; see timm.list_models()")
    try:
        return timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm's {name} gives no feature maps ({error}); choose a convolutional model") from None
