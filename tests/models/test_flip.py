import numpy as np
import pytest
import torch

from multibox.inference.detector import Detector
from multibox.models.anchor_layout import anchors_per_cell, make_anchors
from multibox.models.build import build_model
from multibox.models.prediction import mean_with_mirrored, mirrored_order, unmirror
from multibox.ops.coding import decode
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import HeadOutputs

SMALL = {"model.input_size": [64, 96], "anchors.fit": "none", "model.score": "softmax"}


def outputs_for(config, shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(h * w * n for (h, w), n in zip(shapes, anchors_per_cell(config), strict=True))
    logits, offsets = (torch.randn(2, count, width, generator=generator) for width in (3, 4))
    return HeadOutputs(logits, offsets, shapes)


def boxes(outputs, config):
    anchors = make_anchors(config.anchors, outputs.feature_shapes, config.model.input_size)
    return decode(outputs.offsets, anchors, config.model.variances, config.model.coder)


def mirrored(boxes_xyxy):
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack([1 - x2, y1, 1 - x1, y2], -1)


def test_order_reverses_columns_and_keeps_rows_and_kinds():
    # A map of one row and two columns with two anchors a cell, then one of 2 x 1 with one
    assert mirrored_order([(1, 2), (2, 1)], [2, 1]).tolist() == [2, 3, 0, 1, 4, 5]


def test_center_size_on_an_even_grid_only_negates_cx():
    config = resolve("tinyssd", changes=SMALL)
    shapes = (Size(8, 12), Size(4, 6), Size(2, 3), Size(1, 2), Size(1, 1))
    outputs = outputs_for(config, shapes)
    back = unmirror(outputs, config)
    order = mirrored_order(shapes, anchors_per_cell(config))
    assert torch.equal(back.logits, outputs.logits[:, order])
    expected = outputs.offsets[:, order] * torch.tensor([-1.0, 1, 1, 1])
    assert torch.allclose(back.offsets, expected, atol=1e-4)


@pytest.mark.parametrize("coder", ["center_size", "corner", "corner_size"])
@pytest.mark.parametrize("preset", ["tinyssd", "ssd300-vgg16"])
def test_boxes_are_mirrored_whatever_the_coder_and_the_steps(coder, preset):
    size = [64, 96] if preset == "tinyssd" else [300, 300]
    config = resolve(preset, changes={"model.input_size": size, "anchors.fit": "none", "model.coder": coder})
    shapes = (Size(4, 6), Size(2, 3), Size(2, 3), Size(1, 2), Size(1, 1), Size(1, 1))[: len(anchors_per_cell(config))]
    if preset == "ssd300-vgg16":
        # 8 pixels x 38 cells are 304, 32 x 10 are 320: these maps are not their own mirror images
        shapes = (Size(38, 38), Size(19, 19), Size(10, 10), Size(5, 5), Size(3, 3), Size(1, 1))
        anchors = make_anchors(config.anchors, shapes, (300, 300))
        shift = (mirrored(anchors)[mirrored_order(shapes, anchors_per_cell(config))] - anchors)[..., 0].abs() * 300
        assert shift[: 38 * 38 * 4].max() == pytest.approx(4, abs=0.01)
        assert shift.max() == pytest.approx(20, abs=0.01)
    outputs = outputs_for(config, shapes)
    back = unmirror(outputs, config)
    order = mirrored_order(shapes, anchors_per_cell(config))
    assert torch.allclose(boxes(back, config), mirrored(boxes(outputs, config))[:, order], atol=1e-5)
    again = unmirror(back, config)
    assert torch.allclose(again.offsets, outputs.offsets, atol=1e-3)


def test_an_image_that_is_its_own_mirror_image_gets_symmetric_outputs():
    config = resolve("tinyssd", changes=SMALL)
    model = build_model(config, 2).eval()
    half = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([half, half.flip(3)], 3)
    with torch.inference_mode():
        plain, both = model(images), mean_with_mirrored(model, images, config)
    order = mirrored_order(both.feature_shapes, anchors_per_cell(config))
    negate = torch.tensor([-1.0, 1, 1, 1])
    assert not torch.allclose(plain.logits, plain.logits[:, order], atol=1e-3)
    assert torch.allclose(both.logits, both.logits[:, order], atol=1e-4)
    assert torch.allclose(both.offsets, both.offsets[:, order] * negate, atol=1e-3)


def test_mirrored_images_give_mirrored_detections():
    config = resolve("tinyssd", changes={**SMALL, "post.flip": True})
    detector = Detector(build_model(config, 2), config, ("a", "b"))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    ours, theirs = detector.predict([image, np.ascontiguousarray(image[:, ::-1])], 0.0)
    assert len(ours) > 5
    x1, y1, x2, y2 = ours.boxes.T
    expected = np.stack([96 - x2, y1, 96 - x1, y2], 1)
    # Equal scores may change places
    nearest = [np.abs(theirs.boxes - box).max(1).min() for box in expected[:20]]
    assert max(nearest) < 0.05
