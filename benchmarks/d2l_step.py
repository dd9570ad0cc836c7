"""TinySSD and its training step as the d2l book teaches them in PyTorch; a `peers.Worker`, beside `mxnet_step.py`.

The network and the loop are chapter code ("Single Shot Multibox Detection", d2l.ai), told again in our own words;
anchors and matching are the functions of the pip package `d2l` themselves. float32, NCHW, default threads. It runs in a
process of its own, untouched by what multibox sets in the process in which it trains, and has the arguments of
`mxnet_step.py`.
"""

import json
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peers import import_d2l
from torch import Tensor, nn

SIZES = [[0.2, 0.272], [0.37, 0.447], [0.54, 0.619], [0.71, 0.79], [0.88, 0.961]]
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
        for i, sizes in enumerate(SIZES):
            images = self.get_submodule(f"blk_{i}")(images)
            anchors.append(self.d2l.multibox_prior(images, sizes=sizes, ratios=RATIOS))
            logits.append(self.get_submodule(f"cls_{i}")(images).permute(0, 2, 3, 1).flatten(1))
            offsets.append(self.get_submodule(f"bbox_{i}")(images).permute(0, 2, 3, 1).flatten(1))
        flat = torch.cat(logits, 1)
        return torch.cat(anchors, 1), flat.reshape(len(flat), -1, self.logits), torch.cat(offsets, 1)


class Step:
    """The chapter's training loop, one step at a time, its two running figures included."""

    def __init__(self, d2l: ModuleType, arrays: dict[str, np.ndarray]) -> None:
        self.d2l = d2l
        self.net = ChapterSSD(d2l)
        self.images, self.labels = torch.from_numpy(arrays.pop("images")), torch.from_numpy(arrays.pop("labels"))
        self.net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.net.train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.2, weight_decay=5e-4)
        self.figures = np.zeros(4)

    def losses(self, logits: Tensor, classes: Tensor, offsets: Tensor, wanted: Tensor, masks: Tensor) -> Tensor:
        """Return each image's cross-entropy over all anchors plus L1 over all their coordinates, both averaged."""
        entropy = nn.functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        box = nn.functional.l1_loss(offsets * masks, wanted * masks, reduction="none")
        return entropy.reshape(len(logits), -1).mean(1) + box.mean(1)

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the class targets and the losses that one step was made of."""
        self.optimizer.zero_grad()
        anchors, logits, offsets = self.net(self.images)
        wanted, masks, classes = self.d2l.multibox_target(anchors, self.labels)
        losses = self.losses(logits, classes, offsets, wanted, masks)
        losses.mean().backward()
        self.optimizer.step()
        right = float((logits.argmax(-1) == classes).sum())
        error = float(((wanted - offsets.detach()) * masks).abs().sum())
        self.figures += [right, classes.numel(), error, wanted.numel()]
        return classes, losses.detach()

    def facts(self) -> dict[str, Any]:
        """Run one step and return everything it computed; gradients are those of the batch's mean loss."""
        classes, losses = self.run()
        result: dict[str, Any] = {"labels": classes.numpy(), "losses": losses.numpy()}
        for name, parameter in self.net.named_parameters():
            assert parameter.grad is not None
            result[f"gradient/{name}"] = parameter.grad.numpy().copy()
            result[f"after/{name}"] = parameter.detach().numpy().copy()
        return result


def main(source: str, target: str) -> None:
    d2l = import_d2l()
    assert d2l is not None
    with np.load(source) as file:
        step = Step(d2l, dict(file))
    for line in sys.stdin:
        started = time.perf_counter()
        if json.loads(line)["do"] == "facts":
            np.savez(target, **step.facts())
        else:
            step.run()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
