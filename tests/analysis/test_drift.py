"""Statistics of training images, and the warning about images that are far from them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from multibox.analysis.drift import KINDS, Seen, drift_warnings, drifts, measure_image, summarize
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.data.sprites import make_sprites
from multibox.exporting.graph import describe
from multibox.inference.detector import open_checkpoint
from multibox.models.checkpoint import load_checkpoint
from multibox.structures import Detections
from multibox.training.run import RunOptions, prepare

IMAGE_KINDS = list(KINDS)[:7]


def statistics_of(images):
    measured = [measure_image(image) for image in images]
    return {name: summarize([one[name] for one in measured]) for name in measured[0]}


def moved(statistics, images):
    seen = Seen(statistics)
    for image in images:
        seen.add(image)
    return [drift.name for drift in drifts(statistics, seen)]


def found(scores, side=10.0):
    boxes = np.tile(np.array([0, 0, side, side], np.float32), (len(scores), 1))
    return Detections(boxes, np.array(scores, np.float32), np.zeros(len(scores), np.int64), ("a",))


# Worked by hand


def test_an_image_is_measured_as_it_looks():
    """Left half red, right half black: luma 76.2 and 0, saturation 255 and 0."""
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :60, 0] = 255
    values = measure_image(Image.fromarray(pixels))
    assert values == pytest.approx(
        {"width": 120, "height": 60, "aspect": 2, "brightness": 38.12, "contrast": 38.12, "saturation": 127.5,
         "warmth": 127.5}, rel=1e-3
    )  # fmt: skip
    assert measure_image(Image.fromarray(pixels[::2, ::2]), (60, 120)) == values
    assert measure_image(Image.new("RGB", (1, 1)))["brightness"] == 0


def test_a_summary_says_count_mean_deviation_and_quantiles():
    assert summarize(range(21)) == {"count": 21, "mean": 10, "sd": 6.0553, "quantiles": list(range(0, 21, 2))}


def test_means_and_what_they_may_mean_are_told():
    statistics = {"brightness": summarize(np.full(50, 200.0)), "detections": summarize(np.full(50, 4.0))}
    seen = Seen(statistics)
    for _ in range(19):
        seen.add(Image.new("RGB", (8, 8), (60, 60, 60)), found([0.9]))
    assert drift_warnings(statistics, seen) == []  # too few to tell
    seen.add(Image.new("RGB", (8, 8), (60, 60, 60)), found([0.9]))
    assert drift_warnings(statistics, seen) == [
        "brightness, 0 to 255: 60 here, 200 in training; the light, the exposure or the kind of image is another",
        "detections per image: 1.0 here, 4.0 in training; there are fewer or more objects, or the model misses them",
    ]
    few = {"brightness": summarize(np.full(19, 200.0))}
    assert moved(few, [Image.new("RGB", (8, 8))] * 50) == []


def test_a_difference_that_matters_to_nobody_is_not_told():
    """All training images are equally bright, so any other is infinitely many deviations away."""
    statistics = {"brightness": summarize(np.full(50, 200.0))}
    assert moved(statistics, [Image.new("RGB", (8, 8), (180,) * 3)] * 50) == []
    assert moved(statistics, [Image.new("RGB", (8, 8), (170,) * 3)] * 50) == ["brightness"]


def test_outliers_in_training_do_not_hide_that_the_bulk_moved():
    """One image of 50,000 pixels makes the deviation 4,900; all others are between 600 and 700."""
    statistics = {"width": summarize([*np.linspace(600, 700, 99), 50_000])}
    assert statistics["width"]["sd"] > 4000
    assert moved(statistics, [Image.new("RGB", (2000, 8))] * 30) == ["width"]
    assert moved(statistics, [Image.new("RGB", (650, 8))] * 30) == []


def test_detections_are_compared_by_number_score_and_size():
    rng = np.random.default_rng(0)
    statistics = {
        "detections": summarize(np.full(60, 2.0)),
        "score": summarize(rng.uniform(0.7, 1.0, 120)),
        "box_size": summarize(np.full(120, 0.1)),
    }
    seen = Seen(statistics)
    for _ in range(20):
        seen.add(Image.new("RGB", (100, 100)), found([0.4, 0.5]))
    assert [drift.name for drift in drifts(statistics, seen)] == ["score"]
    empty = Seen(statistics)
    for _ in range(20):
        empty.add(Image.new("RGB", (100, 100)), found([]))
    assert [drift.name for drift in drifts(statistics, empty)] == ["detections"]
    # A threshold of the user's: nothing can be said of detections
    assert moved(statistics, [Image.new("RGB", (100, 100))] * 30) == []


def test_memory_is_constant():
    seen = Seen({"brightness": summarize(np.arange(50.0))})
    sizes = []
    for _ in range(100):
        seen.add(Image.new("RGB", (8, 8)))
        sizes.append(len(json.dumps([seen.counts, seen.sums, {n: v.tolist() for n, v in seen.below.items()}])))
    assert max(sizes) - min(sizes) < 40


# On images


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift") / "sprites"
    make_sprites(folder, images=300, size=64)
    return folder


def images_of(path, split):
    return [load_image(sample) for sample in open_dataset(path, split)]


@pytest.mark.slow
def test_held_out_sprites_are_near_and_changed_ones_far(sprites):
    statistics = statistics_of(images_of(sprites, "train"))
    held_out = images_of(sprites, "val")
    assert moved(statistics, held_out) == [] and moved(statistics, held_out[:20]) == []
    assert "brightness" in moved(statistics, [image.point(lambda v: v // 2) for image in held_out])
    assert set(moved(statistics, [image.reduce(2) for image in held_out])) == {"width", "height"}
    assert "saturation" in moved(statistics, [image.convert("L").convert("RGB") for image in held_out])


@pytest.mark.slow
def test_bccd_held_out_is_near_and_other_images_far(shared, sprites):
    data = shared / "data" / "bccd" / "BCCD"
    statistics, test = statistics_of(images_of(data, "train")), images_of(data, "test")
    assert moved(statistics, test) == [] and moved(statistics, images_of(data, "val")) == []
    assert "brightness" in moved(statistics, [ImageOps.invert(image) for image in test])
    assert "brightness" in moved(statistics, [image.point(lambda v: v // 2) for image in test])
    assert set(moved(statistics, [image.reduce(2) for image in test])) == {"width", "height"}
    assert "brightness" in moved(statistics, images_of(sprites, "val"))


# In files and commands


@pytest.fixture(scope="module")
def run_folder(sprites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift-run") / "run"
    small = {"model.input_size": [64, 64], "train.batch_size": 8, "train.workers": 0, "train.steps": 2}
    prepare(sprites, RunOptions(preset="tinyssd", out=folder, changes=small)).fit()
    return folder


def test_checkpoints_and_exported_files_carry_the_statistics(run_folder):
    statistics = load_checkpoint(run_folder / "best.safetensors").statistics
    assert {*IMAGE_KINDS, "labelled", "detections"} <= set(statistics)
    assert statistics["width"] == {"count": 200, "mean": 64, "sd": 0, "quantiles": [64] * 11}
    assert statistics["labelled"]["mean"] == 1 and statistics["detections"]["count"] == 30
    detector = open_checkpoint(run_folder)
    assert describe(detector, "plain")["statistics"] == detector.statistics == statistics
    detector.statistics = {}
    assert "statistics" not in describe(detector, "plain")


@pytest.mark.slow
def test_predict_says_once_what_moved(run_folder, sprites, tmp_path, run):
    for name, change in (("near", lambda image: image), ("far", lambda image: image.resize((640, 480)))):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images_of(sprites, "val")):
            change(image).save(tmp_path / name / f"{index}.png")
    code, _, said = run("predict", run_folder, tmp_path / "near", "--out", tmp_path / "a", "--threshold", "0.99")
    assert code == 0 and "far from" not in said
    code, told, said = run("predict", run_folder, tmp_path / "far", "--out", tmp_path / "b", "--threshold", "0.99")
    assert code == 0 and said.count("far from those that the model was trained on") == 1 and "far from" not in told
    assert "image width in pixels: 640 here, 64 in training; another camera" in said


def test_it_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import multibox.analysis.drift; print('fine')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "fine"
