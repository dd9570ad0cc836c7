"""Data sets that are smaller or stranger than anybody thought."""

import json

import numpy as np
import pytest
from PIL import Image

from multibox.models.checkpoint import load_checkpoint


def remove_objects(data, *numbers):
    for number in numbers:
        path = data / "Annotations" / f"{number:03}.xml"
        text = path.read_text()
        path.write_text(text.partition("<object>")[0] + "</annotation>")


def rename_class(data, old, new, *numbers):
    for number in numbers:
        path = data / "Annotations" / f"{number:03}.xml"
        path.write_text(path.read_text().replace(f"<name>{old}</name>", f"<name>{new}</name>"))


def split(data, **names):
    for name, numbers in names.items():
        text = "".join(f"{number:03}\n" for number in numbers)
        (data / "ImageSets" / "Main" / f"{name}.txt").write_text(text)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing the curves takes twice as long as these trainings."""
    monkeypatch.setattr("multibox.plots.curves.plot_training", lambda *_: None)


@pytest.fixture
def train(call, squares, tmp_path, train_options):
    """Train on the squares for two epochs, and return exit code, output and standard error."""
    return lambda *more: call("train", squares, "--out", tmp_path / "run", "--epochs", "2", *train_options, *more)


def test_one_image_is_refused_with_what_to_do_and_then_trained_on(train, squares, tmp_path):
    (squares / "ImageSets" / "Main" / "val.txt").unlink()
    split(squares, train=[0])
    code, _, err = train()
    assert code == 2
    assert "1 image is too few to train and validate" in err and "--val-split none" in err
    assert not (tmp_path / "run").exists()
    code, out, err = train("--val-split", "none")
    assert code == 0, err
    assert "2 steps" in out
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_one_image_to_learn_from_and_one_to_validate_on(train, squares):
    split(squares, train=[0], val=[1])
    rename_class(squares, "red", "blue", *range(16))
    code, _, err = train()
    assert code == 0, err


def test_two_images_without_splits(train, squares):
    (squares / "ImageSets" / "Main" / "val.txt").unlink()
    split(squares, train=[0, 1])
    rename_class(squares, "red", "blue", *range(16))
    code, out, err = train()
    assert code == 0, err
    assert "1 images (train), 1 for validation" in out


@pytest.mark.slow
@pytest.mark.parametrize("where", ["validation", "a held-out part", "a split that is not used"])
def test_a_class_that_is_not_learnt_does_not_join_the_model(train, squares, tmp_path, where):
    rename_class(squares, "red", "green", 12, 13, 14, 15)
    rename_class(squares, "blue", "green", 12, 13, 14, 15)
    if where == "a held-out part":
        from multibox.training.splits import held_out

        (squares / "ImageSets" / "Main" / "val.txt").unlink()
        split(squares, train=range(12))
        held = held_out([f"{number:03}.png" for number in range(12)], np.arange(12))
        rename_class(squares, "red", "green", *held)
        rename_class(squares, "blue", "green", *held)
    code, out, err = train(*(["--val-split", "none"] if where == "a split that is not used" else []))
    assert code == 0, err
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").class_names == ("blue", "red")
    assert "left out: green" in out
    if where == "validation":
        assert "1 class has no object in training (train) and is left out: green (4 in validation)" in out


@pytest.mark.slow
def test_classes_are_chosen_and_merged(train, squares, tmp_path):
    # Green is in validation alone, and joined all the same
    rename_class(squares, "red", "green", 12, 13, 14, 15)
    code, out, err = train("--set", 'data.merge=["warm=red,green"]', "--set", 'data.classes=["warm"]')
    assert code == 0, err
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").class_names == ("warm",)
    assert "classes warm" in out


@pytest.mark.parametrize("batch", [5, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 11, 12, 64))])
def test_any_batch_size_trains(call, squares, tmp_path, train_options, batch):
    """Batches larger than the data, and epochs whose last batch would be one image."""
    command = ["train", squares, "--out", tmp_path / "run", "--epochs", "2", *train_options]
    code, out, err = call(*command, "--set", f"train.batch_size={batch}")
    assert code == 0, err
    assert f"({2} epochs of " in out


def test_images_without_objects_are_fine_among_others_and_refused_alone(train, squares, tmp_path):
    remove_objects(squares, *range(12))
    code, _, err = train()
    assert code == 2
    assert "there is nothing to learn" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_some_images_without_objects_count_as_background(train, squares, tmp_path):
    remove_objects(squares, 1, 2, 3, 4, 13)
    code, _, err = train()
    assert code == 0, err


@pytest.mark.slow
def test_a_validation_split_without_objects_is_said_to_score_nothing(train, squares):
    remove_objects(squares, 12, 13, 14, 15)
    code, out, err = train()
    assert code == 0, err
    assert "mAP@0.5 -" in out
    assert "nan" not in out.lower()


def test_predict_on_images_of_all_shapes(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size, mode in (
        ("dot", (1, 1), "RGB"),
        ("line", (900, 1), "L"),
        ("tall", (3, 700), "RGBA"),
        ("p", (9, 9), "P"),
    ):
        Image.new(mode, size).save(f"{name}.png")
    code, _, err = call("predict", "coco", ".", "--json", "found.json")
    assert code == 0, err
    assert len(json.loads((tmp_path / "found.json").read_text())) == 4
