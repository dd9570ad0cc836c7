"""The loss ledger: what each object and image cost, epoch by epoch, however the run was interrupted."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from multibox.analysis.ledger import cut_epochs, read_ledger
from multibox.data.sprites import make_sprites
from multibox.errors import DataError
from multibox.models.build import build_model
from multibox.presets import SET, resolve_layers
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.run import RunOptions, prepare
from multibox.training.step import Stepper, anchors_at
from multibox.training.tally import Tally

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}
ARRAYS = ("epochs", "steps", "class_loss", "box_loss", "matched", "best_iou", "score", "background_loss")


def options(out, epochs=3, **changes):
    return RunOptions(preset="tinyssd", epochs=epochs, out=out, changes={**SMALL, **changes})


def same(one, other):
    return all(np.array_equal(getattr(one, n), getattr(other, n), equal_nan=n.endswith("loss")) for n in ARRAYS)


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved."""


def at_step(number, error):
    def watch(trainer, parts):
        if trainer.pace.step == number:
            raise error

    return watch


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sprites") / "data"
    make_sprites(folder, images=14, classes=2, objects=(1, 3), size=64)
    return folder


@pytest.fixture(scope="module")
def whole(sprites, tmp_path_factory):
    """A run that nothing interrupted, by the recipe that shows objects of other images."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = prepare(sprites, options(folder, **{"train.augmentation": "strong"}))
    trainer.fit()
    return trainer


MATCHERS = ("bipartite", "dual_max", "atss", "simota", "task_aligned")
LOSSES = ("cross_entropy", "focal", "sigmoid_focal", "sigmoid_cross_entropy", "quality_focal", "varifocal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("matcher", "loss"), [*((m, "cross_entropy") for m in MATCHERS), *(("bipartite", each) for each in LOSSES[1:])]
)
def test_costs_are_those_of_each_objects_anchors(tmp_path, squares, matcher, loss):
    """Summed in a loop over anchors, as the definition says."""
    changes = {"matching.matcher": matcher, "loss.classification": loss, "loss.negative_ratio": 3.0, **SMALL}
    changes["model.score"] = "sigmoid" if loss in LOSSES[2:] else "softmax"
    config, _ = resolve_layers("tinyssd", "default", [(SET, changes)])
    torch.manual_seed(0)
    stepper = Stepper(build_model(config, 3, 0), config, device="cpu", precision="float32")
    dataset = prepare(squares, options(tmp_path / "run")).training
    tally = Tally(tmp_path, dataset, config.model.score)
    seen = []
    stepper.watch = lambda *step: (seen.append(step), tally.add(*step))
    gt = torch.tensor([[[0.1, 0.1, 0.5, 0.6], [0.5, 0.5, 0.9, 0.8]], [[0.2, 0.3, 0.9, 0.9], [-1, -1, -1, -1]]])
    labels, rows = torch.tensor([[0, 2], [1, -1]]), torch.tensor([[4, 2], [7, -1]])
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(images, gt, labels, ["a", "b"], [Size(64, 64)] * 2, gt_rows=rows, image_rows=torch.tensor([3, 0]))
    stepper.step(batch)
    tally.gather()
    record, (outputs, targets, parts, _) = tally.record, seen[0]
    assert np.flatnonzero(~np.isnan(record.class_loss)).tolist() == [2, 4, 7]
    assert np.flatnonzero(~np.isnan(record.background_loss)).tolist() == [0, 3]
    anchors = anchors_at(config, outputs.feature_shapes, Size(64, 64), "cpu")
    logits = outputs.logits.detach()
    scores = logits.softmax(-1)[..., 1:] if config.model.score == "softmax" else logits.sigmoid()
    for image, place in ((0, 0), (0, 1), (1, 0)):
        own = [n for n in range(len(targets.gt)) if (targets.image[n], targets.gt[n]) == (image, place)]
        row = int(rows[image, place])
        assert record.matched[row] == len(own)
        box = gt[image, place]
        places = targets.anchor[own]
        overlaps = [iou_of(anchors[place], box) for place in places.tolist()]
        wanted = float(parts.class_losses[image, places].sum())
        assert float(record.class_loss[row]) == pytest.approx(wanted, rel=1e-3, abs=1e-6)
        assert float(record.box_loss[row]) == pytest.approx(float(parts.box_losses[own].sum()), rel=1e-3, abs=1e-6)
        assert record.best_iou[row] == pytest.approx(255 * max(overlaps, default=0), abs=0.51)
        best = float(scores[image, places, int(labels[image, place])].amax()) if own else 0
        assert record.score[row] == pytest.approx(255 * best, abs=0.51)
    for image, row in ((0, 3), (1, 0)):
        learned = parts.selected[image] & (targets.labels[image] == 0)
        wanted = float(parts.class_losses[image][learned].sum())
        assert float(record.background_loss[row]) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def iou_of(a, b):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.tolist(), b.tolist()
    shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
    return shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)


def test_the_last_time_an_object_is_shown_counts(tmp_path, squares):
    dataset = prepare(squares, options(tmp_path / "run")).training
    tally = Tally(tmp_path, dataset, "softmax")
    costs = np.array([[1, 2, 3], [4, 5, 6], [1, 2, 300], [0.5, 1.2, 0.1], [0, 1, 0.5]], np.float32)
    tally.record.note_objects(np.array([5, 2, 5]), costs)
    tally.record.note_objects(np.array([2]), costs[:, :1] * 1e6)
    assert (tally.record.class_loss[5], tally.record.box_loss[5], tally.record.matched[5]) == (3, 6, 255)
    assert (tally.record.best_iou[5], tally.record.score[5]) == (26, 128)
    # The largest number of 16 bits stands for all above
    assert tally.record.class_loss[2] == 65504


def test_a_run_leaves_its_ledger(sprites, whole):
    ledger, training = read_ledger(whole.folder), whole.training
    assert list(ledger.image_names) == list(training.image_names) and ledger.class_names == training.class_names
    assert np.array_equal(ledger.boxes_xyxy, training.boxes_xyxy) and np.array_equal(ledger.labels, training.labels)
    assert ledger.epochs.tolist() == [1, 2, 3] and ledger.steps[-1] == whole.pace.step
    shown = ~np.isnan(ledger.class_loss)
    assert shown.any(0).mean() > 0.9 and (ledger.matched[~shown] == 0).all()
    assert ledger.matched[shown].max() > 1 and ledger.best_iou[ledger.matched > 0].min() > 0
    assert ((~np.isnan(ledger.background_loss)).sum(1) == 12 // 4 * 4).all()
    size = (whole.folder / "ledger" / "epochs.bin").stat().st_size
    assert size == 3 * (16 + 7 * len(training.labels) + 2 * len(training))


@pytest.mark.parametrize(
    ("stops", "saving"),
    [
        pytest.param((2, 4), 1e-9, marks=pytest.mark.slow),
        ((5, 8), 1e9),
        pytest.param((3, 6, 9), 1e-9, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_ledger(sprites, whole, tmp_path, monkeypatch, stops, saving):
    """Whether its last save was a step or long ago, and in spite of what a kill left half written."""
    monkeypatch.setattr("multibox.training.trainer.SAVING_SHARE", 1e9)
    folder = tmp_path / "run"
    changes = {"train.augmentation": "strong", "train.validate_every": 2, "train.save_minutes": saving}
    trainer = prepare(sprites, options(folder, **changes))
    for stop in stops:
        trainer.reporter.step = at_step(stop, Killed())
        with pytest.raises(Killed):
            trainer.fit()
        with (folder / "ledger" / "epochs.bin").open("ab") as file:
            file.write(b"mbl1half a record")
        trainer = prepare(None, RunOptions(resume=folder))
    trainer.fit()
    assert same(read_ledger(folder), read_ledger(whole.folder))


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_epoch_keeps_its_first_half(sprites, whole, tmp_path):
    folder = tmp_path / "run"
    trainer = prepare(sprites, options(folder, **{"train.augmentation": "strong"}))
    trainer.reporter.step = lambda trainer, parts: trainer.pace.step == 5 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert len(read_ledger(folder).epochs) == 1
    prepare(None, RunOptions(resume=folder)).fit()
    assert same(read_ledger(folder), read_ledger(whole.folder))


DAMAGES = ("no records", "zeros", "no objects", "empty objects", "no folder")


@pytest.mark.parametrize(
    "damage", ["zeros", *(pytest.param(each, marks=pytest.mark.slow) for each in DAMAGES if each != "zeros")]
)
def test_a_power_cut_leaves_a_run_that_goes_on(sprites, tmp_path, damage):
    """The state may be older or newer than what is left of the ledger."""
    folder = tmp_path / "run"
    trainer = prepare(sprites, options(folder))
    trainer.reporter.step = at_step(8, Killed())
    with pytest.raises(Killed):
        trainer.fit()
    ledger = folder / "ledger"
    before = (ledger / "epochs.bin").read_bytes()
    if damage == "no records":
        (ledger / "epochs.bin").unlink()
    elif damage == "zeros":
        (ledger / "epochs.bin").write_bytes(before[: len(before) // 2] + bytes(len(before) // 2))
    elif damage == "no folder":
        shutil.rmtree(ledger)
    else:
        (ledger / "objects.safetensors").unlink()
        if damage == "empty objects":
            (ledger / "objects.safetensors").write_bytes(b"")
    prepare(None, RunOptions(resume=folder)).fit()
    assert read_ledger(folder).epochs.tolist() == {
        "no records": [3], "zeros": [1, 3], "no folder": [3]
    }.get(damage, [1, 2, 3])  # fmt: skip


def test_a_ledger_that_cannot_be_read_is_named(whole, tmp_path):
    with pytest.raises(DataError, match="has no loss ledger"):
        read_ledger(tmp_path)
    run = shutil.copytree(whole.folder, tmp_path / "run")
    (run / "ledger" / "objects.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        read_ledger(run)
    shutil.copytree(whole.folder, run, dirs_exist_ok=True)
    assert cut_epochs(run, 99, whole.tally.record.block.size) == 3
    cut_epochs(run, 0, whole.tally.record.block.size)
    assert read_ledger(run).class_loss.shape == (0, len(whole.training.labels))


def test_reading_needs_no_torch(whole):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from multibox.analysis.ledger import read_ledger\n"
        f"print(read_ledger(Path({str(whole.folder)!r})).epochs.tolist())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[1, 2, 3]"
