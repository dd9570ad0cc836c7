"""Compiled steps: when they are tried, what is told, that nothing else changes, and that they compute the same."""

import copy
import time

import pytest
import torch
from torch import nn

from multibox.models.build import build_model
from multibox.models.ssd import SSD, Heads
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training import compiling
from multibox.training.compiling import CompiledNetwork, CompiledWhole, Compiling
from multibox.training.pacing import Pace
from multibox.training.step import Stepper, compute_loss
from multibox.training.stopping import EndNow

HOUR = 3600.0


def some_batch(images=2, objects=3):
    generator = torch.Generator().manual_seed(objects)
    pixels = torch.randint(0, 256, (images, 64, 64, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    corner = torch.rand(images, objects, 2, generator=generator) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(images, objects, 2, generator=generator)], 2)
    return Batch(pixels, boxes, torch.zeros(images, objects).long(), ["a"] * images, [Size(64, 64)] * images)


def choose(monkeypatch, seconds, left=10 * HOUR, measured=True, **changes):
    """Return the stepper, the sentences told, and what `choose` returned where `seconds` is what `measure` finds."""
    config = resolve("tinyssd", changes={"model.input_size": [64, 64], "anchors.fit": "none", **changes})
    stepper = Stepper(build_model(config, 2, 0).train(), config, device="cpu", precision="float32")
    told = []
    pace = Pace(seconds=left, clock=lambda: 0.0)
    pace.durations.extend([0.1] * 16 * measured)

    def found(stepper, batch, compute):
        if isinstance(seconds, BaseException):
            raise seconds
        return seconds

    monkeypatch.setattr(compiling, "measure", found)
    choice = Compiling(config, told.append)
    return stepper, told, choice.choose(stepper, some_batch(), pace), choice.choose(stepper, some_batch(), pace)


def test_a_faster_step_is_taken_once_and_its_cost_and_gain_are_told(monkeypatch):
    stepper, told, first, second = choose(monkeypatch, (74.0, 0.4, 0.3))
    assert isinstance(stepper.loss_of, CompiledNetwork)
    assert (first, second) == (True, False)
    assert told == [
        "torch.compile of the network took 1 min 14 s; a step takes 300 instead of 400 ms from now on, "
        "which saves about 2 h 30 min of the run"
    ]


def test_a_step_that_is_hardly_faster_stays_as_it_was(monkeypatch):
    stepper, told, *_ = choose(monkeypatch, (74.0, 0.4, 0.395))
    assert stepper.loss_of is compute_loss
    assert len(told) == 1
    assert "395 instead of 400 ms, so steps are not compiled; --set train.compile=off" in told[0]


@pytest.mark.slow
def test_what_is_asked_for_is_taken_even_if_it_is_slower(monkeypatch):
    for asked, kind in (("network", CompiledNetwork), ("whole", CompiledWhole)):
        changes = {"train.compile": asked, "left": 60.0, "measured": False}
        stepper, told, *_ = choose(monkeypatch, (9.0, 0.4, 0.5), **changes)
        assert isinstance(stepper.loss_of, kind)
        assert told[0].endswith("500 instead of 400 ms from now on")


@pytest.mark.parametrize(
    "changes",
    [{"train.compile": "off"}, {"left": 2.9 * HOUR}, {"train.scales": [0.5, 1.5]}, {"measured": False}],
    ids=str,
)
def test_nothing_is_tried_in_short_runs_for_several_sizes_before_steps_are_measured_or_if_off(monkeypatch, changes):
    stepper, told, first, _ = choose(monkeypatch, AssertionError("measured"), **changes)
    assert (told, first) == ([], False)
    assert stepper.loss_of is compute_loss


def test_a_compiler_that_fails_leaves_plain_steps_and_says_so_in_one_sentence(monkeypatch):
    stepper, told, *_ = choose(monkeypatch, RuntimeError("No working C++ compiler found\nin any place"))
    assert stepper.loss_of is compute_loss
    assert len(told) == 1
    assert "failed (RuntimeError: No working C++ compiler found" in told[0]
    assert "\n" not in told[0]


def test_ctrl_c_while_it_compiles_ends_the_run_and_is_no_failure_of_the_compiler(monkeypatch):
    with pytest.raises(EndNow):
        choose(monkeypatch, EndNow())


@pytest.mark.slow
def test_measuring_compares_medians_and_changes_nothing(monkeypatch):
    config = resolve("tinyssd", changes={"model.input_size": [64, 64], "anchors.fit": "none"})
    stepper = Stepper(build_model(config, 2, 0).train(), config, device="cpu", precision="float32")
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    state = torch.get_rng_state()

    def slow(*given):
        torch.rand(1)
        time.sleep(0.1)
        return compute_loss(*given)

    cost, plain, fast = compiling.measure(stepper, some_batch(), slow)
    assert cost > 0.3
    assert fast > plain + 0.05
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in stepper.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in stepper.model.parameters())


def test_another_network_is_compiled_anew_and_the_same_one_is_not(monkeypatch):
    seen = []
    monkeypatch.setattr(compiling, "compiled", lambda network: seen.append(network) or network)
    config = resolve("tinyssd", changes={"model.input_size": [64, 64], "anchors.fit": "none"})
    one, two = (build_model(config, 2, 0) for _ in range(2))
    compute = CompiledNetwork()
    for network in (one, one, two):
        compute(network, some_batch(), config, "float32")
    assert seen == [one, two]


def test_the_compilers_own_check_of_threads_is_left_out():
    class Guard:
        def __init__(self, guard_type):
            self.guard_type = guard_type

    kinds = [Guard(kind) for kind in ("TENSOR_MATCH", "GLOBAL_STATE", "GRAD_MODE")]
    assert compiling._all_but_threads(kinds) == [True, False, True]


class OneMap(nn.Module):
    """A backbone so small that a compiler is quick: one map of 8x8."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images):
        return [self.layers(images)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_learn_what_plain_steps_learn():
    threads = torch.get_num_threads()
    changes = {"model.input_size": [64, 64], "anchors.fit": "none", "train.optimizer": "sgd", "train.lr": 0.01}
    config = resolve("tinyssd", changes=changes | {"anchors.sizes": [[0.3, 0.4]], "anchors.ratios": [[1, 2, 0.5]]})
    model = SSD(OneMap(), Heads("conv3x3", [8], [4], 3), config.model.mean, config.model.std)
    steppers = [Stepper(copy.deepcopy(model), config, device="cpu", precision="float32") for _ in range(2)]
    steppers[1].loss_of = CompiledNetwork()
    try:
        for objects in (3, 4, 5):
            # Neither other numbers of objects nor of threads may change the result
            torch.set_num_threads(1 + objects % 2)
            losses = [stepper.step(some_batch(objects=objects)) for stepper in steppers]
            assert losses[1].total.item() == pytest.approx(losses[0].total.item(), rel=1e-4)
            assert losses[1].positives.item() == losses[0].positives.item()
    finally:
        torch.set_num_threads(threads)
        compiling.release_compiler()
    weights = [stepper.model.state_dict() for stepper in steppers]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert steppers[1].means.row() == pytest.approx(steppers[0].means.row(), rel=1e-3)
