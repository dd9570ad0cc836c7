"""The calibrated copy: exact logits of every head, the same reports, and a smaller error when it detects anew."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.analysis.calibration import logit, warmed
from multibox.analysis.drift import summarize
from multibox.analysis.temperature import calibrated_copy, check_calibrated, write_calibrated
from multibox.api import create
from multibox.errors import ConfigError, DataError, WeightsError
from multibox.inference.detector import open_checkpoint
from multibox.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from multibox.structures import Detections, Sample, Size, pack


def checkpoint_of(preset, names=("red", "blue")):
    detector = create(preset, names)
    config = detector.config.updated({"post.thresholds": (0.4,) * len(names)})
    notes = {"val_map50": 0.5}
    return detector, Checkpoint(detector.model.state_dict(), config, tuple(names), notes, license="MIT", merge=("a=b",))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tinyssd", "ssdlite320-mobilenetv2", "rfb320-face", "multibox-s"])
def test_logits_of_every_kind_of_head_are_divided_exactly(preset):
    detector, checkpoint = checkpoint_of(preset)
    copy = calibrated_copy(detector.model, checkpoint, 2.5)
    model = detector.model.eval()
    pixels = torch.randint(0, 255, (2, 3, *detector.config.model.input_size), dtype=torch.uint8)
    with torch.inference_mode():
        before = model(pixels)
        model.load_state_dict(dict(copy.state))
        after = model(pixels)
    torch.testing.assert_close(after.logits, before.logits / 2.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.offsets, before.offsets)
    np.testing.assert_allclose(logit(np.array(copy.config.post.thresholds)), logit(np.array([0.4, 0.4])) / 2.5)
    assert copy.config.post.score_threshold > checkpoint.config.post.score_threshold
    assert (copy.license, copy.merge, copy.class_names) == ("MIT", ("a=b",), ("red", "blue"))


def test_the_statistics_of_scores_follow():
    detector, checkpoint = checkpoint_of("tinyssd")
    scores = np.random.default_rng(0).beta(2, 2, 4000)
    trained = {"score": summarize(scores), "width": summarize([3.0])}
    copy = calibrated_copy(detector.model, replace(checkpoint, statistics=trained), 0.5)
    assert copy.statistics["width"] == trained["width"]
    exact, own = summarize(warmed(scores, 0.5)), copy.statistics["score"]
    assert own["count"] == 4000
    np.testing.assert_allclose([own["mean"], own["sd"]], [exact["mean"], exact["sd"]], atol=0.02)
    np.testing.assert_allclose(own["quantiles"], exact["quantiles"], atol=0.01)


def guesses(temperature):
    """Images with one object each, detections whose scores are too certain by a temperature, and which are right."""
    random = np.random.default_rng(0)
    samples, found = [], []
    for number in range(150):
        gt = np.array([[10.0, 10.0, 60.0, 60.0]])
        none, label = np.zeros(1, np.bool_), np.array([number % 2])
        samples.append(Sample(f"{number}", Path(f"{number}"), gt, label, none, none, Size(100, 100)))
        honest = np.array([random.beta(1, 1), 0.03, 0.02]).clip(0.02, 0.98)
        right = random.random(3) < honest
        boxes = np.where(right[:1, None], gt, np.array([[70, 70, 90, 95]]))
        far = np.array([[65.0, 5, 95, 40], [5.0, 65, 40, 95]])
        scores = 1 / (1 + np.exp(-logit(honest) * temperature))
        order = np.argsort(-scores)
        every = np.concatenate([boxes, far])[order].astype(np.float32)
        found.append(Detections(every, scores[order].astype(np.float32), np.repeat(label, 3), ("red", "blue")))
    return pack(samples, root=Path("data"), format="", split="val", class_names=("red", "blue")), found


def changed(found, temperature):
    return [Detections(one.boxes, warmed(one.scores, temperature).astype(np.float32), one.labels, one.names)
            for one in found]  # fmt: skip


@pytest.fixture
def model(tmp_path):
    _, checkpoint = checkpoint_of("tinyssd")
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    return tmp_path / "model.safetensors"


def test_the_copy_reports_the_same_and_says_what_it_is(model, tmp_path):
    dataset, found = guesses(3.0)
    asked = []

    def predict(detector):
        # What the network would do with its scores
        own = load_checkpoint(model).state["heads.classification.0.bias"]
        temperature = float((own / detector.model.state_dict()["heads.classification.0.bias"]).nanmedian())
        asked.append(temperature)
        return changed(found, temperature)

    made = write_calibrated(model, tmp_path / "new.safetensors", dataset, found, predict)
    copy = load_checkpoint(tmp_path / "new.safetensors")
    assert asked == [pytest.approx(made.temperature)]  # what the copy detects asks for no other temperature
    assert made.temperature == pytest.approx(3.0, rel=0.3)
    assert made.after.ece < made.before.ece
    assert made.after.ap == pytest.approx(made.before.ap)
    notes = copy.metrics["calibration"]
    assert (notes["temperature"], notes["ece"], notes["images"]) == (made.temperature, made.after.ece, 150)
    assert copy.metrics["val_map50"] == 0.5
    again = changed(found, made.temperature)
    for label, lowest in enumerate(copy.config.post.thresholds):
        old = sum(int((one.scores[one.labels == label] >= np.float32(0.4)).sum()) for one in found)
        new = sum(int((one.scores[one.labels == label] >= np.float32(lowest)).sum()) for one in again)
        assert old == new > 0
    assert open_checkpoint(tmp_path / "new.safetensors").thresholds == copy.config.post.thresholds


def test_too_few_detections_leave_no_file(model, tmp_path):
    dataset, found = guesses(2.0)
    few = [one[:0] for one in found]
    with pytest.raises(DataError, match="too few"):
        write_calibrated(model, tmp_path / "new.safetensors", dataset, few, lambda _: few)
    assert not (tmp_path / "new.safetensors").exists()


def test_only_a_checkpoint_has_a_calibrated_copy(tmp_path, model):
    assert check_calibrated(model, tmp_path / "new.safetensors") == model
    assert check_calibrated("coco", tmp_path / "new.safetensors").suffix == ".safetensors"
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        check_calibrated(model, tmp_path / "new.onnx")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ConfigError, match="checkpoint or run folder"):
        check_calibrated(tmp_path / "model.onnx", tmp_path / "new.safetensors")
    with pytest.raises(WeightsError):
        check_calibrated(tmp_path / "none.safetensors", tmp_path / "new.safetensors")
