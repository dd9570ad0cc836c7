import math

import pytest
import torch

from multibox.errors import ConfigError
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.training import capacity
from multibox.training.capacity import check_memory


def made(preset, **changes):
    config = resolve(preset, "default", {key.replace("__", "."): value for key, value in changes.items()})
    return build_model(config, 3), config


def test_an_input_that_memory_does_not_hold_is_refused_with_one_that_fits(monkeypatch):
    monkeypatch.setattr(capacity, "available_memory", lambda: 8 << 30)
    model, config = made("tinyssd", model__input_size=[5000, 4000], train__batch_size=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"\[5000, 4000\] with 16 images .* about 2\d\d GiB .* 8 GiB") as error:
        check_memory(model, config, device="cpu", precision="float32")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fits = eval(str(error.value).rsplit("=", 1)[1])
    assert all(side % 32 == 0 for side in fits)
    assert fits[0] > fits[1] > 500
    check_memory(model, config.updated({"model.input_size": fits}), device="cpu", precision="float32")


def test_a_batch_that_fits_is_named(monkeypatch):
    monkeypatch.setattr(capacity, "available_memory", lambda: 2 << 30)
    model, config = made("multibox-coco", train__batch_size=64)
    with pytest.raises(ConfigError, match=r"--set train\.batch_size=1\d, or") as error:
        check_memory(model, config, device="cpu", precision="float32")
    size = int(str(error.value).split("batch_size=")[1].split(",")[0])
    check_memory(model, config.updated({"train.batch_size": size}), device="cpu", precision="float32")


def test_usual_runs_are_not_measured_and_silence_refuses_nothing(monkeypatch):
    model, config = made("tinyssd")
    monkeypatch.setattr(capacity, "_bytes_per_pixel", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(capacity, "available_memory", lambda: 64 << 30)
    check_memory(model, config, device="cpu", precision="float32")
    monkeypatch.setattr(capacity, "available_memory", lambda: None)
    check_memory(model, config.updated({"model.input_size": [5000, 5000]}), device="cpu", precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_estimate_is_near_what_a_step_takes(precision):
    model, config = made("tinyssd", model__input_size=[512, 512])
    held = capacity._held("VmRSS:")
    if held is None:
        pytest.skip("needs Linux")
    each = capacity._bytes_per_pixel(model, config, precision)
    assert each is not None
    step = capacity._make_step(model, config, "cpu", precision)
    capacity._forget_peak()
    held = capacity._held("VmRSS:")
    step(4)
    took = capacity._held("VmHWM:") - held
    # What the process held and had freed before may serve the step
    assert took / (4 * math.prod(config.model.input_size)) < 1.3 * each
