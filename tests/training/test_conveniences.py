import signal

import pytest
import torch

from multibox.config import Config
from multibox.data.formats import open_dataset
from multibox.errors import ConfigError
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training import adapting
from multibox.training.optimizer import learning_rate
from multibox.training.pacing import out_of_patience
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.step import Stepper, anchors_at, draw_size, largest_size, resize_batch

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, epochs=3, **changes):
    return RunOptions(preset="tinyssd", epochs=epochs, out=out, changes={**SMALL, **changes})


def stopped_at(step):
    def watch(trainer, parts):
        if trainer.pace.step == step:
            signal.raise_signal(signal.SIGINT)

    return watch


def assert_equal_ends(whole, parts):
    for one, other in ((whole.model, parts.model), (whole.weights(), parts.weights())):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "changes",
    [
        {"train.freeze": "backbone.*", "train.freeze_until": 0.5},
        pytest.param(
            {"train.freeze": "backbone.*", "train.freeze_until": 0.5, "train.optimizer": "sgd", "train.momentum": 0.9},
            marks=pytest.mark.slow,
        ),
        {"train.scales": [1.0, 2.0], "train.sampling": "balanced"},
    ],
)
def test_resumed_equals_uninterrupted(squares, tmp_path, changes):
    whole = prepare(squares, options(tmp_path / "whole", epochs=2, **changes))
    whole.fit()
    assert whole.pace.total == 6
    # The body wakes at step 3
    trainer = prepare(squares, options(tmp_path / "parts", epochs=2, **changes))
    for stop in (2, 3, 4):
        trainer.reporter.step = stopped_at(stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.pace.step == stop
        trainer = prepare(squares, RunOptions(resume=tmp_path / "parts"))
    trainer.fit()
    assert_equal_ends(whole.stepper, trainer.stepper)


def test_frozen_parts_wake_at_their_share_of_the_run(squares, tmp_path):
    changes = {"train.freeze": "backbone.*", "train.freeze_until": 0.5, "train.ema": "none"}
    trainer = prepare(squares, options(tmp_path / "run", epochs=2, **changes))
    seen = []

    def watch(trainer, parts):
        body = {n: t.clone() for n, t in trainer.stepper.model.backbone.state_dict().items()}
        seen.append({name: tensor for name, tensor in body.items() if tensor.is_floating_point()})

    trainer.reporter.step = watch
    trainer.fit()
    # Steps 0, 1, 2 of 6 leave the body and its norms' statistics alone
    assert all(torch.equal(seen[0][name], seen[2][name]) for name in seen[0])
    changed = [name for name in seen[0] if not torch.equal(seen[2][name], seen[3][name])]
    assert any("running_mean" in name for name in changed)
    assert any(name.endswith(".weight") for name in changed)


@pytest.mark.parametrize(
    ("scores", "patience", "ended"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.3], 1, True),  # as good is not better
        ([0.3, 0.2, 0.4, 0.1], 2, False),
        ([0.3, 0.2, 0.25], 2, True),
        ([0.3, None, None], 2, False),  # not measured
        ([0.3, 0.2, 0.1], "none", False),
        ([], 1, False),
    ],
)
def test_patience_counts_validations_without_a_better_score(scores, patience, ended):
    rows = [{"epoch": i, "val_map50": score} for i, score in enumerate(scores)]
    rows.insert(1, {"epoch": 9})
    assert out_of_patience(rows, patience) is ended


@pytest.mark.slow
def test_a_run_out_of_patience_says_so_and_is_finished(squares, tmp_path):
    changes = {"train.patience": 2, "train.validate_every": 1, "train.lr": 1e-12, "train.ema": "none"}
    told = []
    trainer = prepare(squares, options(tmp_path / "run", epochs=9, **changes), Reporter(told.append))
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    trainer.validation.score = lambda model: {"val_loss": 1.0, "val_map50": next(scores)}
    rates = []
    trainer.reporter.row = lambda trainer, row: rates.append(row["learning_rate"])
    trainer.fit()
    assert trainer.pace.step == 4 * 3
    assert "ended after step 12 of 27" in told[-1]
    assert "mAP@0.5 0.500" in told[-1]
    assert "schedule was not shortened" in told[-1]
    assert rates == [learning_rate(step, 27, trainer.config.train) for step in (2, 5, 8, 11)]
    with pytest.raises(ConfigError, match="is finished, nothing is left to train; give more --minutes or --epochs"):
        prepare(None, RunOptions(resume=tmp_path / "run"))


def test_sizes_are_multiples_of_32_and_a_function_of_the_step():
    config = Config().updated({"model.input_size": [300, 200], "train.scales": [0.5, 1.5]})
    sizes = [draw_size(config, step) for step in range(500)]
    assert sizes == [draw_size(config, step) for step in range(500)]
    assert sizes != [draw_size(config.updated({"train.seed": 1}), step) for step in range(500)]
    assert {side % 32 for size in sizes for side in size} == {0}
    assert {h for h, _ in sizes} == set(range(160, 449, 32))
    assert largest_size(config) == (448, 288)
    assert all(abs(h / 300 - w / 200) < 32 / 300 / 2 + 32 / 200 / 2 for h, w in sizes)
    assert draw_size(Config().updated({"model.input_size": [300, 200]}), 3) == (300, 200)


def test_scales_that_are_no_range_are_refused(squares, tmp_path):
    for wrong, words in (([1.5, 0.5], "the smallest and the largest"), ([0, 1], "2 numbers above 0")):
        with pytest.raises(ConfigError, match=f"train.scales=.*{words}"):
            prepare(squares, options(tmp_path / str(wrong), **{"train.scales": wrong}))


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
    anchors = anchors_at(config, larger, (384, 384), "cpu")
    sides = lambda boxes: {tuple(round(v, 5) for v in row) for row in (boxes[:, 2:] - boxes[:, :2]).tolist()}  # noqa: E731
    assert sides(anchors) == sides(own)
    # 48 steps of 8 / 300 would end outside of the image
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.min() == pytest.approx(0.5 / 48)
    assert centres.max() == pytest.approx(1 - 0.5 / 48)


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


def test_an_automatic_batch_size_is_a_number_in_the_run(squares, tmp_path):
    trainer, told, _ = first_loss(squares, tmp_path / "run", **{"train.batch_size": "auto"})
    assert trainer.config.train.batch_size == 2
    assert Config.from_toml((tmp_path / "run" / "config.toml").read_text()) == trainer.config
    assert any(line.startswith("batch size 2: at most a quarter of 12") for line in told)


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
