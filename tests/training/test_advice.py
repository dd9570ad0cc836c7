import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.analysis.advice import look_at_boxes, nothing_matched, score_stays_low, what_would_help
from multibox.data.formats import open_dataset
from multibox.presets import resolve
from multibox.structures import Sample, pack

BCCD = Path(__file__).parents[3] / "shared/data/bccd/BCCD"


def scene(folder, size, boxes, images=20, labels=None, names=("a",)):
    """Write images of one size; every one has all the boxes."""
    file = folder / f"{size[0]}x{size[1]}.png"
    if not file.exists():
        Image.new("L", size).save(file)
    boxes = np.array(boxes, float).reshape(-1, 4)
    count = len(boxes)
    labels = np.zeros(count, int) if labels is None else np.array(labels)
    flags = np.zeros(count, bool)
    # Label files may say another size than the image has
    samples = [Sample(f"{i}.png", file, boxes, labels, flags, flags, (1, 1)) for i in range(images)]
    return pack(samples, root=folder, format="voc", split="train", class_names=names)


def boxes_in(width, height, side, count=60, seed=0):
    corner = np.random.default_rng(seed).uniform(0, 1, (count, 2)) * (width - side, height - side)
    return np.hstack([corner, corner + side])


CONFIG = resolve("tinyssd", "default", {})


def test_sound_boxes_raise_nothing(tmp_path):
    assert look_at_boxes(scene(tmp_path, (640, 480), boxes_in(640, 480, 100)), CONFIG) == []


@pytest.mark.parametrize(
    ("size", "boxes", "words"),
    [
        ((640, 480), 4 * boxes_in(640, 480, 100), ["outside", "about 4 times too large", "640 x 480"]),
        ((640, 480), boxes_in(640, 480, 60)[:, [1, 0, 3, 2]], ["exchanged"]),
        ((480, 640), boxes_in(480, 640, 60)[:, [1, 0, 3, 2]], ["exchanged"]),
        ((4000, 3000), boxes_in(4000, 3000, 30), ["smaller than 6 pixels", "median 2.2", "4000 x 3000", "tiles"]),
        ((640, 480), boxes_in(640, 480, 12), ["--set model.input_size=[544, 544]", "tiles"]),
        ((640, 480), boxes_in(640, 480, 1).round() * (1, 1, 1, 1) + (0, 0, 400, 14), ["no anchor", "elongated"]),
        ((640, 480), np.zeros((0, 4)), ["20 images have no objects", "a (0)"]),
    ],
)
def test_boxes_that_cannot_be_learned_are_named(tmp_path, size, boxes, words):
    if len(boxes) and words[0] == "no anchor":
        boxes = boxes[boxes[:, 2] <= 640]
    said = " | ".join(look_at_boxes(scene(tmp_path, size, boxes), CONFIG))
    for word in words:
        assert word in said
    assert ("outside" in said) + ("exchanged" in said) + ("smaller" in said) + ("no anchor" in said) <= 1


def test_a_larger_input_is_advised_where_only_some_objects_are_tiny(tmp_path):
    boxes = np.vstack([boxes_in(640, 480, 8, 20), boxes_in(640, 480, 100, 40)])
    (said,) = look_at_boxes(scene(tmp_path, (640, 480), boxes), CONFIG)
    assert "33 % of the objects" in said and "--set model.input_size=[512, 512]" in said


def test_rare_classes_and_empty_images_are_counted(tmp_path):
    sound = scene(tmp_path, (640, 480), boxes_in(640, 480, 100, 2), labels=[0, 1], names=("a", "b", "never"))
    some = sound.subset(range(19))
    assert look_at_boxes(some, CONFIG) == [
        "3 classes have fewer than 20 objects to learn from: never (0), a (19), b (19); expect little of them"
    ]
    empty = dataclasses.replace(
        sound, starts=np.append(sound.starts, sound.starts[-1]), image_names=[*sound.image_names, "x"],
        paths=[*sound.paths, sound.paths[0]], sizes=[*sound.sizes, None], offsets=[*sound.offsets, None],
    )  # fmt: skip
    assert look_at_boxes(empty, CONFIG)[-1].startswith("1 image has no objects, of 21")


@pytest.mark.skipif(not BCCD.exists(), reason="needs ../shared/data/bccd")
@pytest.mark.parametrize("preset", ["tinyssd", "multibox-coco", "ssd300-vgg16"])
def test_a_good_data_set_is_left_in_peace(preset):
    assert look_at_boxes(open_dataset(BCCD, "train"), resolve(preset, "default", {})) == []


def test_a_run_without_matches_says_so_once_it_is_sure():
    assert nothing_matched(29, 0) is None
    assert nothing_matched(300, 1) is None
    assert "data show" in (nothing_matched(30, 0) or "")
    assert "the boxes are outside" in (nothing_matched(30, 0, ["the boxes are outside"]) or "")


def rows(*scores, loss=1.0, val=1.0):
    return [
        {"step": 10 * i, "val_map50": score, "total_loss": loss, "val_loss": val * (1 + 0.1 * i)}
        for i, score in enumerate(scores, 1)
    ]


def test_a_score_that_stays_near_zero_is_said_with_its_reason():
    assert score_stays_low(rows(0.0, 0.0)) is None
    assert score_stays_low(rows(0.0, 0.3, 0.0)) is None
    said = score_stays_low(rows(0.0, 0.001, 0.002), ["x and y are exchanged"])
    assert said == "mAP@0.5 is still 0.002 after 30 steps and 3 validations: x and y are exchanged"


def test_the_end_names_what_would_help_most(tmp_path):
    boxes, labels = boxes_in(640, 480, 50, 21), [0] * 20 + [1]
    training = scene(tmp_path, (640, 480), boxes, 10, labels, ("many", "few"))
    flat, rising = rows(0.6, 0.61, 0.61, 0.61, 0.61), rows(0.3, 0.4, 0.5, 0.6, 0.7)
    weak = {"many": 0.8, "few": 0.3}
    assert "'few' would help most: it has 10 objects in 10 images" in (what_would_help(rising, training, weak) or "")
    time = what_would_help(rising, training, {"many": 0.8, "few": 0.7}, "multibox train --resume RUN --minutes 20")
    assert time is not None
    assert time.startswith("more training time would help most: mAP@0.5 still rose from 0.500 to 0.700")
    assert time.endswith("--minutes 20")
    heart = rows(0.6, 0.61, 0.61, 0.61, 0.61, loss=0.2)
    assert "learned by heart" in (what_would_help(heart, training, {"many": 0.8, "few": None}) or "")
    heart = [{**row, "total_loss": 1.4} for row in flat]
    assert what_would_help(heart, training, {"many": 0.8, "few": 0.75}) is None
    assert what_would_help([], training) is None
