"""What a repaired copy lacks or has otherwise stands in its log, and an image never becomes background by a loss."""

import csv
import json
import struct
import zlib

import pytest

from multibox.data.formats import open_dataset
from multibox.doctor.examine import diagnose
from multibox.doctor.repair import CHANGES, repair


def logged(copy):
    return list(csv.DictReader((copy / CHANGES).read_text(encoding="utf-8").splitlines()))


def break_box(folder, format, name):
    """Make the first box of an image unreadable."""
    if format == "voc":
        file = folder / "Annotations" / f"{name}.xml"
        start, rest = file.read_text().split("<xmin>", 1)
        file.write_text(f"{start}<xmin>abc{rest[rest.index('<') :]}")
    elif format == "yolo":
        file = folder / "labels" / "train" / f"{name}.txt"
        file.write_text("\n".join(["1,.5,.5,.1,.1", *file.read_text().splitlines()[1:]]))
    elif format == "csv":
        file = folder / "train" / "label.csv"
        lines = file.read_text().splitlines()
        row = next(n for n, line in enumerate(lines) if line.startswith(f"{name}.png"))
        lines[row] = ",".join([*lines[row].split(",")[:-1], ""])
        file.write_text("\n".join(lines) + "\n")
    else:
        file = folder / "annotations" / "instances_train.json"
        content = json.loads(file.read_text())
        image = next(one["id"] for one in content["images"] if one["file_name"] == f"{name}.png")
        next(one for one in content["annotations"] if one["image_id"] == image)["bbox"].pop()
        file.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["voc", "coco", "yolo", "csv"])
def test_an_unreadable_box_is_logged_and_its_image_is_no_background(sets, tmp_path, format):
    objects = sets.clean()
    objects["image03"] = objects["image03"][:1]
    objects["image05"] = []  # background by intention
    folder = sets.write(tmp_path / "data", format, sets.in_format(objects, format))
    for name in ("image02", "image03"):
        break_box(folder, format, name)
    diagnosis = diagnose(folder, fast=True)
    found = [one for one in diagnosis.findings if one.kind == "not-a-number"]
    done = repair(diagnosis, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy", format=format)
    assert len(found) == 2 and len(copy) == 11 and len(copy.labels) == 36 - 3 - 2 - 2
    assert "image03.png" not in list(copy.image_names) and "image05.png" in list(copy.image_names)
    rows = logged(tmp_path / "copy")
    assert [row["kind"] for row in rows] == ["not-a-number"] * 3 and len(done.changes) == 3
    assert [row["after"] for row in rows] == ["left out"] * 3
    assert [row["before"] for row in rows].count("image") == 1


def coco(sets, folder, change):
    folder = sets.write(folder, "coco", sets.in_format(sets.clean(), "coco"))
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


def test_both_images_of_an_id_used_twice_and_their_boxes_are_logged(sets, tmp_path):
    folder = coco(sets, tmp_path / "data", lambda content: content["images"][3].update(id=3))
    done = repair(diagnose(folder, fast=True), tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy")
    assert len(copy) == 10 and len(copy.labels) == 30
    images = [one.where for one in done.changes if one.kind == "duplicate-id"]
    assert images == ["image02.png", "image03.png"]
    assert sum(one.kind == "dangling-id" and one.after == "left out" for one in done.changes) == 6


def test_what_is_written_anew_in_coco_is_logged_and_a_class_that_stays_is_not_called_left_out(sets, tmp_path):
    def change(content):
        content["categories"][0]["name"] = None
        content["annotations"][1]["id"] = 1
        del content["annotations"][5]["area"]
        for one in content["annotations"]:
            one["image_id"] = str(one["image_id"])
        for one in content["images"]:
            one["id"] = str(one["id"])

    folder = coco(sets, tmp_path / "data", change)
    done = repair(diagnose(folder, fast=True), tmp_path / "copy")
    assert "1" in open_dataset(tmp_path / "copy").class_names
    assert {(one.kind, one.after) for one in done.changes} == {
        ("missing-category", "class '1'"),
        ("duplicate-id", "an id of its own"),
        ("missing-area", "the area of each box"),
        ("text-id", "numbers"),
    }


def test_sizes_and_names_that_change_are_logged(sets, tmp_path):
    folder = sets.write(tmp_path / "data", "voc", sets.in_format(sets.clean(), "voc"))
    for file in (folder / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("<name>dog<", "<name>a/dog&#10;b<"))
    label = folder / "Annotations" / "image01.xml"
    label.write_text(label.read_text().replace("<width>200", "<width>180"))
    done = repair(diagnose(folder, fast=True), tmp_path / "copy")
    kinds = {one.kind: one for one in done.changes}
    assert kinds["size-mismatch"].after == "the size of the image"
    assert kinds["renamed"].where == "class a/dog\nb"
    assert kinds["renamed"].after in open_dataset(tmp_path / "copy").class_names


def test_a_split_is_not_emptied_for_the_images_that_it_shares(sets, tmp_path):
    folder = sets.write(tmp_path / "data", "yolo", sets.in_format(sets.clean(), "yolo"))
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(text + "val: images/train\n")
    done = repair(diagnose(folder), tmp_path / "copy")
    assert len(open_dataset(tmp_path / "copy", "train")) == len(open_dataset(tmp_path / "copy", "val")) == 12
    assert not done.changes and "12 of its 12 images" in done.notes[0] and "multibox data split" in done.notes[0]
    assert "leaked-image" in {one.kind for one in diagnose(tmp_path / "copy").findings}


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_an_image_too_large_to_decode_is_an_error_and_its_loss_logged(sets, tmp_path, format):
    folder = sets.write(tmp_path / "data", format, sets.in_format(sets.clean(), format))
    file = next(folder.rglob("image04.png"))
    head = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    parts = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    diagnosis = diagnose(folder)
    assert [one.severity for one in diagnosis.findings if one.kind == "huge-image"] == ["error"]
    done = repair(diagnosis, tmp_path / "copy")
    assert "image04.png" not in list(open_dataset(tmp_path / "copy").image_names)
    assert [one.where for one in done.changes if one.kind == "huge-image"] == ["image04.png"]


def test_a_box_that_leaves_its_image_by_a_little_is_cut_in_a_format_of_fractions_and_logged(sets, tmp_path):
    objects = sets.clean()
    objects["image02"][0] = ("dog", [-0.7, 20, 40, 60])
    folder = sets.write(tmp_path / "data", "yolo", sets.in_format(objects, "yolo"))
    done = repair(diagnose(folder, fast=True), tmp_path / "copy")
    assert [(one.kind, one.before, one.after) for one in done.changes] == [
        ("clipped-box", "-0.7 20 40 60", "0 20 40 60")
    ]
    assert not any("clipped" in note for note in done.notes)


def test_sets_of_two_formats_become_one_copy_as_coco(sets, tmp_path):
    objects = sets.clean()
    places = [sets.write(tmp_path / one, one, sets.in_format(objects, one)) for one in ("voc", "yolo")]
    (places[1] / "labels" / "train" / "image01.txt").write_text("0 0.5 0.5")
    done = repair(diagnose(places, fast=True), tmp_path / "copy")
    assert done.format == "coco" and sum(one.kind == "unreadable-label" for one in done.changes) == 2
    assert len(open_dataset(tmp_path / "copy", "train")) == 23
