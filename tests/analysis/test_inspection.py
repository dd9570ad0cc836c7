"""What inspection says is what training and prediction compute; outcomes of missed objects worked by hand."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multibox.analysis import inspection
from multibox.analysis.inspection import Inspector, find_images
from multibox.analysis.inspection_outcomes import Found, Judge, match_detections, why_unreached
from multibox.analysis.inspection_plots import inspected_image
from multibox.analysis.receptive_field import receptive_fields
from multibox.api import inspect_matches, open_for
from multibox.config import Config
from multibox.data.decoded import DecodedImages
from multibox.data.loading import AugmentedImages, load_batches
from multibox.errors import ConfigError, DataError
from multibox.inference.detector import Detector
from multibox.models.anchor_layout import anchors_for
from multibox.models.build import build_model
from multibox.ops.matching import anchor_overlaps, greedy_bipartite
from multibox.presets import PRESETS, resolve
from multibox.structures import Sample, Size, iou
from multibox.training.step import compute_loss

MATCHERS = ("bipartite", "dual_max", "atss", "simota", "task_aligned")
NAMES = ("red", "blue")


def lively(preset="tinyssd", changes=None, seed=0):
    """Return a detector whose fresh weights give scores all over 0 to 1, so that suppression has work."""
    small = {"model.input_size": (128, 128)} if preset == "tinyssd" else {}
    config = resolve(preset, "default", {"anchors.fit": "none"} | small | (changes or {}))
    model = build_model(config, len(NAMES), seed)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        images = torch.randint(256, (2, 3, *config.model.input_size)).float()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        # The layers' own statistics keep fresh features from fading
        model.train()(images)
        for _, layer in model.heads.class_layers():
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            seen = []
            hook = layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
            model.train()(images)
            hook.remove()
            layer.weight *= 1.5 / max(seen[0].std().item(), 1e-3)
    return Detector(model.eval(), config, NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory, draw_squares):
    return draw_squares(tmp_path_factory.mktemp("inspected") / "squares", 4)


def first_batch(detector, dataset):
    """Return the first image as training would see it without augmentation."""
    size = detector.config.model.input_size
    images = AugmentedImages(dataset, size, (), decoded=DecodedImages(dataset, size, exact=True))
    return next(load_batches(images, [[(0, 0)]], 0, pin=False))


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [None, 0.0, 0.4])
def test_kept_candidates_are_what_predict_gives(data, threshold):
    detector = lively()
    (one,) = inspect_matches(detector, data, images=["000"], split="train", threshold=threshold)
    lowest = one["thresholds"]["score"]
    shown = [c for c in one["candidates"] if c["kept"] and c["score"] >= lowest[c["name"]]]
    found = detector.predict(one["path"], threshold=max(threshold or 0, 0.01) if threshold is not None else None)
    assert len(shown) == len(found) > 3
    assert [c["box"] for c in shown] == found.boxes.tolist()
    assert [c["score"] for c in shown] == found.scores.tolist()
    assert [c["label"] for c in shown] == found.labels.tolist()
    json.dumps(one, allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("nms", [0.45, 0.2])
def test_candidates_and_the_rule_give_who_suppresses_whom(data, nms):
    """As the inspector's page does it: greedy, class by class, best first."""
    detector = lively(changes={"post.nms_threshold": nms, "post.clip": "before_nms"})
    (one,) = inspect_matches(detector, data, images=["001.png"], split="train")
    candidates, kept = one["candidates"], []
    for place, candidate in enumerate(candidates):
        others = [k for k in kept if candidates[k]["label"] == candidate["label"]]
        ious = [float(iou(np.array(candidates[k]["box"]), np.array(candidate["box"]))) for k in others]
        by = next((k for k, value in zip(others, ious, strict=True) if value > nms), None)
        assert candidate["suppressed_by"] == by
        if by is None:
            kept.append(place)
        else:
            assert candidate["iou"] == pytest.approx(ious[others.index(by)], abs=1e-5)
    assert len(candidates) > len(kept) > 5


@pytest.mark.slow
def test_losses_positives_and_negatives_are_those_of_the_training_step(data):
    detector = lively(changes={"loss.negative_ratio": 3.0, "loss.normalizer": "positives"})
    (one,) = inspect_matches(detector, data, images=["000"], split="train")
    dataset = open_for(detector, data, split="train")
    _, _, parts = compute_loss(detector.model, first_batch(detector, dataset), detector.config)
    assert one["losses"]["total"] == pytest.approx(parts.total.item(), rel=1e-6)
    positives, negatives = one["positives"], one["negatives"]
    assert len(positives) == int(parts.positives) and one["negatives_total"] == 3 * len(positives) == len(negatives)
    shared = len(positives)
    classification = sum(p["class_loss"] for p in positives) + sum(n["loss"] for n in negatives)
    assert classification / shared == pytest.approx(one["losses"]["classification"], rel=1e-5)
    assert sum(p["box_loss"] for p in positives) / shared == pytest.approx(one["losses"]["localization"], rel=1e-5)
    assert [n["loss"] for n in negatives] == sorted((n["loss"] for n in negatives), reverse=True)
    assert sum(level["positives"] for level in one["levels"]) == len(positives)
    assert sum(level["negatives"] for level in one["levels"]) == len(negatives)
    assert one["gt"][0]["anchors"] == list(range(len(positives)))


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_forced_positives_are_the_bipartite_steps_own(data, threshold):
    detector = lively(changes={"matching.threshold": threshold})
    (one,) = inspect_matches(detector, data, images=["002"], split="train")
    batch = first_batch(detector, open_for(detector, data, split="train").subset([2]))
    outputs = detector.model(batch.images)
    anchors = anchors_for(outputs, detector.config)
    overlaps = anchor_overlaps(anchors, batch.gt_xyxy, batch.gt_labels >= 0)
    own = int(greedy_bipartite(overlaps, batch.gt_labels >= 0)[0, 0])
    how = {p["anchor"]: p["how"] for p in one["positives"]}
    assert own in how and all(kind == "threshold" for anchor, kind in how.items() if anchor != own)
    assert how[own] == ("threshold" if overlaps[0, 0, own] >= threshold else "forced")
    assert one["gt"][0]["best_iou"] == pytest.approx(float(overlaps.max()))
    levels = one["levels"]
    first = np.cumsum([0, *(level["anchors"] for level in levels)])
    for p in one["positives"]:
        level = levels[p["level"]]
        place = (p["row"] * level["columns"] + p["column"]) * level["anchors_per_cell"] + p["shape"]
        assert first[p["level"]] + place == p["anchor"]
        height, width = one["height"], one["width"]
        assert p["box"] == pytest.approx((anchors[p["anchor"]] * torch.tensor([width, height] * 2)).tolist())


def test_the_zone_between_two_thresholds_is_ignored(data):
    detector = lively(changes={"matching.matcher": "dual_max", "matching.low": 0.3, "matching.threshold": 0.6})
    (one,) = inspect_matches(detector, data, images=["000"], split="train")
    assert one["thresholds"]["ignore"] == 0.3 and one["ignored_total"] == len(one["ignored"]) > 0
    assert all(0.3 <= row["iou"] < 0.6 for row in one["ignored"])
    assert {p["how"] for p in one["positives"] if p["iou"] < 0.6} <= {"forced"}


@pytest.mark.slow
def test_worst_images_come_first(data):
    detector = lively()
    everything = inspect_matches(detector, data, split="train", worst=9)

    def total(one):
        lowest = one["thresholds"]["score"]
        shown = {i for i, c in enumerate(one["candidates"]) if c["kept"] and c["score"] >= lowest[c["name"]]}
        right = {g["detection"] for g in one["gt"] if g["outcome"] == "found"}
        missed = sum(g["outcome"] != "found" for g in one["gt"])
        return missed + len(shown - right) + one["losses"]["total"]

    totals = [total(one) for one in everything]
    assert len(totals) == 3 and totals == sorted(totals, reverse=True)
    (worst,) = inspect_matches(detector, data, split="train", worst=1)
    assert worst == everything[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"loss.normalizer": "positives"},
        {"loss.normalizer": "images", "loss.minimum_negatives": 2},
        {"loss.normalizer": "selected", "matching.matcher": "atss"},
        {"loss.normalizer": "anchors", "loss.negative_ratio": "all"},
        {"loss.hard_examples": 20, "matching.matcher": "simota"},
        {"post.flip": True},
    ],
    ids=str,
)
def test_losses_and_mistakes_of_a_batch_are_those_of_its_images(data, changes):
    detector = lively(changes=changes).quicken()
    dataset = open_for(detector, data, split="train")
    compute = partial(compute_loss, config=detector.config)
    inspector = Inspector(detector, dataset, ~dataset.crowd, compute, 0.4)
    ((losses, detections),) = inspector.look()
    alone = [
        compute_loss(detector.model, first_batch(detector, dataset.subset([i])), detector.config)[2].total.item()
        for i in range(len(dataset))
    ]
    assert losses == pytest.approx(alone, abs=1e-4, rel=1e-4) and len(set(alone)) == 3
    described = inspect_matches(detector, data, images=list(dataset.image_names), split="train", threshold=0.4)
    assert [one["losses"]["total"] for one in described] == pytest.approx(losses, abs=1e-4, rel=1e-4)
    assert [len(one) for one in detections] == [sum(c["kept"] for c in one["candidates"]) for one in described]


def listed_of(one):
    """Return anchor, class and score of each candidate, with the anchor of what suppressed it."""
    all_of = one["candidates"]
    by = [None if c["suppressed_by"] is None else all_of[c["suppressed_by"]]["anchor"] for c in all_of]
    return [(c["anchor"], c["label"], c["score"], other) for c, other in zip(all_of, by, strict=True)]


def test_candidates_are_listed_without_a_gap_down_to_a_score(data, monkeypatch):
    monkeypatch.setattr(inspection, "MOST_CANDIDATES", 20)
    detector = lively()
    (one,) = inspect_matches(detector, data, images=["000"], split="train", threshold=0.0)
    whole = listed_of(one)
    assert one["candidates_above"] is None and one["candidates_total"] == len(whole)
    for threshold in (0.9, 0.6):
        (one,) = inspect_matches(detector, data, images=["000"], split="train", threshold=threshold)
        listed, above = listed_of(one), one["candidates_above"]
        better = [each for each in whole if each[2] > above]
        assert listed[: len(better)] == better and 20 <= len(better) <= len(listed) < len(whole)
        assert above < threshold and set(listed) <= set(whole) and one["candidates_total"] == len(whole)


def test_transparent_pixels_show_the_models_background(tmp_path, draw_squares):
    folder = draw_squares(tmp_path / "squares", 4)
    for path in (folder / "JPEGImages").glob("*.png"):
        with Image.open(path) as image:
            clear = image.convert("RGBA")
        clear.putalpha(0)
        clear.save(path)
    detector = lively(changes={"model.background": (10, 200, 30)})
    (one,) = inspect_matches(detector, folder, images=["000"], split="train")
    assert one["background"] == [10, 200, 30]
    assert np.asarray(inspected_image(one)).reshape(-1, 3).tolist() == [[10, 200, 30]] * one["width"] * one["height"]


def test_images_go_by_name_or_by_the_end_of_their_path(data):
    detector = lively()
    for name in ("001", "001.png", "JPEGImages/001.png", str(data / "JPEGImages/001.png")):
        assert [one["path"] for one in inspect_matches(detector, data, images=[name], split="train")] == [
            str(data / "JPEGImages/001.png")
        ]
    with pytest.raises(DataError, match=r"image 'x/0001.png': there is no such image, did you mean '00[0-9].png'"):
        inspect_matches(detector, data, images=["x/0001.png"], split="train")
    with pytest.raises(DataError, match=r"image 'g/1.png': there is"):
        find_images(open_for(detector, data, split="train"), ["g/1.png"])


def test_an_exported_file_is_refused_in_a_sentence(tmp_path, data):
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds no logits.*checkpoint"):
        inspect_matches(exported, data, split="train")


# One image of 100 x 100 pixels with two classes; an object is named by its box, a candidate by its rectangle.
OBJECT = (20.0, 20.0, 60.0, 60.0)


def judged(candidates, *, objects=((OBJECT, 0),), overlap=0.7, positives=1, changes=None, **flags):
    """Return the row of the last object.

    Candidates are (box, score, label, state): state is kept, suppressed or cut.
    """
    config = Config().updated({"post.nms_threshold": 0.45, **(changes or {})})
    boxes = np.array([c[0] for c in candidates], np.float32).reshape(-1, 4)
    scores = np.array([c[1] for c in candidates], np.float32)
    labels = np.array([c[2] for c in candidates], np.int64)
    kept = np.array([c[3] == "kept" for c in candidates], bool)
    passed = np.array([c[3] != "suppressed" for c in candidates], bool)
    found = Found(
        np.arange(len(boxes)), labels, scores, boxes, boxes, boxes / 100, passed, kept, kept & (scores >= 0.5)
    )
    count = len(objects)
    no = np.zeros(count, bool)
    sample = Sample(
        "a", Path("a"), np.array([box for box, _ in objects]), np.array([label for _, label in objects]),
        flags.get("difficult", no), flags.get("crowd", no),
    )  # fmt: skip
    rows = [{"gt": count - 1, "score": 0.04}] * positives
    matched = match_detections(found, sample, NAMES, 0.0)
    judge = Judge(config, NAMES, np.array([0.5, 0.5], np.float32), 0.0)
    trained = np.flatnonzero(~sample.crowd & flags.get("trained", ~no))
    anchors = np.array([[0, 0, 40, 40], [30, 30, 50, 50]], np.float32)
    overlaps = np.full((count, 2), overlap, np.float32)
    return judge.judge(found, sample, matched, overlaps, rows, trained, anchors)[-1]


BESIDE = (25.0, 20.0, 65.0, 60.0)  # IoU with OBJECT: 35 / 45
FAR = (40.0, 20.0, 80.0, 60.0)  # 20 / 60
LEFT, RIGHT = (24.0, 20.0, 64.0, 60.0), (36.0, 20.0, 76.0, 60.0)  # IoU 28 / 52


@pytest.mark.parametrize(
    ("case", "outcome", "detection", "words"),
    [
        ({"candidates": [(BESIDE, 0.9, 0, "kept")]}, "found", 0, ["0.90", "0.78"]),
        ({"candidates": [(BESIDE, 0.3, 0, "kept")]}, "low-score", 0, ["0.30", "0.50"]),
        ({"candidates": []}, "low-score", None, ["0.04", "only matched", "0.50"]),
        ({"candidates": [(FAR, 0.9, 0, "kept")]}, "badly-placed", 0, ["0.90", "0.33"]),
        ({"candidates": [(BESIDE, 0.9, 1, "kept")]}, "wrong-class", 0, ["blue", "0.90", "0.78"]),
        (
            {"candidates": [(BESIDE, 0.9, 1, "kept"), (OBJECT, 0.2, 0, "kept")]},
            "wrong-class", 0, ["blue", "red only with 0.20"],
        ),
        ({"candidates": [], "overlap": 0.4}, "unreached", None, ["0.40", "0.5", "40 x 40", "forced"]),
        ({"candidates": [], "positives": 0}, "not-matched", None, ["another object"]),
        (
            {"candidates": [], "positives": 0, "changes": {"matching.matcher": "atss"}},
            "not-matched", None, ["atss"],
        ),
        ({"candidates": [], "overlap": 0.4, "changes": {"matching.matcher": "atss"}}, "low-score", None, []),
        ({"candidates": [], "crowd": np.array([True])}, "not-matched", None, ["crowd"]),
        (
            {"candidates": [], "difficult": np.array([True]), "trained": np.array([False])},
            "not-matched", None, ["difficult"],
        ),
        # Two objects lie side by side, IoU 20 / 60; the box on the second overlaps the first's detection too much
        (
            {
                "objects": ((OBJECT, 0), (FAR, 0)),
                "candidates": [(LEFT, 0.9, 0, "kept"), (RIGHT, 0.8, 0, "suppressed")],
            },
            "suppressed", 1, ["0.80", "red 0", "0.90", "0.54", "0.45"],
        ),
        ({"candidates": [(BESIDE, 0.9, 0, "cut")]}, "suppressed", 0, ["200 in an image"]),
        # One detection is right on both objects, and counts for the first, which it overlaps more
        (
            {"objects": ((BESIDE, 0), (OBJECT, 0)), "candidates": [(BESIDE, 0.9, 0, "kept")]},
            "badly-placed", 0, ["object 0", "0.78"],
        ),
    ],
)  # fmt: skip
def test_why_an_object_is_missed(case, outcome, detection, words):
    row = judged(**case)
    assert (row["outcome"], row["detection"]) == (outcome, detection), row["why"]
    assert all(word in row["why"] for word in words), row["why"]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((50, 50, 55, 55), "too small"),
        ((0, 0, 90, 90), "too large"),
        ((0, 0, 80, 20), "too wide"),
        ((0, 0, 20, 80), "too tall"),
        ((60, 60, 100, 100), "too far apart"),
    ],
)
def test_why_no_anchor_reaches_a_box(box, words):
    anchors = np.array([[0, 0, 40, 40], [30, 30, 50, 50]], np.float32)
    assert words in why_unreached(np.array(box, float), anchors, 0.5)


def check_plain(one):
    """Hold what is true of every description, whatever the network."""
    json.dumps(one, allow_nan=False)
    places = {p["anchor"] for p in one["positives"]}
    assert len(places) == len(one["positives"]) == sum(level["positives"] for level in one["levels"]) > 0
    assert not places & {row["anchor"] for row in one["negatives"] + one["ignored"]}
    for g in one["gt"]:
        assert all(one["positives"][place]["gt"] == g["index"] for place in g["anchors"])
        assert g["why"] and (g["detection"] is None or g["detection"] < len(one["candidates"]))
        assert g["outcome"] != "found" or one["candidates"][g["detection"]]["gt"] == g["index"]
    expected = "matcher" if one["matcher"] in MATCHERS[2:] else None
    assert all(p["how"] == expected if expected else p["how"] in ("forced", "threshold") for p in one["positives"])
    assert all(0 <= p["iou"] <= 1 and 0 <= p["score"] <= 1 and p["class_loss"] >= 0 for p in one["positives"])


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("classification", ["cross_entropy", pytest.param("sigmoid_focal", marks=pytest.mark.slow)])
def test_every_matcher(data, matcher, classification):
    score = "softmax" if classification == "cross_entropy" else "sigmoid"
    changes = {"matching.matcher": matcher, "loss.classification": classification, "model.score": score}
    for one in inspect_matches(lively(changes=changes), data, split="train"):
        check_plain(one)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_with_every_matcher(data, preset):
    lively_one = lively(preset)
    for matcher in MATCHERS:
        # Matching changes no weight
        config = lively_one.config.updated({"matching.matcher": matcher})
        detector = Detector(lively_one.model, config, NAMES)
        (one,) = inspect_matches(detector, data, images=["000"], split="train", threshold=0.3)
        check_plain(one)
        assert (one["preset"], one["matcher"]) == (preset, matcher)
        assert one["input"] == list(config.model.input_size)
    found = detector.predict(one["path"], threshold=0.3)
    shown = [c for c in one["candidates"] if c["kept"] and c["score"] >= 0.3]
    assert [c["box"] for c in shown] == found.boxes.tolist() and [c["score"] for c in shown] == found.scores.tolist()


def test_receptive_fields_do_not_depend_on_inference_mode():
    config = resolve("tinyssd", "default", {"anchors.fit": "none"})
    receptive_fields.cache_clear()
    with torch.inference_mode():
        inside = receptive_fields(config)
    receptive_fields.cache_clear()
    assert inside == receptive_fields(config)
    assert inside[0].size(Size(256, 256))[0] > 20
