"""The scripts that make the built-in models: they give the files of the package, thresholds included."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.builtin import FOLDER, about, find_model
from multibox.evaluation.table import columns
from multibox.inference.detector import open_checkpoint
from multibox.models.checkpoint import load_checkpoint
from multibox.structures import Detections, Sample

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import builtin_thresholds
    import make_builtin

    yield make_builtin, builtin_thresholds
    for name in ("make_builtin", "builtin_thresholds"):
        sys.modules.pop(name, None)


def table_of(scores, right, names):
    """Return detections by class, of which some find an object each; one object more of each class is missed."""
    found, samples = [], []
    for label, (some, hits) in enumerate(zip(scores, right, strict=True)):
        for score, hit in zip([*some, None], [*hits, True], strict=True):
            boxes = np.array([[0, 0, 10, 10]], np.float32)
            kept = np.array([] if score is None else [score], np.float32)
            labels = np.full(1, label)
            found.append(Detections(boxes[: len(kept)], kept, labels[: len(kept)], names))
            flags = np.zeros(int(hit), bool)
            samples.append(Sample("a", Path("a"), boxes[: int(hit)], labels[: int(hit)], flags, flags))
    return columns(found, samples, names)


def test_classes_with_enough_objects_get_their_own_threshold_and_the_others_share_one(scripts):
    _, thresholds = scripts
    table = table_of(
        [[0.9, 0.8, 0.7, 0.2], [0.6, 0.5], [0.55, 0.4]],
        [[True, True, True, False], [True, False], [True, False]],
        ("many", "few", "fewer"),
    )
    np.testing.assert_allclose(thresholds.choose(table, 4), [0.7, 0.55, 0.55], rtol=1e-6)
    np.testing.assert_allclose(thresholds.choose(table, 2), [0.7, 0.6, 0.55], rtol=1e-6)
    found = thresholds.measure(table, np.array([0.69, 0.5, 0.5]))
    assert (found.boxes, found.precision, found.recall) == (6, pytest.approx(5 / 6), pytest.approx(5 / 8))
    assert found.f1 == pytest.approx(10 / 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco", "face"])
def test_the_package_holds_what_the_script_makes(name, scripts, shared, tmp_path):
    make_builtin, _ = scripts
    make_builtin.make(name, tmp_path)
    made, held = (load_checkpoint(folder / f"{name}.safetensors") for folder in (tmp_path, FOLDER))
    assert made.class_names == held.class_names
    assert (made.license, made.source) == (held.license, held.source)
    np.testing.assert_allclose(made.config.post.thresholds, held.config.post.thresholds, atol=0.002)
    # The files are older than `train.sampling=auto`
    same = {"post.thresholds": (), "train.sampling": "uniform"}
    assert made.config.updated(same) == held.config.updated(same)
    assert all(torch.equal(value, held.state[key]) for key, value in made.state.items())
    sizes = [(folder / f"{name}.onnx").stat().st_size for folder in (tmp_path, FOLDER)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.slow
def test_thresholds_make_zero_shot_results_readable(scripts, shared):
    """Measured: of 1581 boxes on VOC's 100 images 14 % are right with 0.3 for every class, of 273 59 % with ours."""
    _, thresholds = scripts
    detector = open_checkpoint("coco")
    voc = thresholds.found_in(detector, shared / "data/voc100/gts/coco_format_v1", None, thresholds.VOC_TO_COCO)
    before, after = (thresholds.measure(voc, np.array(each)) for each in ([0.3] * 90, detector.config.post.thresholds))
    assert before.f1 == pytest.approx(0.236, abs=0.01)
    assert after.f1 == pytest.approx(0.590, abs=0.01)


@pytest.mark.parametrize("engine", ["onnxruntime", "OpenVINO"], indirect=True)
def test_graph_and_checkpoint_say_the_same(engine):
    import multibox

    for name in ("coco", "face"):
        said, graph = about(name), multibox.load(name).about
        assert graph["builtin"] == name
        assert graph["names"] == said["names"]
        assert graph["post"] == said["config"]["post"]
        assert (graph["license"], graph["source"]) == (said["license"], said["source"])
        assert said["names"] == list(load_checkpoint(find_model(name)).class_names)
