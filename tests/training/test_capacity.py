from pathlib import Path

import pytest
import torch

from multibox.errors import ConfigError
from multibox.limits import read_kilobytes
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.training import capacity
from multibox.training.capacity import check_memory, choose_batch_size


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


@pytest.mark.slow
def test_a_batch_that_fits_is_named(monkeypatch):
    monkeypatch.setattr(capacity, "available_memory", lambda: 2 << 30)
    model, config = made("multibox-coco", train__batch_size=64)
    with pytest.raises(ConfigError, match=r"--set train\.accumulate=\d, --set train\.batch_size=1\d, or") as error:
        check_memory(model, config, device="cpu", precision="float32")
    for setting in ("accumulate", "batch_size"):
        number = int(str(error.value).split(f"{setting}=")[1].split(",")[0])
        check_memory(model, config.updated({f"train.{setting}": number}), device="cpu", precision="float32")


def test_a_batch_in_parts_takes_the_memory_of_a_part(monkeypatch):
    monkeypatch.setattr(capacity, "available_memory", lambda: 200)
    monkeypatch.setattr(capacity, "_estimate", lambda *_: (100, 10))
    model, config = made("tinyssd", train__accumulate=2)
    # 100 + 8 / 2 x 10 of the 0.7 x 200 that steps may take; in one part only 4 images fit
    assert choose_batch_size(model, config, range(4000), device="cpu", precision="float32")[0] == 8
    assert [capacity.at_once(images, config) for images in (1, 2, 3, 4)] == [1, 1, 2, 2]


def test_usual_runs_are_not_measured_and_silence_refuses_nothing(monkeypatch):
    model, config = made("tinyssd")
    monkeypatch.setattr(capacity, "_estimate", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(capacity, "available_memory", lambda: 64 << 30)
    check_memory(model, config, device="cpu", precision="float32")
    monkeypatch.setattr(capacity, "available_memory", lambda: None)
    check_memory(model, config.updated({"model.input_size": [5000, 5000]}), device="cpu", precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.slow
def test_the_estimate_is_near_what_a_step_takes(precision):
    status, images = Path("/proc/self/status"), 4
    if read_kilobytes(status, "VmHWM:") is None:
        pytest.skip("needs Linux")
    model, config = made("tinyssd", model__input_size=[512, 512])
    _, per_image = capacity._estimate(model, config, precision)
    step = capacity._make_step(model, config, "cpu", precision)
    # 5 sets the mark of the most memory back to what is held now
    Path("/proc/self/clear_refs").write_text("5")
    held = read_kilobytes(status, "VmRSS:")
    step(images)
    # What the process held and had freed before may serve the step
    assert (read_kilobytes(status, "VmHWM:") - held) / images < 1.3 * per_image


@pytest.mark.parametrize(
    ("images", "free", "size", "reason"),
    [
        (4000, 1000, 32, "the most for cpu"),
        (100, 1000, 16, "a quarter of 100"),
        (4000, 200, 4, "no room for 8"),  # 100 + 4 x 10 of the 0.7 x 200 that steps may take
        (4000, 0, 2, "no room for 4"),
        (3, 1000, 2, "a quarter of 3"),
        (4000, None, 32, "could not be measured"),
    ],
)
def test_batch_size_and_its_reason(monkeypatch, images, free, size, reason):
    monkeypatch.setattr(capacity, "available_memory", lambda: free)
    monkeypatch.setattr(capacity, "_estimate", lambda *_: (100, 10))
    model, config = made("tinyssd")
    found, why = choose_batch_size(model, config, range(images), device="cpu", precision="float32")
    assert (found, reason in why) == (size, True)


def test_on_a_gpu_sizes_double_until_memory_runs_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    tried = []

    def step(images):
        tried.append(images)
        if images > 20:
            raise torch.OutOfMemoryError("out")

    assert capacity._largest_that_runs(step, 128) == 16
    assert max(tried) == 32
    assert capacity._largest_that_runs(lambda images: None, 100) == 64
