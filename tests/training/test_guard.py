"""A step that is not finite changes nothing, whether the host knows at once (CPU) or some steps later (GPU)."""

import math

import pytest
import torch

from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch, HeadOutputs
from multibox.training import guard as guard_module
from multibox.training.folder import load_state, save_state
from multibox.training.guard import CHECK_EVERY, Guard
from multibox.training.norms import train_mode
from multibox.training.ranks import Ranks
from multibox.training.step import Stepper


def make_batch(seed=0, images=2, side=64):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=draw).permute(0, 3, 1, 2)
    corner = torch.rand(images, 1, 2, generator=draw) * 0.4
    boxes = torch.cat([corner, corner + 0.4], 2)
    names = [f"{seed}-{place}.png" for place in range(images)]
    return Batch(pixels, boxes, torch.zeros(images, 1).long(), names, [Size(side, side)] * images)


def make_bad_batch(seed=0):
    batch = make_batch(seed)
    batch.images.zero_()
    return batch


def fails_on_black(model):
    """The network, whose logits are not a number where all images are black."""

    def network(images):
        outputs = model(images)
        poison = math.nan if not images.any() else 0.0
        return HeadOutputs(outputs.logits + poison, outputs.offsets, outputs.feature_shapes)

    return network


def make_stepper(*, late=False, precision="float32", ranks=None, **changes):
    changes = {"model.input_size": [64, 64], "anchors.fit": "none", **changes}
    config = resolve("tinyssd", changes={**changes, "train.lr": changes.get("train.lr", 0.01)})
    stepper = Stepper(build_model(config, 1), config, device="cpu", precision=precision, **(ranks or {}))
    stepper.network = fails_on_black(stepper.model)
    train_mode(stepper.model)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.01
    if late:
        about = {"device": "cpu", "precision": precision, "late": True}
        stepper.guard = Guard(stepper.model, stepper.average, stepper.optimizer, config.train, **about)
    return stepper


def everything(stepper):
    """All that a step changes, copied."""
    values = {f"model {name}": t.clone() for name, t in stepper.model.state_dict().items()}
    if stepper.average is not None:
        values |= {f"average {name}": t.clone() for name, t in stepper.average.module.state_dict().items()}
        values["averaged"] = torch.tensor(stepper.average.count)
    for index, moments in stepper.optimizer.state_dict()["state"].items():
        values |= {f"{index} {name}": torch.as_tensor(value).clone() for name, value in moments.items()}
    return values | {f"means {name}": value.clone() for name, value in stepper.means.sums.items()}


def assert_equal(a, b, *, apart=()):
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith(apart):
            torch.testing.assert_close(a[name], b[name])
        else:
            assert torch.equal(a[name], b[name]), name


OPTIMIZERS = (
    {"train.optimizer": "sgd", "train.momentum": 0.9, "train.ema": 0.9, "train.clip_norm": "none"},
    {"train.optimizer": "adamw", "train.ema": 0.9, "train.clip_norm": 1.0, "train.weight_decay": 0.01},
)


@pytest.mark.parametrize("changes", OPTIMIZERS)
def test_a_bad_step_changes_nothing_and_is_read_at_once(changes):
    stepper = make_stepper(**changes)
    told = []
    stepper.watch = lambda *values: told.append(values)
    stepper.step(make_batch(1))
    assert stepper.look_back() is None
    before = everything(stepper)
    stepper.step(make_bad_batch(2))
    step, later = stepper.look_back()
    assert (step.number, step.batch.image_names, later) == (2, ["2-0.png", "2-1.png"], [])
    assert math.isnan(step.loss)
    assert_equal(everything(stepper), before)
    assert len(told) == 1
    assert [number for number, _, _ in stepper.guard.history] == [1]
    stepper.step(make_batch(3))
    assert stepper.look_back() is None
    assert not torch.equal(
        everything(stepper)["model backbone.stages.0.0.conv1.weight"], before["model backbone.stages.0.0.conv1.weight"]
    )


class Event:
    """Stands for a GPU that copies when it is waited for."""

    def __init__(self, source, target):
        self.source, self.target = source.clone(), target

    def synchronize(self):
        self.target.copy_(self.source)


@pytest.fixture
def copied_later(monkeypatch):
    def start_copy(source):
        target = torch.zeros_like(source)
        return target, Event(source, target)

    monkeypatch.setattr(guard_module, "start_copy", start_copy)


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "changes"), [(1, OPTIMIZERS[0]), (5, OPTIMIZERS[0]), (6, OPTIMIZERS[1])])
def test_on_a_gpu_steps_after_a_bad_one_are_held_back_and_made_again(changes, bad, copied_later):
    batches = [make_bad_batch(n) if n == bad else make_batch(n) for n in range(1, 17)]
    late, alone = make_stepper(late=True, **changes), make_stepper(**changes)
    found = None
    number = 0
    while found is None:
        late.step(batches[number])
        number += 1
        found = late.look_back()
    step, later = found
    assert step.number == bad
    assert number == -(-bad // CHECK_EVERY) * CHECK_EVERY + CHECK_EVERY
    assert [one.number for one in later] == list(range(bad + 1, number + 1))
    for batch in batches[: bad - 1]:
        alone.step(batch)
    # The average is moved by other kernels, the momentum exists from the start
    assert_equal(
        {k: v for k, v in everything(late).items() if k in everything(alone)}, everything(alone), apart="average"
    )
    late.make_again(later)
    for batch in batches[number:]:
        late.step(batch)
        assert late.look_back() is None
    assert late.look_back(wait=True) is None
    for batch in batches[bad:]:
        alone.step(batch)
    assert_equal(everything(late), everything(alone), apart="average")
    assert late.guard.number == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA")
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("changes", OPTIMIZERS)
def test_a_real_gpu_holds_steps_back(changes, precision):
    config = make_stepper(**changes).config
    stepper = Stepper(build_model(config, 1), config, device="cuda", precision=precision)
    stepper.network = fails_on_black(stepper.model)
    train_mode(stepper.model)
    for number in range(1, 4):
        stepper.step(make_batch(number).to("cuda"))
    assert stepper.look_back(wait=True) is None
    before, found = everything(stepper), None
    for number in range(4, 20):
        if found is None:
            stepper.step((make_bad_batch(number) if number == 5 else make_batch(number)).to("cuda"))
            if number == 4:
                before = everything(stepper)
            found = stepper.look_back()
    step, later = found
    assert step.number == 5
    assert len(later) <= 2 * CHECK_EVERY
    assert_equal(everything(stepper), before)
    stepper.make_again(later)
    assert stepper.look_back(wait=True) is None


def test_waiting_reads_every_step(copied_later):
    stepper = make_stepper(late=True)
    for number in range(1, 4):
        stepper.step(make_bad_batch(number) if number == 2 else make_batch(number))
        assert stepper.look_back() is None
    step, later = stepper.look_back(wait=True)
    assert (step.number, len(later)) == (2, 1)
    assert stepper.look_back(wait=True) is None


def test_a_gradient_alone_that_is_not_finite_is_bad_too():
    stepper = make_stepper()
    weight = stepper.model.heads.classification[0].weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    before = everything(stepper)
    stepper.step(make_batch())
    step, _ = stepper.look_back()
    assert (math.isfinite(step.loss), step.norm) == (True, math.inf)
    assert_equal(everything(stepper), before)


@pytest.mark.slow
def test_float16_halves_its_scale_where_gradients_overflow_and_the_state_keeps_it(tmp_path):
    stepper = make_stepper(precision="float16")
    scaler = stepper.guard.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 64.0})
    stepper.step(make_batch(1))
    assert (stepper.look_back(), scaler.get_scale()) == (None, 64)
    weight = stepper.model.heads.classification[0].weight
    handle = weight.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    before = weight.clone()
    stepper.step(make_batch(2))
    handle.remove()
    assert (stepper.look_back(), scaler.get_scale()) == (None, 32)
    assert torch.equal(weight, before)
    save_state(tmp_path, stepper, {"pace": {}}, {})
    resumed = make_stepper(precision="float16")
    load_state(tmp_path, resumed)
    assert resumed.guard.scaler.get_scale() == 32
    # A loss that is not finite is no business of the scaler
    stepper.step(make_bad_batch(3))
    assert stepper.look_back()[0].number == 3
    assert scaler.get_scale() == 32
    # Nor is a scale that has nothing left
    scaler.update(0.5)
    stepper.step(make_batch(4))
    assert stepper.look_back()[0].scale == 0.5


def test_all_processes_judge_alike():
    class Other(Ranks):
        """Another process has met something that is not finite."""

        def mean(self, value):
            return value + torch.tensor([0.5, 0.0])

    stepper = make_stepper(ranks={"ranks": Other()})
    before = everything(stepper)
    stepper.step(make_batch())
    step, _ = stepper.look_back()
    assert step.bad
    assert math.isfinite(step.loss)
    assert_equal(everything(stepper), before)


@pytest.mark.slow
def test_a_batch_is_not_kept_for_longer_than_it_takes_to_judge_it():
    stepper = make_stepper(late=True)
    for number in range(1, 14):
        stepper.step(make_batch(number))
    assert len(stepper.guard._steps) == 2 * CHECK_EVERY + 1
