"""Settings that follow the data: input size, learning rate, batch size."""

import re

import pytest
import torch

from multibox import create
from multibox.config import Config
from multibox.data.formats import open_dataset
from multibox.errors import ConfigError
from multibox.models.build import build_model
from multibox.models.checkpoint import Checkpoint, save_checkpoint
from multibox.presets import RECIPES, resolve
from multibox.training import adapting
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 3), out=out, changes={**SMALL, **changes})


def test_a_range_test_leaves_no_trace(squares, monkeypatch):
    monkeypatch.setattr(adapting, "STEPS", 5)
    dataset = open_dataset(squares, "train")
    config = resolve("tinyssd", changes={**SMALL, "train.lr": "auto", "train.batch_size": "4", "anchors.fit": "none"})
    model = build_model(config, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    rates, losses = adapting.sweep_rates(model, config, dataset, device="cpu", precision="float32")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert len(rates) == len(losses) == 5
    assert rates == pytest.approx([1e-5, 10**-3.5, 1e-2, 10**-0.5, 10])


def first_loss(data, out, **changes):
    told, losses = [], []
    trainer = prepare(data, options(out, epochs=1, **changes), Reporter(told.append))
    trainer.reporter.step = lambda trainer, parts: losses.append(parts.total.item())
    trainer.fit()
    return trainer, told, losses


@pytest.mark.slow
def test_an_automatic_rate_is_a_number_in_a_run_that_starts_as_if_it_were_given(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "STEPS", 30)
    trainer, told, losses = first_loss(squares, tmp_path / "auto", **{"train.lr": "auto"})
    rate = trainer.config.train.lr
    assert 1e-5 < rate < 1
    assert any(line.startswith(f"learning rate {rate:g}") for line in told)
    assert Config.from_toml((tmp_path / "auto" / "config.toml").read_text()).train.lr == rate
    _, _, given = first_loss(squares, tmp_path / "given", **{"train.lr": rate})
    assert losses == given


def test_the_rate_has_nine_tenths_of_the_fall():
    rates = [10.0**i for i in range(-30, 0)]
    # Even, then ten steps down, then even. Nine tenths of the fall are done below 1.45; the mean of seven is
    # (4 + 3 + 2 + 1 + 3 * 0.5) / 7 = 1.64 at place 19 and (3 + 2 + 1 + 4 * 0.5) / 7 = 1.14 at the next
    losses = [10.0] * 10 + [10.0 - i for i in range(10)] + [0.5] * 10
    assert adapting.choose_rate(rates, losses) == rates[20]
    for flat in ([10.0] * 30, [], [1.0, 2.0], [1.0 + 0.1 * i for i in range(30)]):
        with pytest.raises(ConfigError, match="fell at no learning rate"):
            adapting.choose_rate(rates[: len(flat)], flat)
    assert adapting.gets_worse([1.0] * 20 + [3.0] * 7)
    assert not adapting.gets_worse([1.0] * 20 + [3.0])
    assert not adapting.gets_worse([1.0, 9.0, 9.0])


@pytest.mark.slow
def test_an_automatic_batch_size_is_a_number_in_the_run(squares, tmp_path):
    trainer, told, _ = first_loss(squares, tmp_path / "run", **{"train.batch_size": "auto"})
    assert trainer.config.train.batch_size == 2
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()) == trainer.config
    assert any(line.startswith("batch size 2: at most a quarter of 12") for line in told)


def shrunken(squares):
    """Make the objects of the data tiny."""
    for path in (squares / "Annotations").iterdir():
        text = re.sub(r"<xmax>\d+", "<xmax>12", re.sub(r"<xmin>\d+", "<xmin>4", path.read_text()))
        path.write_text(re.sub(r"<ymax>\d+", "<ymax>12", re.sub(r"<ymin>\d+", "<ymin>4", text)))


@pytest.mark.parametrize(
    ("tiny", "changes", "size"),
    [
        (True, {}, (128, 128)),  # 8 of 96 pixels are 8 at 96: twice that is 16, at most 128
        (False, {}, (96, 96)),
        (True, {"model.input_size": [64, 64]}, (64, 64)),
        (True, {"train.largest_input": "none"}, (96, 96)),
    ],
)
def test_the_input_grows_where_objects_are_small_at_it(squares, tmp_path, monkeypatch, tiny, changes, size):
    if tiny:
        shrunken(squares)
    small = {"model.input_size": (96, 96), "train.largest_input": 128}
    monkeypatch.setitem(RECIPES["default"].tuning, "tinyssd", small)
    told = []
    asked = RunOptions(preset="tinyssd", out=tmp_path / "run", epochs=1, changes={"train.batch_size": 4, **changes})
    trainer = prepare(squares, asked, Reporter(told.append))
    assert trainer.config.model.input_size == size
    assert any("so it is enlarged to 128x128" in line for line in told) == (size == (128, 128))
    trainer.hold.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "changes", "rate"),
    [(0.8, {}, 5e-5), (0.1, {}, 2e-3), (None, {}, 2e-3), (0.8, {"train.lr": 0.01}, 0.01)],
)
def test_weights_that_find_everything_already_learn_at_a_low_rate(squares, tmp_path, monkeypatch, score, changes, rate):
    known = create("ssd300-mobilenetv1", ["red", "blue"])
    save_checkpoint(tmp_path / "known.safetensors", Checkpoint(known.model.state_dict(), known.config, known.names))
    monkeypatch.setattr("multibox.training.adapting.Validation.score", lambda *_: {"val_loss": 1.0, "val_map50": score})
    told = []
    asked = RunOptions(
        weights=str(tmp_path / "known.safetensors"), out=tmp_path / "run", epochs=1, changes=SMALL | changes
    )
    trainer = prepare(squares, asked, Reporter(told.append))
    assert trainer.known
    assert trainer.config.train.lr == rate
    assert any("learn at a low rate" in line for line in told) == (rate == 5e-5)
    trainer.hold.close()
