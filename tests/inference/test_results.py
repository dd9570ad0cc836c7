import json

import numpy as np
import pytest

from multibox.errors import DataError
from multibox.inference.results import ImageResult, distinct_names, read_predictions, result_files, write_results
from multibox.structures import Detections

NAMES = ("cat", "dog")


def result(file, boxes=((10, 20, 30, 60),), labels=(1,), scores=(0.87,), size=(100, 200)):
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64), NAMES
    )
    return ImageResult(file, *size, found)


EMPTY = result("b/000000000140.jpg", (), (), ())


def test_json_is_the_designs_and_comes_back(tmp_path):
    rows = [result("a/000000000139.jpg"), EMPTY]
    write_results(rows, json_file=tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {
            "file": "a/000000000139.jpg",
            "width": 100,
            "height": 200,
            "detections": [{"label": 1, "name": "dog", "score": 0.87, "box": [10, 20, 30, 60]}],
        },
        {"file": "b/000000000140.jpg", "width": 100, "height": 200, "detections": []},
    ]
    back = read_predictions(tmp_path / "p.json")
    assert [row.file for row in back] == [row.file for row in rows]
    assert np.allclose(back[0].detections.boxes, rows[0].detections.boxes)
    assert back[0].detections.labels.tolist() == [1]


def test_coco_results(tmp_path):
    write_results([result("a/000000000139.jpg"), EMPTY], coco=tmp_path / "c.json")
    expected = {"image_id": 139, "category_id": 2, "bbox": [10, 20, 20, 40], "score": 0.87}
    assert json.loads((tmp_path / "c.json").read_text()) == [expected]
    write_results([result("a/cat.jpg")], coco=tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())[0]["image_id"] == "cat"


def test_yolo_text_one_file_a_image(tmp_path):
    write_results([result("a/x.jpg"), result("b/x.jpg", (), (), ())], yolo=tmp_path / "yolo")
    assert (tmp_path / "yolo" / "x.txt").read_text() == "1 0.200000 0.200000 0.200000 0.200000 0.87000\n"
    assert (tmp_path / "yolo" / "x-2.txt").read_text() == ""


def test_voc_text_one_file_a_class(tmp_path):
    write_results([result("a/x.jpg")], voc=tmp_path / "voc")
    assert (tmp_path / "voc" / "comp4_det_test_dog.txt").read_text() == "x 0.87000 10.00 20.00 30.00 60.00\n"
    assert (tmp_path / "voc" / "comp4_det_test_cat.txt").read_text() == ""
    with pytest.raises(DataError, match="must not hold"):
        write_results([result("a/x y.jpg")], voc=tmp_path / "voc2")


def test_nothing_is_left_of_results_that_were_not_finished(tmp_path):
    places = {name: tmp_path / name for name in ("json_file", "coco", "voc")}
    with pytest.raises(RuntimeError), result_files(["a.jpg", "b.jpg"], NAMES, **places) as add:
        add(0, result("a.jpg"))
        raise RuntimeError
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_image_may_be_left_out(tmp_path):
    with result_files(["1.jpg", "2.jpg", "3.jpg"], NAMES, coco=tmp_path / "c.json") as add:
        add(0, result("1.jpg"))
        add(2, result("3.jpg"))
    assert [entry["image_id"] for entry in json.loads((tmp_path / "c.json").read_text())] == [1, 3]


def test_many_lines_of_voc_go_to_disk_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.inference.results.VOC_LINES", 1)
    write_results([result(f"{index}.jpg", labels=(index % 2,)) for index in range(7)], voc=tmp_path)
    lines = (tmp_path / "comp4_det_test_cat.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "2", "4", "6"]


def test_names_are_told_apart():
    assert distinct_names(["A", "a", "A-2", "a"]) == ["A", "a-3", "A-2", "a-4"]
    assert distinct_names(["a", "a", "b", "a-2", "a"]) == ["a", "a-3", "b", "a-2", "a-4"]


@pytest.mark.parametrize("text", ["", "{}", '[{"file": "x"}]', "[1]"])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=r"p\.json"):
        read_predictions(tmp_path / "p.json")
