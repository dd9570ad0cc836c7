"""TinySSD and its training step as the d2l book teaches them in PyTorch: the peer of `train_step.py`.

The network and the loop are chapter code ("Single Shot Multibox Detection", d2l.ai), told again in our own words;
anchors and matching are the functions of the pip package `d2l` themselves. float32, NCHW, default threads.
"""

import time
from types import ModuleType

import numpy as np
import torch
from ours import Facts
from torch import Tensor, nn

from multibox.presets import TINYSSD_SIZES
from multibox.tensors import Batch

RATIOS = [1, 2, 0.5]
ANCHORS = 4


def shrink(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with batch norm and ReLU, and a pool."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


class ChapterSSD(nn.Module):
    """The network; its parts carry the chapter's names, which are MXNet's as well."""

    def __init__(self, d2l: ModuleType, classes: int = 1) -> None:
        super().__init__()
        self.d2l = d2l
        self.logits = classes + 1
        self.blk_0 = nn.Sequential(shrink(3, 16), shrink(16, 32), shrink(32, 64))
        self.blk_1, self.blk_2, self.blk_3 = shrink(64, 128), shrink(128, 128), shrink(128, 128)
        self.blk_4 = nn.AdaptiveMaxPool2d(1)
        for i, width in enumerate((64, 128, 128, 128, 128)):
            self.add_module(f"cls_{i}", nn.Conv2d(width, ANCHORS * self.logits, 3, padding=1))
            self.add_module(f"bbox_{i}", nn.Conv2d(width, ANCHORS * 4, 3, padding=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return anchors, logits [B, A, K] and offsets [B, A * 4]; anchors are made anew in every pass."""
        anchors, logits, offsets = [], [], []
        for i, sizes in enumerate(TINYSSD_SIZES):
            images = self.get_submodule(f"blk_{i}")(images)
            anchors.append(self.d2l.multibox_prior(images, sizes=list(sizes), ratios=RATIOS))
            logits.append(self.get_submodule(f"cls_{i}")(images).permute(0, 2, 3, 1).flatten(1))
            offsets.append(self.get_submodule(f"bbox_{i}")(images).permute(0, 2, 3, 1).flatten(1))
        flat = torch.cat(logits, 1)
        return torch.cat(anchors, 1), flat.reshape(len(flat), -1, self.logits), torch.cat(offsets, 1)


class D2LStep:
    """The chapter's training loop, one step at a time, its two running figures included."""

    name = "d2l 1.0.3 (PyTorch)"

    def __init__(self, d2l: ModuleType, batch: Batch, weights: dict[str, Tensor]) -> None:
        self.d2l = d2l
        self.net = ChapterSSD(d2l)
        self.net.load_state_dict({chapter_name(name): tensor for name, tensor in weights.items()})
        self.net.train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.2, weight_decay=5e-4)
        self.pictures = batch.images.float().contiguous()
        self.labels = torch.cat([batch.gt_labels[..., None].float(), batch.gt_xyxy], dim=2)
        self.figures = np.zeros(4)

    def losses(self, logits: Tensor, classes: Tensor, offsets: Tensor, wanted: Tensor, masks: Tensor) -> Tensor:
        """Return each picture's cross-entropy over all anchors plus L1 over all their coordinates, both averaged."""
        entropy = nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        box = nn.functional.l1_loss(offsets * masks, wanted * masks, reduction="none")
        return entropy.reshape(len(logits), -1).mean(1) + box.mean(1)

    def step(self) -> tuple[Tensor, Tensor]:
        """Return the class targets and the losses that one step was made of."""
        self.optimizer.zero_grad()
        anchors, logits, offsets = self.net(self.pictures)
        wanted, masks, classes = self.d2l.multibox_target(anchors, self.labels)
        losses = self.losses(logits, classes, offsets, wanted, masks)
        losses.mean().backward()
        self.optimizer.step()
        right = float((logits.argmax(-1) == classes).sum())
        error = float(((wanted - offsets.detach()) * masks).abs().sum())
        self.figures += [right, classes.numel(), error, wanted.numel()]
        return classes, losses.detach()

    def facts(self) -> Facts:
        """Run one step and tell what it computed."""
        labels, losses = self.step()
        parameters = {our_name(name): p for name, p in self.net.named_parameters()}
        norms = {name: float(p.grad.norm()) for name, p in parameters.items() if p.grad is not None}
        return Facts(labels, losses, norms, {name: p.detach().clone() for name, p in parameters.items()})

    def seconds(self) -> float:
        """Time one step."""
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started


_OURS_TO_CHAPTER = {"conv1": "0", "norm1": "1", "conv2": "3", "norm2": "4"}
_CHAPTER_TO_OURS = {number: part for part, number in _OURS_TO_CHAPTER.items()}


def chapter_name(name: str) -> str:
    """Turn our name of a tensor into the chapter's: backbone.stages.1.0.conv1.weight is blk_1.0.weight."""
    kind, place, *rest = name.split(".")[0 if name.startswith("heads") else 1 :]
    if kind == "heads":
        return f"{'cls' if place == 'classification' else 'bbox'}_{'.'.join(rest)}"
    block, part, field = rest
    return ".".join([f"blk_{place}", *([block] if place == "0" else []), _OURS_TO_CHAPTER[part], field])


def our_name(name: str) -> str:
    """Undo `chapter_name`."""
    layer, *path, field = name.split(".")
    kind, place = layer.split("_", 1)
    if kind != "blk":
        return f"heads.{'classification' if kind == 'cls' else 'localization'}.{place}.{field}"
    block, number = path if len(path) == 2 else ("0", path[0])
    return f"backbone.stages.{place}.{block}.{_CHAPTER_TO_OURS[number]}.{field}"
