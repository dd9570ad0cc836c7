"""A batch computed in parts: its gradient, loss and metrics are those of the whole batch."""

import pytest
import torch

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.accumulating import split_batch
from multibox.training.step import Stepper

IMAGES = 5


def some_batch():
    """Five images with 2, 0, 1, 3 and 1 objects."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    corner = torch.rand(IMAGES, 3, 2, generator=generator) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(IMAGES, 3, 2, generator=generator)], 2)
    labels = torch.randint(0, 2, (IMAGES, 3), generator=generator)
    for image, objects in enumerate((2, 0, 1, 3, 1)):
        labels[image, objects:], boxes[image, objects:] = -1, -1
    rows = torch.arange(IMAGES * 3).view(IMAGES, 3)
    return Batch(pixels, boxes, labels, list("abcde"), [Size(64, 64)] * IMAGES, 0, rows, torch.arange(IMAGES))


def learn(parts, **changes):
    """Return the stepper after one step in `parts` parts, what it watched, and the loss."""
    settings = {"model.input_size": [64, 64], "anchors.fit": "none", "train.batch_size": IMAGES}
    config = resolve("tinyssd", changes=settings | {"train.accumulate": parts, **changes})
    stepper = Stepper(build_model(config, 2, 0).eval(), config, device="cpu", precision="float32")
    seen = []
    stepper.watch = lambda *watched: seen.append(watched)
    loss = stepper.step(some_batch())
    assert len(seen) == 1
    return stepper, seen[0], loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"loss.normalizer": "positives"},
        {"loss.normalizer": "positives", "loss.hard_examples": 40},
        {"loss.normalizer": "images", "loss.minimum_negatives": 3},
        {"loss.normalizer": "anchors", "loss.negative_ratio": "all", "loss.classification": "focal"},
        {"loss.normalizer": "selected", "loss.negative_ratio": 3.0, "loss.minimum_negatives": 0},
        {"loss.normalizer": "positives", "loss.l2_penalty": 0.01},
        {"matching.matcher": "task_aligned", "loss.normalizer": "positives"},
    ],
    ids=str,
)
def test_three_parts_give_the_gradient_and_the_loss_of_the_whole_batch(changes):
    compare(learn(1, **changes), learn(3, **changes))


def test_a_part_without_positives_counts_as_in_the_whole_batch():
    """Image 1 has no object; alone its divisor would be 1, in the whole batch it is added to the others' sums."""
    changes = {"loss.normalizer": "positives", "loss.minimum_negatives": 7}
    compare(learn(1, **changes), learn(5, **changes))


def compare(whole, in_parts):
    (one, watched, loss), (other, also, its_loss) = whole, in_parts
    for name in ("total", "classification", "localization", "l2", "positives"):
        assert getattr(its_loss, name).item() == pytest.approx(getattr(loss, name).item(), rel=1e-5), name
    for (name, wanted), parameter in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        most = wanted.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, wanted.grad, atol=2e-5 * most, rtol=1e-3, msg=name)
    for field, a, b in zip(watched[1]._fields, watched[1], also[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=field)
    assert torch.equal(loss.selected, its_loss.selected)
    assert other.means.row() == pytest.approx(one.means.row(), rel=1e-4)
    assert also[3].image_names == list("abcde")


def test_batch_norms_see_the_parts_one_by_one():
    config = resolve("tinyssd", changes={"model.input_size": [64, 64], "anchors.fit": "none", "train.accumulate": 2})
    model = build_model(config, 2, 0).train()
    stepper = Stepper(model, config, device="cpu", precision="float32")
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    stepper.step(some_batch())
    assert norm.num_batches_tracked.item() == 2


def test_parts_are_views_of_nearly_equal_size_and_never_empty():
    batch = some_batch()
    assert split_batch(batch, 1) == [batch]
    parts = split_batch(batch, 3)
    assert [part.image_names for part in parts] == [["a"], ["b", "c"], ["d", "e"]]
    assert [part.image_rows.tolist() for part in parts] == [[0], [1, 2], [3, 4]]
    assert parts[1].images.data_ptr() == batch.images[1].data_ptr()
    assert len(split_batch(batch, 99)) == IMAGES


def test_more_parts_than_images_are_refused():
    with pytest.raises(ConfigError, match=r"train.accumulate=8: expected at most train.batch_size=4"):
        Config().updated({"train.batch_size": 4, "train.accumulate": 8})
