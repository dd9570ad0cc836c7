"""One step: sizes, anchors at them, frozen parts, the loss that is watched."""

import pytest
import torch

from multibox.config import Config
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.run import RunOptions, prepare
from multibox.training.step import Stepper, anchors_at, draw_size, resize_batch, sizes_between

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 3), out=out, changes={**SMALL, **changes})


def test_sizes_are_multiples_of_32_and_a_function_of_the_step():
    config = Config().updated({"model.input_size": [300, 200], "train.scales": [0.5, 1.5]})
    sizes = [draw_size(config, step) for step in range(500)]
    assert sizes == [draw_size(config, step) for step in range(500)]
    assert sizes != [draw_size(config.updated({"train.seed": 1}), step) for step in range(500)]
    assert {side % 32 for size in sizes for side in size} == {0}
    assert {h for h, _ in sizes} == set(range(160, 449, 32))
    assert sizes_between(config) == ((160, 96), (448, 288))
    assert all(abs(h / 300 - w / 200) < 32 / 300 / 2 + 32 / 200 / 2 for h, w in sizes)
    assert draw_size(Config().updated({"model.input_size": [300, 200]}), 3) == (300, 200)


def test_a_resized_batch_keeps_boxes_and_bytes():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[:, :, :, 32:] = 255
    batch = Batch(
        images.contiguous(memory_format=torch.channels_last),
        torch.ones(1, 1, 4),
        torch.zeros(1, 1).long(),
        ["a"],
        [Size(9, 9)],
    )
    assert resize_batch(batch, (64, 64)) is batch
    small = resize_batch(batch, (32, 96))
    assert small.images.shape == (1, 3, 32, 96)
    assert small.images.dtype == torch.uint8
    assert small.images.is_contiguous(memory_format=torch.channels_last)
    assert small.images[0, 0, 0, [0, 40, 55, 95]].tolist() == [0, 0, 255, 255]
    assert small.gt_xyxy is batch.gt_xyxy


def test_anchors_at_another_size_cover_the_same_shares_of_the_image():
    config = resolve("ssd300-vgg16", changes={"anchors.fit": "none"})
    shapes = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))
    own = make_anchors(config.anchors, shapes, (300, 300))
    assert torch.equal(anchors_at(config, shapes, (300, 300), "cpu"), own)
    larger = ((48, 48), (24, 24), (12, 12), (6, 6), (4, 4), (2, 2))
    anchors = anchors_at(config, larger, Size(384, 384), "cpu")
    sides = lambda boxes: {tuple(round(v, 5) for v in row) for row in (boxes[:, 2:] - boxes[:, :2]).tolist()}  # noqa: E731
    assert sides(anchors) == sides(own)
    # 48 steps of 8 / 300 would end outside of the image
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.min() == pytest.approx(0.5 / 48)
    assert centres.max() == pytest.approx(1 - 0.5 / 48)


def test_frozen_for_good_is_not_in_the_optimiser_but_frozen_for_a_while_is():
    for until, included in ((1.0, False), (0.5, True)):
        changes = {**SMALL, "anchors.fit": "none", "train.freeze": "backbone.*", "train.freeze_until": until}
        config = resolve("tinyssd", changes=changes)
        stepper = Stepper(build_model(config, 2), config, device="cpu", precision="float32")
        known = {id(p) for group in stepper.optimizer.param_groups for p in group["params"]}
        assert all((id(p) in known) is included for p in stepper.model.backbone.parameters())
        assert not any(p.requires_grad for p in stepper.model.backbone.parameters())
        stepper.thaw()
        assert all(p.requires_grad for p in stepper.model.parameters())


@pytest.mark.slow
def test_the_total_of_hikapok_starts_higher_by_the_scale(squares, tmp_path):
    changes = {**SMALL, "train.batch_size": 2, "train.augmentation": "none", "train.freeze": "backbone.[!n]*,heads.*"}
    run = RunOptions(preset="ssd300-vgg16", recipe="hikapok", epochs=1, out=tmp_path / "run", changes=changes)
    trainer = prepare(squares, run)
    seen = []

    def see(trainer, parts):
        seen.append(parts)
        raise StopIteration

    trainer.reporter.step = see
    with pytest.raises(StopIteration):
        trainer.fit()
    # Only the scale learns here, so only it is counted: 5e-4 * 0.1 * 0.5 * 512 * 400
    assert seen[0].l2.item() == pytest.approx(5.12, abs=1e-4)
    assert seen[0].total.item() == pytest.approx(
        (seen[0].classification + seen[0].localization).item() + 5.12, rel=1e-5
    )
