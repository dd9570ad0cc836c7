import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from multibox.errors import ConfigError, ImageError, MissingExtraError
from multibox.structures import Detection, Detections, checked_class_names

FOUND = Detections(
    np.array([[1, 2, 11, 22], [3, 4, 5, 6], [0, 0, 8, 9]], np.float32),
    np.array([0.875, 0.5, 0.25], np.float32),
    np.array([1, 0, 1], np.int64),
    ("cat", "dog"),
)
NOTHING = FOUND[[]]


def test_each_detection_unpacks_as_box_score_label_and_name():
    rows = [(box.tolist(), score, label, name) for box, score, label, name in FOUND]
    assert rows[:2] == [([1, 2, 11, 22], 0.875, 1, "dog"), ([3, 4, 5, 6], 0.5, 0, "cat")]
    assert all(type(score) is float and type(label) is int for _, score, label, _ in FOUND)
    assert len(FOUND) == 3 and list(NOTHING) == []


def test_an_integer_gives_one_and_everything_else_detections():
    last = FOUND[np.int64(-1)]
    assert isinstance(last, Detection)
    assert (last.score, last.label, last.name, last.box.tolist()) == (0.25, 1, "dog", [0, 0, 8, 9])
    with pytest.raises(IndexError):
        FOUND[3]
    for index in (slice(0, 2), [0, 1], (0, 1), np.array([0, 1]), FOUND.scores >= 0.5, [True, True, False]):
        assert FOUND[index] == Detections(FOUND.boxes[:2], FOUND.scores[:2], FOUND.labels[:2], FOUND.names)
    assert len(FOUND[[False] * 3]) == len(FOUND[()]) == len(NOTHING) == 0


def test_coco_results_and_torchvisions_keys():
    entries = FOUND.to_coco(image_id=7)
    assert entries[0] == {"image_id": 7, "category_id": 2, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.875}
    assert [entry["category_id"] for entry in entries] == [2, 1, 2]
    assert NOTHING.to_coco(7) == []
    found = FOUND.to_dict()
    assert set(found) == {"boxes", "labels", "scores"}
    assert found["boxes"].shape == (3, 4) and found["labels"].dtype == np.int64


@pytest.mark.filterwarnings("ignore:OpenCV")  # which it can do without
def test_supervision_takes_them():
    import supervision

    theirs = FOUND.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    np.testing.assert_array_equal(theirs.xyxy, FOUND.boxes)
    np.testing.assert_array_equal(theirs.confidence, FOUND.scores)
    np.testing.assert_array_equal(theirs.class_id, FOUND.labels)
    assert theirs.data["class_name"].tolist() == ["dog", "cat", "dog"]
    assert len(theirs[theirs.confidence > 0.4]) == 2
    assert len(NOTHING.to_supervision()) == 0
    merged = supervision.Detections.merge([theirs, NOTHING.to_supervision()])
    assert len(merged) == 3


def test_without_supervision_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"to_supervision\(\) needs .*pip install 'multibox\[video\]'"):
        FOUND.to_supervision()


def test_draw_takes_every_form_and_leaves_it_as_it_was(tmp_path):
    pixels = np.full((40, 60, 3), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    drawn = [np.asarray(FOUND.draw(form)) for form in (pixels, Image.fromarray(pixels), tmp_path / "a.png")]
    assert (pixels == 90).all()
    assert all(np.array_equal(each, drawn[0]) for each in drawn)
    assert (drawn[0] != pixels).any()
    assert np.array_equal(FOUND.draw(pixels, threshold=0.9), pixels)
    with pytest.raises(ImageError, match="float"):
        FOUND.draw(pixels / 255)


def test_all_of_it_works_without_torch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from multibox import Detections
found = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), ("a",))
list(found), found[0], found[:1], found.to_coco(1), found.to_dict(), found.draw(np.zeros((9, 9, 3), np.uint8))
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_detections_and_errors_survive_a_pickle():
    assert pickle.loads(pickle.dumps(FOUND)) == FOUND
    error = pickle.loads(pickle.dumps(MissingExtraError("x", "video")))
    assert str(error) == str(MissingExtraError("x", "video"))
    assert str(pickle.loads(pickle.dumps(ImageError("a sentence")))) == "a sentence"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "at least one class name, got none"),
        ("cat", r"text 'cat', expected a list; for one class give \['cat'\]"),
        (["a", "b", "a"], r"'a' is given twice \(places 0 and 2\)"),
        (["a", ""], "class name 1 is '', expected text"),
        (["a", " "], "class name 1 is ' ', expected text"),
        ([1, 2], "class name 0 is 1, expected text"),
    ],
)
def test_class_names_that_are_none(names, sentence):
    with pytest.raises(ConfigError, match=sentence):
        checked_class_names(names)


def test_class_names():
    assert checked_class_names(name for name in ("cat", "大 熊猫")) == ("cat", "大 熊猫")
