"""TinySSD's training step in Apache MXNet 1.9.1, as the d2l book's first edition ran it; a `peers.Worker`.

It runs in a venv of its own (see README.md), so it imports nothing of multibox. The network is hybridized, which is the
faster way to run it. Arguments: an .npz with `images` [B, 3, H, W] float32, `labels` [B, N, 5] and the weights under
the chapter's names, and the .npz to which the facts of the first step are written.
"""

import json
import sys
import time

import numpy as np
from mxnet import autograd, contrib, gluon, nd  # pyright: ignore[reportMissingImports]
from mxnet.gluon import nn  # pyright: ignore[reportMissingImports]

SIZES = [[0.2, 0.272], [0.37, 0.447], [0.54, 0.619], [0.71, 0.79], [0.88, 0.961]]
RATIOS = [1, 2, 0.5]
FIELDS = {"gamma": "weight", "beta": "bias"}


def shrink(channels):
    block = nn.HybridSequential()
    for _ in range(2):
        block.add(nn.Conv2D(channels, kernel_size=3, padding=1), nn.BatchNorm(), nn.Activation("relu"))
    block.add(nn.MaxPool2D(2))
    return block


class TinySSD(gluon.Block):
    """The chapter's network with one class; returns anchors, logits [B, A, 2] and offsets [B, A * 4]."""

    def __init__(self):
        super().__init__()
        first = nn.HybridSequential()
        first.add(shrink(16), shrink(32), shrink(64))
        self.blocks = [first, shrink(128), shrink(128), shrink(128), nn.GlobalMaxPool2D()]
        for i, block in enumerate(self.blocks):
            setattr(self, f"blk_{i}", block)
            setattr(self, f"cls_{i}", nn.Conv2D(4 * 2, kernel_size=3, padding=1))
            setattr(self, f"bbox_{i}", nn.Conv2D(4 * 4, kernel_size=3, padding=1))

    def forward(self, images):
        """Map images [B, 3, H, W], 0 to 255."""
        anchors, logits, offsets = [], [], []
        for i, block in enumerate(self.blocks):
            images = block(images)
            anchors.append(contrib.ndarray.MultiBoxPrior(images, sizes=SIZES[i], ratios=RATIOS))
            logits.append(getattr(self, f"cls_{i}")(images).transpose((0, 2, 3, 1)).flatten())
            offsets.append(getattr(self, f"bbox_{i}")(images).transpose((0, 2, 3, 1)).flatten())
        return nd.concat(*anchors, dim=1), nd.concat(*logits, dim=1).reshape((0, -1, 2)), nd.concat(*offsets, dim=1)


class Step:
    """The chapter's training loop, one step at a time."""

    def __init__(self, arrays):
        self.images, self.labels = nd.array(arrays["images"]), nd.array(arrays["labels"])
        self.net = TinySSD()
        self.net.initialize()
        self.net.hybridize(static_alloc=True)
        self.net(self.images[:1])  # shapes are known after a first pass
        self.parameters = {}
        for name, parameter in self.net._collect_params_with_prefix().items():
            stem, _, field = name.rpartition(".")
            chapter = f"{stem}.{FIELDS.get(field, field)}"
            parameter.set_data(nd.array(arrays[chapter]))
            self.parameters[chapter] = parameter
        self.trainer = gluon.Trainer(self.net.collect_params(), "sgd", {"learning_rate": 0.2, "wd": 5e-4})
        self.class_loss, self.box_loss = gluon.loss.SoftmaxCrossEntropyLoss(), gluon.loss.L1Loss()

    def run(self):
        """Return the class targets and the losses that one step was made of."""
        with autograd.record():
            anchors, logits, offsets = self.net(self.images)
            wanted, masks, classes = contrib.ndarray.MultiBoxTarget(anchors, self.labels, logits.transpose((0, 2, 1)))
            losses = self.class_loss(logits, classes) + self.box_loss(offsets * masks, wanted * masks)
        losses.backward()
        self.trainer.step(len(self.images))
        (logits.argmax(axis=-1) == classes).sum().asscalar()
        ((wanted - offsets) * masks).abs().sum().asscalar()
        nd.waitall()
        return classes, losses

    def facts(self):
        """Run one step and return everything it computed; gradients are those of the batch's mean loss."""
        classes, losses = self.run()
        result = {"labels": classes.asnumpy(), "losses": losses.asnumpy()}
        for name, parameter in self.parameters.items():
            if parameter.grad_req != "null":
                result[f"gradient/{name}"] = parameter.grad().asnumpy() / len(self.images)
                result[f"after/{name}"] = parameter.data().asnumpy()
        return result


def main(source, target):
    with np.load(source) as file:
        step = Step(dict(file))
    for line in sys.stdin:
        started = time.perf_counter()
        if json.loads(line)["do"] == "facts":
            np.savez(target, **step.facts())
        else:
            step.run()
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
