"""ResNet50 cut after its third stage, as in NVIDIA's SSD300 (DeepLearningExamples, PyTorch/Detection/SSD; MLPerf).

map       channels   cells at 300 pixels   stride
layer3    1024       38x38                 8
extra 0   512        19x19                 16
extra 1   512        10x10                 32
extra 2   256        5x5                   64
extra 3   256        3x3                   unpadded
extra 4   256        1x1                   unpadded
"""

# pyright: reportMissingTypeStubs=false

from torch import Tensor, nn
from torchvision.models import resnet50

from multibox.models.backbones.layers import extra_block, with_extras

EXTRAS = ((256, 512, 2), (256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))
"""Narrow and wide channels, and stride, of each extra block: those of NVIDIA's `_build_additional_features`."""


class ResNet50Backbone(nn.Module):
    """The map of layer3 and five extra ones. Parts are named as in torchvision's ResNet, whose weights fit."""

    channels = (1024, *(wide for _, wide, _ in EXTRAS))

    def __init__(self) -> None:
        super().__init__()
        # Residual blocks that start as their shortcuts: otherwise the features of fresh weights grow from block to
        # block until the batch norms have measured them
        net = resnet50(weights=None, zero_init_residual=True)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        _keep_resolution(self.layer3)
        self.extras = nn.ModuleList(
            extra_block(before, *extra) for before, extra in zip(self.channels, EXTRAS, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map [b, 3, h, w] to six feature maps, finest first."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return with_extras([self.layer3(self.layer2(self.layer1(stem)))], self.extras)


def _keep_resolution(stage: nn.Sequential) -> None:
    """Undo the stride of a stage, which its first block has: a convolution and the shortcut's."""
    for layer in stage[0].modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
