"""What is held out of training: groups stay together; several data sets and merged classes in a run."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import multibox
from multibox.config import DataConfig
from multibox.data.choosing import choose_classes, parse_merges
from multibox.data.formats import open_dataset
from multibox.data.similar import image_hashes
from multibox.errors import ConfigError, DataError
from multibox.inference.detector import open_checkpoint
from multibox.structures import Dataset
from multibox.training.run import RunOptions, prepare
from multibox.training.splits import held_out, hold_out, open_splits

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.randoms(use_true_random=False))
def test_no_group_is_divided_and_the_order_of_images_does_not_matter(members: list[int], random) -> None:
    names = [f"{i}.jpg" for i in range(len(members))]
    held = held_out(names, np.array(members))
    groups = {members[i] for i in held}
    assert held == {i for i, group in enumerate(members) if group in groups}
    assert bool(held) == (len(set(members)) > 1)
    smallest = min(members.count(group) for group in set(members))
    assert len(held) <= max(1.5 * max(1, round(len(members) / 10)), smallest)
    order = list(range(len(members)))
    random.shuffle(order)
    again = held_out([names[i] for i in order], np.array([members[i] for i in order]))
    if held and len(held) > smallest:
        assert {order[i] for i in again} == held


def noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def coco(root: Path, splits: dict[str, list[int]], names: list[str]) -> Path:
    """Images of noise, each with one object per class; an image's number is its seed."""
    for split, seeds in splits.items():
        (root / split).mkdir(parents=True)
        for place, seed in enumerate(seeds):
            noise(seed).save(root / split / f"{place:03}.png")
        boxes = [
            {"id": i * len(names) + k, "image_id": i, "category_id": k, "bbox": [4 + 9 * k, 5, 20, 30]}
            for i in range(len(seeds))
            for k in range(len(names))
        ]
        images = [{"id": i, "file_name": f"{i:03}.png", "width": 64, "height": 64} for i in range(len(seeds))]
        categories = [{"id": k, "name": name} for k, name in enumerate(names)]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def held_from(data: Path) -> tuple[Dataset, Dataset]:
    dataset = open_dataset(data)
    return hold_out(dataset, data, image_hashes(dataset))


def test_what_images_look_like_is_remembered_until_one_changes(tmp_path: Path) -> None:
    data = coco(tmp_path / "set", {"train": [*range(12)]}, ["a"])
    told: list[int] = []

    @contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield told.append

    open_splits(DataConfig(path=(str(data),)), tmp_path / ".cache", counting)
    assert len(told) == 24  # checked, and compared
    again = open_splits(DataConfig(path=(str(data),)), tmp_path / ".cache", counting)
    assert len(told) == 24
    (file,) = (tmp_path / ".cache").glob("scenes-*.npy")
    file.write_bytes(file.read_bytes()[:200])
    assert open_splits(DataConfig(path=(str(data),)), tmp_path / ".cache", counting)[2] == again[2]
    assert len(told) == 36
    noise(99).save(data / "train" / "003.png")
    open_splits(DataConfig(path=(str(data),)), tmp_path / ".cache", counting)
    assert len(told) == 36 + 1 + 12
    assert len(list((tmp_path / ".cache").glob("scenes-*.npy"))) == 1


def test_images_of_one_scene_stay_on_one_side(tmp_path: Path) -> None:
    data = coco(tmp_path / "set", {"train": [i // 2 for i in range(60)]}, ["a"])  # every image twice
    training, validation = held_from(data)
    assert len(training) + len(validation) == 60
    assert len(validation) in (6, 8)
    numbers = sorted(int(name[-7:-4]) for name in validation.image_names)
    assert all(one // 2 == other // 2 for one, other in zip(numbers[::2], numbers[1::2], strict=True))
    assert (
        "of 60 images (train) are held out for validation; images of one scene were kept together"
        in (training.notes[-1])
    )
    assert list(held_from(data)[1].image_names) == list(validation.image_names)


def test_a_single_scene_is_divided_and_said(tmp_path: Path) -> None:
    data = coco(tmp_path / "set", {"train": [1] * 20}, ["a"])
    training, validation = held_from(data)
    assert (len(training), len(validation)) == (18, 2)
    assert "all look like one scene, which was divided" in training.notes[-1]


def test_joined_sets_give_what_they_would_alone(tmp_path: Path) -> None:
    one = coco(tmp_path / "one", {"train": [*range(20)], "val": [20, 21]}, ["dog", "cat"])
    two = coco(tmp_path / "two", {"train": [*range(30, 50)]}, ["cat", "cow"])
    training, validation, notes = open_splits(DataConfig(path=(str(one), str(two))))
    assert training.class_names == ("dog", "cat", "cow")
    assert validation is not None and validation.class_names == training.class_names
    assert len(training) == 20 + 18
    assert len(validation) == 2 + 2
    alone, held, _ = open_splits(DataConfig(path=(str(two),)))
    assert held is not None
    assert [f"two/{name}" for name in held.image_names] == list(validation.image_names)[2:]
    assert [f"two/{name}" for name in alone.image_names] == list(training.image_names)[20:]
    assert any(note.startswith("two: ") and "2 of 20 images (train) are held out" in note for note in notes)
    _, none, _ = open_splits(DataConfig(path=(str(one), str(two)), val_split="none"))
    assert none is None
    with pytest.raises(DataError, match="two has no split 'val'"):
        open_splits(DataConfig(path=(str(one), str(two)), val_split="val"))


@pytest.mark.slow
def test_a_run_of_two_sets_is_resumed_and_evaluated(tmp_path: Path, run) -> None:
    one = coco(tmp_path / "one", {"train": [*range(8)], "val": [20, 21]}, ["truck", "cat"])
    two = coco(tmp_path / "two", {"train": [*range(30, 38)], "val": [22]}, ["cat", "bus", "cow"])
    out = tmp_path / "run"
    small = [text for key, value in SMALL.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    code, text, _ = run(
        *("train", one, two, "--preset", "tinyssd", "--epochs", 1, "--out", out, "--weights", "none", *small),
        *("--merge", "car=truck,bus", "--classes", "cat,car"),
    )
    assert code == 0
    assert "16 images (train), 3 for validation (val), classes cat, car" in text
    config = (out / "config.toml").read_text()
    assert json.dumps([str(one), str(two)]) in config
    assert 'merge = ["car=truck,bus"]' in config
    assert f"multibox eval {out} {one} {two} --split val" in text
    code, text, _ = run("train", "--resume", out, "--epochs", 2)
    assert code == 0
    assert "16 images (train)" in text
    detector = open_checkpoint(out)
    assert (detector.names, detector.merge) == (("cat", "car"), ("car=truck,bus",))
    code, text, _ = run("eval", out, one, two, "--split", "val", "--json", tmp_path / "scores.json")
    assert code == 0
    assert "scored on 1 of" not in text
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 3
    scores = multibox.evaluate(detector, [str(one), two], split="val")
    assert set(scores["coco"]["per_class"]) == {"cat", "car"}
    code, _, error = run("train", one, two, "--classes", "cat,bike", "--dry-run")
    assert code == 0
    code, _, error = run("train", one, two, "--classes", "cat,cra", "--epochs", 1, "--out", tmp_path / "other")
    assert code == 2
    assert "data.classes: the data has no class 'cra'" in error
    assert not (tmp_path / "other").exists()


def test_python_takes_several_and_merges(tmp_path: Path) -> None:
    one = coco(tmp_path / "one", {"train": [*range(6)], "val": [20]}, ["truck", "cat"])
    detector = multibox.train(
        [str(one), one],  # the same twice is one
        preset="tinyssd", epochs=1, out=tmp_path / "run", weights="none", changes=SMALL,
        classes=["car"], merge={"car": ["truck", "cat"]},
    )  # fmt: skip
    assert detector.names == ("car",)


def test_rules_of_merging(tmp_path: Path) -> None:
    dataset = open_dataset(coco(tmp_path / "one", {"train": [1]}, ["truck", "cat", "bus"]))
    (merged,) = choose_classes([dataset], (), ["car = truck, bus"])
    assert merged.class_names == ("car", "cat")
    assert merged.labels.tolist() == [0, 1, 0]
    (chosen,) = choose_classes([dataset], ["cat"], ())
    assert (chosen.class_names, chosen.labels.tolist()) == (("cat",), [0])
    for rule, words in {"car": "expected NEW=A,B", "car=a,": "expected NEW=A,B"}.items():
        with pytest.raises(ConfigError, match=words):
            parse_merges([rule])
    with pytest.raises(ConfigError, match="'a' is to become 'x' and 'y'"):
        parse_merges(["x=a", "y=a"])
    with pytest.raises(ConfigError, match=r"data\.merge: the data has no class 'trcuk', did you mean 'truck'"):
        choose_classes([dataset], (), ["car=trcuk"])


def test_a_format_in_another_spelling_trains(squares: Path, tmp_path: Path) -> None:
    trainer = prepare(
        squares, RunOptions(preset="tinyssd", epochs=1, out=tmp_path / "run", format="V-OC", changes=SMALL)
    )
    assert trainer.training.format == "voc"
