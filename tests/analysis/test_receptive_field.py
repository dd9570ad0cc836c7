"""Receptive fields against numbers worked by hand, and against where gradients reach."""

import numpy as np
import pytest
import torch
from torch import nn

from multibox.analysis.receptive_field import receptive_fields
from multibox.models.build import build_model
from multibox.presets import resolve


def config_of(preset, **changes):
    return resolve(preset, "default", {"anchors.fit": "none", **changes})


@pytest.mark.parametrize(
    ("preset", "sizes", "steps"),
    [
        # Three blocks of two 3x3 convolutions and a 2x2 pool: 5 6, 14 16, 32 36; the head's 3x3 at stride 8 adds 16.
        # A further block at stride s adds 2 s twice and s; its head 4 s.
        ("tinyssd", [52, 108, 220, 444], [8, 16, 32, 64]),
        # conv4_3 sees 92 pixels, conv7 with its 6-fold dilation 420; heads add two strides
        ("ssd300-vgg16", [92 + 16, 420 + 32], [8, 16]),
    ],
)
def test_fields_worked_by_hand(preset, sizes, steps):
    fields = receptive_fields(config_of(preset))
    limit = config_of(preset).model.input_size
    for field, size, step in zip(fields, sizes, steps, strict=False):
        assert field.size(limit) == (size, size) and field.x.step == field.y.step == step
    # TinySSD's first cell: 52 pixels around its 8, 22 of them before the image
    if preset == "tinyssd":
        assert fields[0].x.at(0) == (-22, 30) and fields[0].box(0, 3, limit) == (2, 0, 54, 30)
        assert fields[-1].size(limit) == (256, 256) and fields[-1].box(0, 0, limit) == (0, 0, 256, 256)


def reached(config, level, row, column):
    """Return the box of pixels with a gradient, in a network whose every weight is positive."""
    model = build_model(config, 1).double().eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MaxPool2d):
            # A maximum passes the gradient on to one pixel only
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            model.set_submodule(name, pool)
    image = torch.full((1, 3, *config.model.input_size), 255.0, dtype=torch.float64, requires_grad=True)
    kept = []
    model.heads.classification[level].register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(image)
    kept[0][0, :, row, column].sum().backward()
    ys, xs = (image.grad[0].abs().sum(0) > 0).nonzero().T.numpy()
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


@pytest.mark.parametrize(
    ("preset", "level", "slack"),
    [
        ("tinyssd", 0, 0),
        ("tinyssd", 1, 0),
        pytest.param("ssd300-mobilenetv1", 0, 0, marks=pytest.mark.slow),
        # The enlarged map's cells lie inside one of the coarser map: off by at most one of its strides
        pytest.param("multibox-fine", 6, 8, marks=pytest.mark.slow),
        pytest.param("rfb320-face", 0, 0, marks=pytest.mark.slow),
    ],
)
def test_fields_hold_every_pixel_with_a_gradient(preset, level, slack):
    config = config_of(preset, **{"model.std": (128.0, 128.0, 128.0)})
    model = build_model(config, 1).eval()
    with torch.no_grad():
        rows, columns = model(torch.zeros(1, 3, *config.model.input_size)).feature_shapes[level]
    for row, column in ((rows // 2, columns // 2), (0, 1)):
        said = np.array(receptive_fields(config)[level].box(row, column, config.model.input_size))
        seen = np.array(reached(config, level, row, column))
        beyond = np.array([-1, -1, 1, 1]) * (said - seen)
        assert (beyond >= 0).all() and (beyond <= slack).all(), (said, seen)


def test_squeezed_channels_see_everything():
    """Squeeze-and-excitation averages over the whole map, so every cell of MobileNetV3 sees the whole image."""
    config = config_of("ssdlite320-mobilenetv3")
    limit = config.model.input_size
    assert all(field.size(limit) == (320, 320) for field in receptive_fields(config))
    assert receptive_fields(config)[0].box(5, 5, limit) == (0, 0, 320, 320)
