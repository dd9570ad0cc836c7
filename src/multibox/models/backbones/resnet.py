"""ResNet50 cut after its fourth stage, which keeps the third's resolution (NVIDIA's SSD300)."""

from torch import Tensor, nn
from torchvision.models import resnet50

from multibox.models.backbones.layers import extra_block

NARROW_WIDE_STRIDE = ((256, 512, 2), (256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))
"""Of the extra layers: 38, 19, 10, 5, 3, 1 cells at 300 pixels."""


class ResNet50Body(nn.Module):
    """The map of layer3 at stride 8, and five extra maps. Parts are named as in torchvision's ResNet."""

    channels = (1024, *(wide for _, wide, _ in NARROW_WIDE_STRIDE))

    def __init__(self) -> None:
        super().__init__()
        # Blocks start as their shortcuts: else fresh features grow from block to block until batch norms have measured
        net = resnet50(weights=None, zero_init_residual=True)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        # Only its first block strides
        for layer in self.layer3[0].modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        self.extras = nn.ModuleList(
            extra_block(channels, *extra) for channels, extra in zip(self.channels, NARROW_WIDE_STRIDE, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to six feature maps, finest first."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = [self.layer3(self.layer2(self.layer1(stem)))]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps
