"""How anchors cover boxes, worked by hand and against every anchor at its place."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multibox
from multibox.analysis import anchor_fit
from multibox.analysis.anchor_fit import (
    best_on_grid,
    cluster_by_iou,
    evolve,
    fit_shapes,
    level_shapes,
    overlap,
    score,
    see_grid,
    with_shapes,
)
from multibox.analysis.anchor_search import _try_fit, examine_anchors, search, suggest_input
from multibox.analysis.coverage import Objects, count_positives, cover, describe_cover, of_some_images
from multibox.data.formats import open_dataset
from multibox.data.left_out import drop_difficult
from multibox.losses.targets import make_targets
from multibox.models.anchor_layout import make_anchors
from multibox.models.build import measure
from multibox.ops.boxes import pairwise_iou
from multibox.plots.anchor_plot import AnchorPlot, plot_anchors
from multibox.presets import PRESETS, resolve
from multibox.structures import Size
from multibox.training.adapting import enlarge_input, fit_anchors
from multibox.training.reporter import Reporter

PLAIN = {"anchors.fit": "none"}


@pytest.fixture(autouse=True)
def short_search(monkeypatch):
    monkeypatch.setattr(anchor_fit, "GENERATIONS", 10)
    monkeypatch.setattr(anchor_fit, "SWEEPS", 1)


def objects_of(boxes, images=None, labels=None, size=(640, 480)):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    images = np.zeros(count, np.int64) if images is None else np.array(images)
    labels = np.zeros(count, np.int64) if labels is None else np.array(labels)
    return Objects(boxes, np.tile(np.array(size, np.float64), (count, 1)), labels, images)


def random_objects(count, seed=0, images=30):
    rng = np.random.default_rng(seed)
    wh = np.exp(rng.uniform(np.log(0.02), np.log(0.8), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (1 - wh)
    return objects_of(np.hstack([corner, corner + wh]), np.sort(rng.integers(0, images, count)))


def test_one_box_on_an_anchor_by_hand():
    # Caffe's first anchors are squares of 30 of 300 pixels, 8 apart, the first with its centre at 4
    centre = (4 + 8 * 10) / 300
    exact = [centre - 0.05, centre - 0.05, centre + 0.05, centre + 0.05]
    # A quarter of the anchor: IoU 0.25 with it
    quarter = [centre - 0.025, centre - 0.025, centre + 0.025, centre + 0.025]
    config = resolve("ssd300-vgg16")
    found = cover(objects_of([exact, quarter]), config)
    assert found.best_iou.tolist() == pytest.approx([1, 0.25], abs=1e-5)
    assert found.level.tolist() == [0, 0] and found.reached.tolist() == [True, False]
    report = describe_cover(objects_of([exact, quarter], labels=[0, 1]), config, ("a", "b", "never"), found)
    assert report["reached"] == report["reached50"] == report["unreached"] == 0.5
    assert report["by_class"]["a"]["best_iou"] == pytest.approx(1) and report["by_class"]["b"]["reached"] == 0
    assert report["by_class"]["never"] == {
        "boxes": 0, "best_iou": None, "reached": None, "reached50": None, "positives": None,
    }  # fmt: skip
    # 30 and 15 pixels of the input
    assert [row["boxes"] for row in report["by_size"]] == [0, 1, 1, 0, 0, 0, 0]
    assert [row["anchors"] for row in report["by_level"]] == [5776, 2166, 600, 150, 36, 4]
    assert report["by_level"][0]["best_of"] == 1 and sum(row["best_of"] for row in report["by_level"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ssd300-vgg16", "multibox-fine", "tinyssd", "rfb320-face"])
def test_the_nearest_cell_is_as_good_as_all_cells(preset):
    objects = random_objects(300)
    size = (256, 384) if preset == "tinyssd" else resolve(preset).model.input_size
    config = resolve(preset, "default", PLAIN | {"model.input_size": size})
    fast = best_on_grid(see_grid(objects, config), level_shapes(config))
    assert np.allclose(fast, cover(objects, config).best_iou, atol=1e-5)


@given(st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
def test_overlap_is_that_of_boxes(sides):
    wh, shape = np.array(sides[:2])[None], np.array(sides[2:4])[None]
    away = np.array(sides[4:6])[None]
    one = np.concatenate([-wh / 2, wh / 2], axis=1)
    other = np.concatenate([away - shape / 2, away + shape / 2], axis=1)
    import torch

    expected = pairwise_iou(torch.from_numpy(one), torch.from_numpy(other)).item()
    assert overlap(wh, away, shape).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("ssd300-vgg16", {}), ("multibox-fine", {}), ("tinyssd", {"matching.matcher": "dual_max"})]
    + [("tinyssd", {"matching.matcher": name}) for name in ("atss", "simota")],
)
def test_positives_are_those_of_training(preset, changes):
    import torch

    objects = random_objects(60, images=7)
    config = resolve(preset, "default", PLAIN | changes)
    counts, levels = count_positives(objects, config)
    assert counts.sum() == levels.sum() > 0
    if config.matching.matcher not in ("bipartite", "dual_max"):
        return
    shapes = measure(config, 1).feature_shapes
    anchors = make_anchors(config.anchors, shapes, config.model.input_size)
    for image in range(7):
        rows = np.flatnonzero(objects.image == image)
        gt = torch.from_numpy(objects.boxes_xyxy[rows]).float()[None]
        labels = torch.arange(len(rows))[None]
        targets = make_targets(anchors, gt, labels, config.matching, config.model)
        assert torch.bincount(targets.gt, minlength=len(rows)).tolist() == counts[rows].tolist()


@pytest.mark.slow
def test_every_matcher_of_a_preset_gives_each_box_an_anchor():
    objects = random_objects(40, images=5)
    for preset in PRESETS:
        config = resolve(preset, "default", PLAIN)
        assert count_positives(objects, config)[0].sum() > 0


def test_positives_are_counted_on_whole_images():
    objects = random_objects(1000, images=100)
    chosen = of_some_images(objects, 100)
    assert 0 < chosen.sum() < 250
    assert not set(objects.image[chosen]) & set(objects.image[~chosen])
    assert of_some_images(objects, 1000).all()


@pytest.mark.slow
def test_fits_raise_the_coverage_and_keep_the_heads():
    rng = np.random.default_rng(0)
    wh = np.array([0.05, 0.3]) * np.exp(rng.normal(0, 0.1, (400, 2)))
    corner = rng.uniform(0, 1, (400, 2)) * (1 - wh)
    objects = objects_of(np.hstack([corner, corner + wh]), np.arange(400) // 4)
    config = resolve("tinyssd", "default", PLAIN)
    after, best, fit = search(objects, config, config)
    assert np.array_equal(best, cover(objects, after).best_iou)
    assert fit["before"]["reached50"] < 0.2 and fit["after"]["reached50"] > 0.9
    assert fit["held_out"] == 80 and fit["boxes"] == 320
    assert [len(level) for level in after.anchors.shapes] == [4] * 5
    assert search(objects, config, config).report == fit
    assert measure(after, 1) == measure(config, 1)
    # The first of the tried is the run's own; all of them were measured on all boxes
    assert fit["tried"][0]["anchors"] == "the preset's own"
    best = max(fit["tried"], key=lambda row: row["held_out"]["best_iou"] + row["held_out"]["reached50"])
    assert best["anchors"] == fit["method"]


def test_evolution_never_ends_below_its_start():
    objects = random_objects(200)
    config = resolve("tinyssd", "default", PLAIN)
    start = cluster_by_iou(objects, config)
    grid = see_grid(objects, config)
    found = evolve(objects, config, start)
    assert score(best_on_grid(grid, found), config) >= score(best_on_grid(grid, start), config) - 1e-3


def test_clusters_by_iou_are_the_boxes_shapes_where_these_are_few():
    # Two shapes only: both are found, whatever the start
    rng = np.random.default_rng(1)
    shapes = np.array([[0.2, 0.2], [0.1, 0.4]])
    wh = shapes[rng.integers(0, 2, 400)]
    corner = rng.uniform(0, 1, wh.shape) * (1 - wh)
    fitted = cluster_by_iou(objects_of(np.hstack([corner, corner + wh])), resolve("tinyssd", "default", PLAIN))
    first = np.array(fitted[0])
    for shape in shapes:
        assert np.abs(first - shape).max(1).min() < 1e-3


def test_training_fits_maps_in_any_order():
    # multibox-fine lists its finest map last
    config = resolve("multibox-fine")
    base = level_shapes(config)
    turned = (base[-1], *base[:-1])
    wh = random_objects(3000).wh
    straight, other = fit_shapes(wh, turned, 4), fit_shapes(wh, base, 4)
    assert other == (*straight[1:], straight[0])
    assert max(max(shape) for shape in other[-1]) < 0.25 < max(max(shape) for shape in other[0])


@pytest.mark.slow
def test_a_larger_or_wider_input_is_suggested_only_for_its_coverage():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.4, (200, 2))
    large = objects_of(np.hstack([corner, corner + 0.3]), size=(500, 500))
    config = resolve("ssd300-vgg16")
    found = suggest_input(large, config)
    assert found["input"] == [300, 300] and found["aspect"] == 1 and len(found["tried"]) >= 4
    assert found["setting"] == "model.input_size=[300,300]"
    small = objects_of(np.hstack([corner, corner + np.array([0.03, 0.04])]), size=(1000, 500))
    # Caffe's anchors follow the input, so no input makes them small enough; fitted ones are
    assert "fit the anchors" in suggest_input(small, config)["why"]
    found = suggest_input(small, resolve("multibox-coco"))
    height, width = found["input"]
    assert height * width > 320 * 320 and found["image_aspect"] == 2 and "a step takes" in found["why"]
    assert any(row["input"][1] > 1.5 * row["input"][0] for row in found["tried"])
    # Where no input sees a box, none is better than the present one
    specks = objects_of(np.hstack([corner, corner + 0.008]), size=(1920, 1080))
    found = suggest_input(specks, config)
    assert found["input"] == [300, 300] and "cut the images into tiles" in found["why"]


def test_a_fit_is_named_before_a_larger_input_where_anchors_alone_are_missing():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.4, (300, 2))
    config = resolve("ssd300-vgg16")
    flat = objects_of(np.hstack([corner, corner + np.array([0.5, 0.06])]), size=(500, 500))
    present = suggest_input(flat, config)["tried"][0]
    found = _try_fit(flat, config, config, present, seed=0)
    assert present["large_enough"] == 1 and present["seen"] < 0.5
    assert found["fit_first"] and found["fitted_seen"] > 0.95
    square = objects_of(np.hstack([corner, corner + 0.3]), size=(500, 500))
    found = _try_fit(square, config, config, suggest_input(square, config)["tried"][0], seed=0)
    assert found == {"fitted_seen": None, "fit_first": False}


def test_shapes_as_settings_are_those_measured():
    config = resolve("ssd300-vgg16")
    objects = random_objects(100)
    again = with_shapes(config, level_shapes(config))
    assert np.allclose(cover(objects, again).best_iou, cover(objects, config).best_iou, atol=1e-6)
    # MXNet's anchors are narrower on wide maps; as plain shapes they stay so
    wide = resolve("tinyssd", "default", PLAIN | {"model.input_size": (256, 512)})
    again = with_shapes(wide, level_shapes(wide))
    assert np.allclose(cover(objects, again).best_iou, cover(objects, wide).best_iou, atol=1e-6)


@pytest.mark.slow
def test_the_plot_names_classes_before_and_after(tmp_path):
    objects = random_objects(300)
    labels = np.random.default_rng(0).integers(0, 12, 300)
    names = tuple(f"class {k}" for k in range(12))
    before = np.random.default_rng(1).uniform(0, 1, 300)
    shown = AnchorPlot(objects.wh * 300, labels, names, np.array([[30.0, 30.0]]), before)
    plot_anchors(tmp_path / "one.png", shown)
    plot_anchors(tmp_path / "two.png", shown._replace(after_wh=np.array([[60.0, 20.0]]), after_iou=before))
    assert (tmp_path / "one.png").read_bytes()[:4] == (tmp_path / "two.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_verb_writes_a_config_that_training_takes(run, squares, tmp_path):
    out, report, plot = tmp_path / "a.toml", tmp_path / "a.json", tmp_path / "a.png"
    base = ["anchors", squares, "--preset", "tinyssd", "--set", "model.input_size=[64,64]"]
    code, said, err = run(*base, "--fit", out, "--json", report, "--plot", plot)
    assert code == 0, err
    assert "no anchor reaches" in said and f"train {squares} --config {out}" in said and plot.stat().st_size > 1000
    settings = tomllib.loads(out.read_text())
    assert settings["preset"] == "tinyssd" and settings["model"]["input_size"] == [64, 64]
    assert settings["anchors"]["style"] == "shapes" and settings["anchors"]["fit"] == "none"
    code, said, err = run("anchors", squares, "--config", out, "--json", "-")
    assert code == 0 and "no anchor reaches" in err
    import json

    made, measured = json.loads(report.read_text()), json.loads(said)
    assert measured["reached50"] == pytest.approx(made["fit"]["after"]["reached50"])
    assert measured["best_iou"] == pytest.approx(made["fit"]["after"]["best_iou"], abs=1e-6)
    code, _, err = run(*base, "--fit", out)
    assert code == 2 and "exists already" in err
    code, _, err = run(*base, "--fit", tmp_path / "a.txt")
    assert code == 2 and "ends in .toml" in err


@pytest.mark.slow
def test_a_run_with_fitted_anchors_trains_and_keeps_them(run, squares, tmp_path):
    out = tmp_path / "a.toml"
    preset = ["--preset", "tinyssd", "--set", "model.input_size=[64,64]"]
    assert run("anchors", squares, *preset, "--fit", out)[0] == 0
    code, _, err = run("train", squares, "--config", out, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0, err
    shapes = tomllib.loads(out.read_text())["anchors"]["shapes"]
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["anchors"]["shapes"] == shapes
    detector = multibox.load(tmp_path / "run")
    assert detector.config.model.input_size == Size(64, 64)


@pytest.mark.slow
def test_in_python(squares):
    found = multibox.coverage(squares, "tinyssd", changes={"model.input_size": (64, 64)}, classes=["red"])
    assert found["split"] == "train" and list(found["by_class"]) == ["red"] and "fit" not in found
    with pytest.raises(multibox.MultiboxError, match="unknown preset"):
        multibox.coverage(squares, "tinysd")


def test_data_without_boxes_is_refused(run, squares):
    for file in Path(squares).glob("Annotations/*.xml"):
        text = file.read_text()
        file.write_text(text[: text.index("<object>")] + "</annotation>")
    code, _, err = run("anchors", squares, "--preset", "tinyssd")
    assert code == 2 and "no box" in err


@pytest.mark.slow
def test_what_is_measured_is_what_training_would_have(squares):
    for file in sorted(Path(squares).glob("Annotations/*.xml"))[::2]:
        file.write_text(file.read_text().replace("<object>", "<object><difficult>1</difficult>"))
    # Difficult ones alone in their image stay in training: where an image has no others, its first is learned
    config = resolve("multibox-fine").updated({"train.difficult": "drop", "anchors.fit": 2})
    training = drop_difficult(open_dataset(squares, "train"))
    expected = fit_anchors(enlarge_input(config, training, Reporter()), training)
    found = examine_anchors(squares, config)
    assert found.before == expected
    assert len(found.objects.labels) == len(training.labels) > 0
