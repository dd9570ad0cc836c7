"""The images and classes that a run learns from and is validated on."""

from pathlib import Path

import numpy as np
import pytest

from multibox.data.left_out import drop_difficult, sentences, training_counts
from multibox.errors import DataError, ImageError
from multibox.inference.detector import open_checkpoint
from multibox.structures import Sample, pack
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare
from multibox.training.splits import held_out, match_classes

SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


def options(out, **changes):
    return RunOptions(preset="tinyssd", epochs=changes.pop("epochs", 3), out=out, changes={**SMALL, **changes})


OTHER = "<object><name>red</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


def test_without_a_validation_split_a_stable_tenth_is_held_out(squares, tmp_path):
    (squares / "ImageSets" / "Main" / "val.txt").unlink()
    trainer = prepare(squares, options(tmp_path / "run"))
    assert trainer.validation is not None
    assert len(trainer.training) == 11
    assert len(trainer.validation.dataset) == 1
    names = [f"{i}.png" for i in range(100)]
    kept = {names[i] for i in held_out(names, np.arange(100))}
    assert len(kept) == 10
    backwards = names[::-1]
    assert {backwards[i] for i in held_out(backwards, np.arange(100))} == kept


def test_an_unreadable_image_stops_before_the_run_or_is_skipped(squares, tmp_path):
    image = squares / "JPEGImages" / "003.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"003\.png.*--on-bad skip"):
        prepare(squares, options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    told = []
    trainer = prepare(
        squares, RunOptions(preset="tinyssd", out=tmp_path / "run", on_bad="skip", changes=SMALL), Reporter(told.append)
    )
    assert len(trainer.training) == 11
    assert any("1 image " in line and "003.png" in line for line in told)


def test_a_split_without_objects_is_refused(squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        if path.stem < "012":
            path.write_text("<annotation><filename>" + path.stem + ".png</filename></annotation>")
    with pytest.raises(DataError, match="nothing to learn"):
        prepare(squares, options(tmp_path / "run"))


def test_a_held_out_image_with_the_only_object_is_refused(draw_squares, tmp_path):
    data = draw_squares(tmp_path / "data", 2)
    (data / "ImageSets" / "Main" / "val.txt").unlink()
    (data / "ImageSets" / "Main" / "train.txt").write_text("000\n001\n")
    (held,) = prepare(data, options(tmp_path / "run")).validation.dataset.image_names
    for path in (data / "Annotations").iterdir():
        if path.stem not in held:
            path.write_text("<annotation><filename>" + path.stem + ".png</filename></annotation>")
    with pytest.raises(DataError, match="nothing to learn"):
        prepare(data, options(tmp_path / "other"))


def test_val_split_none_trains_without_validation(squares, tmp_path):
    trainer = prepare(
        squares, RunOptions(preset="tinyssd", epochs=1, out=tmp_path / "run", val_split="none", changes=SMALL)
    )
    trainer.fit()
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert open_checkpoint(tmp_path / "run").names == ("blue", "red")


def labelled_images(images, names):
    samples = [
        Sample(f"{i}.jpg", Path(f"{i}.jpg"), np.tile([0.0, 0, 1, 1], (len(labels), 1)), np.array(labels, int),
               np.zeros(len(labels), bool), np.zeros(len(labels), bool))
        for i, labels in enumerate(images)
    ]  # fmt: skip
    return pack(samples, root=Path(), format="voc", split="train", class_names=names)


def test_classes_without_training_objects_do_not_join_the_model():
    training = labelled_images([[0, 2], [0]], ("a", "b", "c", "declared"))
    validation = labelled_images([[1, 0], [2, 3], [3]], ("c", "b", "a", "new"))
    training, validation, (note,) = match_classes(training, validation)
    assert training.class_names == validation.class_names == ("a", "c")
    assert training.labels.tolist() == [0, 1, 0]
    assert [sample.labels.tolist() for sample in validation] == [[1], [0], []]
    assert note == (
        "3 classes have no object in training (train) and are left out: b (1 in validation), declared, "
        "new (2 in validation)"
    )


def test_equal_classes_stay_as_they_are():
    training, validation = labelled_images([[0], [1], [2]], "abc"), labelled_images([[0]], "abc")
    assert match_classes(training, validation) == (training, validation, [])
    assert match_classes(training, None) == (training, None, [])


def test_a_resumed_run_leaves_out_the_difficult_objects_that_it_left_out_before(squares, tmp_path):
    for path in (squares / "Annotations").iterdir():
        text = path.read_text().replace("<object>", "<object><difficult>1</difficult>")
        path.write_text(text.replace("</annotation>", OTHER + "</annotation>"))
    first = prepare(squares, options(tmp_path / "run", **{"train.difficult": "drop"}))
    assert first.training.left_out["difficult"] == 12
    first.save()
    resumed = prepare(squares, RunOptions(resume=tmp_path / "run"))
    np.testing.assert_array_equal(resumed.training.boxes_xyxy, first.training.boxes_xyxy)


def labelled(name, difficult):
    count = len(difficult)
    flags = np.array(difficult, bool)
    return Sample(name, Path(name), np.zeros((count, 4)), np.zeros(count, int), flags, np.zeros(count, bool))


def test_difficult_objects_are_dropped_but_for_a_lonely_first():
    samples = [labelled("some", [False, True, False]), labelled("all", [True, True]), labelled("empty", [])]
    dataset = pack(samples, root=Path(), format="voc", split="train", class_names=["a"])
    kept = drop_difficult(dataset)
    assert kept.starts.tolist() == [0, 2, 3, 3]
    assert sentences(training_counts(kept)) == ["2 difficult objects are not trained on"]
