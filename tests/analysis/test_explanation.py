"""Explanations of detections: what is looked at lies within what can be seen; similar objects come from training."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multibox.analysis import explanation
from multibox.analysis.inspection_plots import inspected_image, write_pictures
from multibox.api import inspect_matches
from multibox.inference.detector import Detector
from multibox.models.build import build_model
from multibox.presets import resolve


@pytest.fixture(scope="module")
def data(tmp_path_factory, draw_squares):
    return draw_squares(tmp_path_factory.mktemp("explained") / "squares", 8)


def sees_red(score="softmax"):
    """Return a detector whose finest level calls red what is redder than blue, by one weight per layer."""
    changes = {"anchors.fit": "none", "model.input_size": (96, 96), "model.score": score, "post.max_detections": 20}
    if score == "sigmoid":
        changes["loss.classification"] = "sigmoid_focal"
    config = resolve("tinyssd", "default", changes)
    model = build_model(config, 2).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        first = True
        for block in model.backbone.stages[0]:
            for conv in (block.conv1, block.conv2):
                # Channel 0 carries redness on; only the first layer mixes colours
                conv.weight[0, 0] = 1 / 9
                if first:
                    conv.weight[0, 2] = -1 / 9
                    first = False
        for _, layer in model.heads.class_layers():
            bias = layer.bias.view(-1, model.heads.logits)
            bias[:] = torch.tensor([6.0, 0, 0] if score == "softmax" else [-6.0, -6])
        head = model.heads.classification[0]
        red = 1 if score == "softmax" else 0
        head.weight.view(-1, model.heads.logits, *head.weight.shape[1:])[:, red, 0, 1, 1] = 10.0
    return Detector(model, config, ("red", "blue"))


@pytest.fixture(scope="module")
def red_image(data):
    """The name of an image with a red square; colours as in tests/conftest.py."""
    for path in sorted((data / "JPEGImages").glob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image).astype(int)
        if (pixels[..., 0] - pixels[..., 2] > 100).any():
            return path.name
    raise AssertionError("no red square")


def split_of(data, name):
    return next(s for s in ("train", "val") if name[:3] in (data / f"ImageSets/Main/{s}.txt").read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["occlusion", "gradient"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_what_is_looked_at_is_what_the_network_answers_to(data, red_image, method, score, monkeypatch):
    # The coarsest patches are quick
    monkeypatch.setattr(explanation, "MOST_WORK", 1.0 if method == "gradient" else 4e9)
    monkeypatch.setattr(explanation, "EXPLAINED", 1)
    detector, split = sees_red(score), split_of(data, red_image)
    (one,) = inspect_matches(detector, data, images=[red_image], split=split, threshold=0.3, explain=True)
    json.dumps(one, allow_nan=False)
    explained = one["explanations"][0]
    candidate = one["candidates"][explained["candidate"]]
    assert explained["method"] == method and candidate["name"] == "red" and explained["level"] == 0
    assert explained["anchor"] == candidate["anchor"] and explained["similar"] == [] and not explained["similar_of"]
    # 52 pixels of a 96 pixel input that shows 96 pixels, unless cut at the border
    x1, y1, x2, y2 = explained["receptive_field"]
    assert 30 <= x2 - x1 <= 52 and 30 <= y2 - y1 <= 52
    left, top, right, bottom = explained["effective"]
    assert x1 <= left < right <= x2 and y1 <= top < bottom <= y2
    saliency = np.array(explained["saliency"])
    assert saliency.max() == 1 and saliency.min() >= 0
    rows, columns = saliency.shape
    high, wide = one["height"] / rows, one["width"] / columns
    # Patches reach half a cell beyond their own
    for row, column in np.argwhere(saliency > 0):
        assert (column + 1) * wide > x1 and column * wide < x2 and (row + 1) * high > y1 and row * high < y2
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    pixels = np.asarray(inspected_image(one)).astype(int)
    part = pixels[int(row * high) : int((row + 1) * high) + 1, int(column * wide) : int((column + 1) * wide) + 1]
    assert (part[..., 0] - part[..., 2]).max() > 100, "the most salient cell shows no red"


@pytest.mark.slow
def test_similar_objects_are_of_other_images_nearest_first(data, red_image, monkeypatch):
    monkeypatch.setattr(explanation, "MOST_WORK", 1.0)
    detector, split = sees_red(), split_of(data, red_image)
    (one,) = inspect_matches(
        detector, data, images=[red_image], split=split, threshold=0.3, explain=True, training=data
    )  # fmt: skip
    assert 1 <= len(one["explanations"]) <= explanation.EXPLAINED
    for explained in one["explanations"]:
        similar = explained["similar"]
        assert explained["similar_of"]["images"] == explained["similar_of"]["of"] == 6
        assert len(similar) == 5 and red_image not in [each["file"] for each in similar]
        distances = [each["distance"] for each in similar]
        assert distances == sorted(distances) and all(0 <= each <= 2 for each in distances)
        assert all(inspected_image(each).size == (96, 96) and len(each["box"]) == 4 for each in similar)


def test_an_archive_of_both_splits_still_has_similar_objects(data, tmp_path, red_image, monkeypatch):
    """One file holds many images: only the image itself is no example, whatever path led to its file."""
    monkeypatch.setattr(explanation, "MOST_WORK", 1.0)
    monkeypatch.setattr(explanation, "EXPLAINED", 1)
    archive, other = tmp_path / "all.tar", tmp_path / "again.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted([*data.glob("JPEGImages/*.png"), *data.glob("Annotations/*.xml")], key=lambda p: p.stem):
            tar.add(path, path.name)
    other.symlink_to(archive)
    detector = sees_red()
    for training in (archive, other):
        (one,) = inspect_matches(
            detector, archive, images=[red_image], threshold=0.3, explain=True, training=training
        )  # fmt: skip
        (explained,) = one["explanations"]
        assert explained["similar_of"]["objects"] == 7 and len(explained["similar"]) == 5
        assert (one["path"], one["offset"]) not in {(each["path"], each["offset"]) for each in explained["similar"]}


@pytest.mark.slow
def test_two_pictures_per_image_and_nothing_written_over(data, tmp_path):
    rows = inspect_matches(sees_red(), data, split="train", worst=1, threshold=0.3)
    written = write_pictures(rows, tmp_path)
    assert [path.name for path in written] == [
        f"{row['file'][:3]}-{kind}.png" for row in rows for kind in ("matches", "detections")
    ]
    for path in written:
        with Image.open(path) as image:
            # Enlarged, with a title above and a legend below
            assert image.width == 640 and image.height > 680
    before = written[0].read_bytes()
    again = write_pictures(rows, tmp_path)
    assert not set(again) & set(written) and again[0].name.endswith("-matches-2.png")
    assert again[0].read_bytes() == before == write_pictures(rows, tmp_path, overwrite=True)[0].read_bytes()
