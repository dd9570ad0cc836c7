"""Ids and fields of COCO files, each damage by its own id."""

import json

import numpy as np
import pytest
from PIL import Image

from multibox import examine
from multibox.doctor.coco_ids import check_coco_file

QUIET = {"rare-class", "tiny-split", "class-imbalance", "unused-class", "one-based-boxes"}


@pytest.fixture
def content(tmp_path):
    """A sound COCO file of four images."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        pixels = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((160, 120))
        pixels.save(tmp_path / "images" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 160, "height": 120})
        one = {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [10 * number, 5, 50, 40]}
        annotations.append({**one, "area": 2000, "iscrowd": 0})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def change(content, path, value):
    *way, last = path
    for step in way:
        content = content[step]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "kind", "where"),
    [
        (("annotations", 2, "id"), 1, "duplicate-id", "annotations, entry 3"),
        (("images", 3, "id"), 1, "duplicate-id", "images, entry 4"),
        (("annotations", 2, "image_id"), 77, "dangling-id", "annotation 3"),
        (("annotations", 2, "image_id"), None, "dangling-id", "annotation 3"),
        (("annotations", 2, "category_id"), None, "missing-category", "annotation 3"),
        (("annotations", 2, "area"), None, "missing-area", "annotations"),
        (("annotations", 2, "iscrowd"), 1, "crowd-without-rle", "annotation 3"),
    ],
)
def test_one_damage(tmp_path, content, path, value, kind, where):
    change(content, path, value)
    if path[0] == "images":
        content["annotations"] = content["annotations"][:3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = [one for one in examine(tmp_path) if one.kind not in QUIET]
    assert [(one.kind, one.where) for one in found if one.kind != "image-without-label"] == [(kind, where)]


def test_a_sound_file_has_no_findings(tmp_path, content):
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert [one for one in examine(tmp_path) if one.kind not in QUIET] == []


def test_a_category_that_is_not_there(tmp_path, content):
    content["annotations"][2]["category_id"] = 77
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = {one.kind: one for one in examine(tmp_path) if one.kind not in QUIET}
    assert set(found) == {"missing-category", "dangling-id"}
    assert found["missing-category"].what == "1 annotation has category_id 77, which is no category"
    assert found["dangling-id"].where == "annotation 3"


def test_ids_that_are_text(tmp_path, content):
    for name, field in (("images", "id"), ("annotations", "image_id")):
        for entry in content[name]:
            entry[field] = str(entry[field])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = [one for one in examine(tmp_path) if one.kind not in QUIET]
    assert [one.kind for one in found] == ["text-id", "text-id"]
    assert found[1].what == "4 of 4 annotations have text as image_id, such as '1'"


def test_a_text_that_is_the_id_of_an_image_as_a_number(tmp_path, content):
    content["annotations"][0]["image_id"] = "1"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = list(check_coco_file(tmp_path / "annotations.json"))
    assert [one.kind for one in found] == ["text-id", "dangling-id"]
    assert found[1].what == "annotation id 1 has image_id '1', which no image has, though the image 1 is"


def test_categories_from_0(tmp_path, content):
    for entry in content["categories"]:
        entry["id"] -= 1
    for entry in content["annotations"]:
        entry["category_id"] -= 1
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    found = [one for one in examine(tmp_path) if one.kind not in QUIET]
    assert [(one.kind, one.severity) for one in found] == [("category-zero", "note")]


@pytest.mark.parametrize("categories", [[], [{"id": 1}], [{"name": "cat"}], [{"id": 1, "name": ""}]])
def test_categories_without_names(tmp_path, content, categories):
    content["categories"] = categories
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    assert "missing-category" in {one.kind for one in check_coco_file(path)}


@pytest.mark.parametrize("text", ["", "[1", "[]", "7", '{"images": 3, "annotations": [4, null], "categories": {}}'])
def test_other_json_is_no_crash(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    assert {one.kind for one in check_coco_file(path)} <= {"missing-category"}


def test_a_crowd_with_run_lengths_is_sound(tmp_path, content):
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [120, 160], "counts": [0, 5, 19195]}}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    assert list(check_coco_file(path)) == []


def test_a_flag_written_as_text_is_no_crowd(tmp_path, content):
    content["annotations"][0] |= {"iscrowd": "0"}
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    assert "crowd-without-rle" not in {one.kind for one in check_coco_file(file)}
