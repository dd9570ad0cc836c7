"""Detectors that answer like trained ones, made in seconds: nothing is downloaded, and fresh weights answer nothing."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from multibox import api
from multibox.benchmarking.workload import synthetic_images
from multibox.inference.detector import Detector

TUNED_ON = 4
"""Images."""
LOGITS, OFFSETS = 4.0, 0.7
"""Standard deviations that the heads are scaled to."""


@torch.no_grad()
def lively_detector(
    preset: str, classes: int, size: tuple[int, int], candidates: int = 300, recipe: str = "default"
) -> Detector:
    """Return a detector with seeded weights, fitting batch norms and about `candidates` scores above its threshold.

    Args:
        preset: the network.
        classes: without background.
        size: height and width of its input.
        candidates: an image, over all classes.
        recipe: of the preset.
    """
    detector = api.create(preset, [f"class{index}" for index in range(classes)], recipe=recipe)
    detector.config = detector.config.updated({"model.input_size": size})
    model = detector.model
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            # Nearer to linear, as trained ones are: rounding errors must not grow from layer to layer
            nn.init.ones_(module.bias)
    images = synthetic_images(TUNED_ON, size)
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    model.train()(images)
    _scale(model.eval(), images)
    outputs = model(images)
    _raise_background(detector, outputs.logits, candidates * len(images))
    return detector


def _scale(model: nn.Module, images: Tensor) -> None:
    """Scale each head's last convolution to a mean of 0 and a healthy spread."""
    heads = model.get_submodule("heads")
    kept: dict[nn.Module, Tensor] = {}
    lasts = [(_last(each), LOGITS) for each in _children(heads, "classification")]
    lasts += [(_last(each), OFFSETS) for each in _children(heads, "localization")]
    hooks = [last.register_forward_hook(lambda module, _, out: kept.update({module: out})) for last, _ in lasts]
    model(images)
    for hook in hooks:
        hook.remove()
    for last, spread in lasts:
        answer = kept[last]
        # One cell of one image has no spread over places, so channels count too
        scale = spread / float(answer.std().clamp(min=1e-6))
        last.weight.mul_(scale)
        assert last.bias is not None
        last.bias.copy_((last.bias - answer.mean((0, 2, 3))) * scale)


def _children(heads: nn.Module, name: str) -> Iterable[nn.Module]:
    return heads.get_submodule(name).children()


def _last(head: nn.Module) -> nn.Conv2d:
    return [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1]


def _raise_background(detector: Detector, logits: Tensor, wanted: int) -> None:
    """Raise the background's biases until `wanted` scores of these logits are above the threshold."""
    low, high = 0.0, 40.0
    for _ in range(20):
        middle = (low + high) / 2
        raised = logits.clone()
        raised[..., 0] += middle
        above = int((raised.softmax(2)[..., 1:] > detector.config.post.score_threshold).sum())
        low, high = (middle, high) if above > wanted else (low, middle)
    for _, layer in detector.model.heads.class_layers():
        assert layer.bias is not None
        layer.bias.view(-1, logits.shape[2])[:, 0] += high
