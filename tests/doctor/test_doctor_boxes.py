"""Each fault of boxes in each format where it can stand, found under its own id; the copy is free of it."""

import csv
import io
import json
import math
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multibox.data.formats import open_dataset
from multibox.doctor.box_checks import Pair, overlapping
from multibox.doctor.examine import diagnose
from multibox.doctor.findings import KINDS
from multibox.doctor.repair import CHANGES, remaining_kinds, repair
from multibox.structures import iou

QUIET = {"rare-class", "tiny-split", "class-imbalance", "missing-area"}
PIXELS = ("voc", "coco", "csv")
ALL = ("voc", "coco", "yolo", "csv", "recordio")


def kinds(folder, **options):
    return kinds_in(diagnose(folder, fast=True, **options))


def kinds_in(diagnosis):
    return {one.kind for one in diagnosis.findings} - QUIET


def near(box, dx=1.0, dy=1.0):
    return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy]


def inside(box):
    wide, tall = (box[2] - box[0]) * 0.06, (box[3] - box[1]) * 0.06
    return [box[0] + wide, box[1] + tall, box[2] - wide, box[3] - tall]


ONE_BOX = {
    # What becomes of the first box of the third image, which formats can hold it, and how many boxes the copy has more
    "reversed-box": (lambda b: [("dog", [b[2], b[3], b[0], b[1]])], ALL, 0),
    "empty-box": (lambda b: [("dog", [b[0], b[1], b[0], b[3]])], ALL, -1),
    "tiny-box": (lambda b: [("dog", [b[0], b[1], b[0] + 0.5, b[3]])], ALL, -1),
    "outside-box": (lambda b: [("dog", [260, 10, 300, 60])], ALL, -1),
    "clipped-box": (lambda b: [("dog", [-30, b[1], 40, b[3]])], ALL, 0),
    "whole-image-box": (lambda b: [("dog", [0, 0, 200, 120])], ALL, 0),
    "not-a-number": (lambda b: [("dog", [math.nan, b[1], b[2], b[3]])], ("voc", "coco", "csv", "yolo", "recordio"), -1),
    "duplicate-box": (lambda b: [("dog", b), ("dog", b)], ALL, 0),
    "same-place-two-classes": (lambda b: [("dog", b), ("cat", b)], ALL, 1),
    "nested-duplicate": (lambda b: [("dog", b), ("dog", inside(b))], ALL, 1),
}


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        pytest.param(kind, one, marks=[pytest.mark.slow] * (one in ("yolo", "recordio")))
        for kind, row in ONE_BOX.items()
        for one in row[1]
    ],
)
def test_one_faulty_box_is_found_under_its_id_and_mended(sets, tmp_path, kind, format):
    objects = sets.clean()
    change, _, more = ONE_BOX[kind]
    objects["image02"][:1] = change(objects["image02"][0][1])
    folder = sets.write(tmp_path / "data", format, sets.in_format(objects, format))
    diagnosis = diagnose(folder, fast=True)
    assert kinds_in(diagnosis) == {kind}
    found = [one for one in diagnosis.findings if one.kind == kind]
    assert len(found) == 1 and found[0].severity == KINDS[kind].severity
    done = repair(diagnosis, tmp_path / "copy")
    assert done.format == format
    assert kinds(tmp_path / "copy", format=format) == ({kind} & remaining_kinds())
    copy = open_dataset(tmp_path / "copy", format=format)
    assert len(copy.labels) == 36 + more
    rows = list(csv.DictReader((tmp_path / "copy" / CHANGES).read_text(encoding="utf-8").splitlines()))
    assert {row["kind"] for row in rows} == ({kind} - remaining_kinds())


@pytest.mark.parametrize("format", ALL)
def test_a_clean_set_has_no_finding(sets, tmp_path, format):
    folder = sets.write(tmp_path / "data", format, sets.in_format(sets.clean(), format))
    assert not kinds(folder)


WHOLE_SET = {
    "wrong-box-format": [
        ("voc", {"layout": "xywh"}),
        ("voc", {"layout": "cxcywh"}),
        ("voc", {"layout": "xxyy"}),
        ("csv", {"layout": "xywh"}),
        ("csv", {"layout": "cxcywh"}),
        ("coco", {"layout": "xyxy"}),
        ("coco", {"layout": "cxcywh"}),
        ("yolo", {"layout": "xyxy"}),
        ("yolo", {"layout": "xywh"}),
        ("recordio", {"layout": "xywh"}),
        ("recordio", {"layout": "cxcywh"}),
    ],
    "normalised-boxes": [("voc", {"fractions": True}), ("coco", {"fractions": True}), ("csv", {"fractions": True})],
    "pixel-boxes": [("yolo", {"fractions": False}), ("recordio", {"fractions": False})],
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "format", "mistake"), [(k, *one) for k, rows in WHOLE_SET.items() for one in rows])
def test_a_whole_set_read_wrongly_is_one_finding_and_read_rightly_by_the_copy(sets, tmp_path, kind, format, mistake):
    objects = sets.clean()
    folder = sets.write(tmp_path / "data", format, sets.in_format(objects, format, **mistake))
    diagnosis = diagnose(folder, fast=True)
    assert kinds_in(diagnosis) == {kind}
    assert sum(one.kind == kind for one in diagnosis.findings) == 1
    repair(diagnosis, tmp_path / "copy")
    assert not kinds(tmp_path / "copy", format=format)
    copy = open_dataset(tmp_path / "copy", format=format)
    right = np.array([box for rows in objects.values() for _, box in rows])
    assert np.abs(copy.boxes_xyxy - right).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL)
def test_exchanged_axes_are_found_and_exchanged_back(sets, tmp_path, format):
    objects = sets.clean()
    swapped = {n: [(c, [r[1], r[0], r[3], r[2]]) for c, r in rows] for n, rows in objects.items()}
    folder = sets.write(tmp_path / "data", format, sets.in_format(swapped, format))
    diagnosis = diagnose(folder, fast=True)
    assert kinds_in(diagnosis) == {"swapped-axes"}
    repair(diagnosis, tmp_path / "copy")
    copy = open_dataset(tmp_path / "copy", format=format)
    right = np.array([box for rows in objects.values() for _, box in rows])
    assert np.abs(copy.boxes_xyxy - right).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("format", "factor"), [(one, factor) for one in ("voc", "csv", "coco") for factor in (0.5, 2)])
def test_labels_made_at_another_size_are_found(sets, tmp_path, format, factor):
    objects = {
        name: [(label, [value * factor for value in box]) for label, box in rows]
        for name, rows in sets.clean(20).items()
    }
    folder = sets.write(tmp_path / "data", format, sets.in_format(objects, format))
    assert "scale-mismatch" in kinds(folder)


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL)
def test_corners_that_count_from_one_are_noted(sets, tmp_path, format):
    objects = sets.clean()
    for name in ("image01", "image03", "image05"):
        objects[name][0] = ("cat", [0, 20, 40, 60])
    folder = sets.write(tmp_path / "zero", format, sets.in_format(objects, format))
    assert not kinds(folder)
    objects = {name: [(label, near(box)) for label, box in rows] for name, rows in objects.items()}
    folder = sets.write(tmp_path / "one", format, sets.in_format(objects, format))
    assert kinds(folder) == {"one-based-boxes"}
    (found,) = (one for one in diagnose(folder, fast=True).findings if one.kind == "one-based-boxes")
    assert found.severity == ("note" if format == "voc" else "warning")


@st.composite
def box_sets(draw):
    count = draw(st.integers(0, 30))
    corners = draw(st.lists(st.tuples(*[st.integers(0, 20)] * 4), min_size=count, max_size=count))
    owners = sorted(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    boxes = np.array(corners, np.float64).reshape(-1, 4)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] + 1
    return boxes, np.array(owners, np.int64)


@given(box_sets())
def test_overlapping_pairs_are_all_pairs_of_an_image_that_overlap(drawn):
    boxes, owners = drawn
    first, second = overlapping(boxes, owners)
    found = {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    overlap = iou(boxes[:, None], boxes) > 0
    wanted = {
        (a, b) for a in range(len(boxes)) for b in range(a + 1, len(boxes)) if owners[a] == owners[b] and overlap[a, b]
    }
    assert found == wanted and len(first) == len(found)


@pytest.mark.parametrize("format", ["yolo", "recordio"])
def test_fractions_divided_twice_are_found_and_multiplied_back(sets, tmp_path, format):
    objects = sets.clean()
    width, height = sets.size
    small = {n: [(c, np.divide(b, [width, height] * 2).tolist()) for c, b in rows] for n, rows in objects.items()}
    folder = sets.write(tmp_path / "data", format, sets.in_format(small, format))
    diagnosis = diagnose(folder, fast=True)
    assert kinds_in(diagnosis) == {"normalised-boxes"}
    repair(diagnosis, tmp_path / "copy")
    right = np.array([box for rows in objects.values() for _, box in rows])
    assert np.abs(open_dataset(tmp_path / "copy", format=format).boxes_xyxy - right).max() < 0.05


def test_images_in_a_container_are_examined_and_a_format_that_is_only_read_becomes_coco(sets, tmp_path):
    objects = sets.clean()
    objects["image04"].append(objects["image04"][0])
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "train-000.tar", "w") as shard:
        for name, rows in sets.in_format(objects, "coco").items():
            picture = io.BytesIO()
            sets.photo(int(name[-2:])).save(picture, "PNG")
            data = picture.getvalue() if name != "image07" else picture.getvalue()[:200]
            label = {"objects": {"bbox": [box for _, box in rows], "category": [one for one, _ in rows]}}
            for suffix, content in (("png", data), ("json", json.dumps(label).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    diagnosis = diagnose(tmp_path / "data")
    assert kinds_in(diagnosis) - {"near-duplicate-image"} == {"duplicate-box", "truncated-image"}
    done = repair(diagnosis, tmp_path / "copy")
    assert done.format == "coco"
    copy = open_dataset(tmp_path / "copy")
    assert len(copy) == 11 and len(copy.labels) == 33 and "image07.png" not in list(copy.image_names)


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.sampled_from(sorted(ONE_BOX)), min_size=2, max_size=6))
def test_several_faults_are_all_found_and_the_copy_has_none_that_can_be_mended(sets, tmp_path, format, chosen):
    place = tmp_path / "-".join(chosen)
    shutil.rmtree(place, ignore_errors=True)
    objects = sets.clean(24)
    for number, kind in enumerate(chosen):
        rows = objects[f"image{number:02}"]
        rows[:1] = ONE_BOX[kind][0](rows[0][1])
    folder = sets.write(place / "data", format, sets.in_format(objects, format))
    diagnosis = diagnose(folder, fast=True)
    assert kinds_in(diagnosis) == set(chosen)
    repair(diagnosis, place / "copy")
    assert kinds(place / "copy", format=format) <= remaining_kinds()


@pytest.mark.slow
def test_each_of_many_copies_is_a_duplicate_of_the_first(sets, tmp_path):
    """As pairs of all with all, 20,000 copies took minutes and gigabytes."""
    objects = sets.clean()
    name, box = objects["image02"][0]
    objects["image02"] = [(name, box)] * 20_000 + [("cat" if name == "dog" else "dog", box)]
    folder = sets.write(tmp_path / "data", "csv", sets.in_format(objects, "csv"))
    split = next(one for one in diagnose(folder, fast=True).splits.values() if len(one.survey.raw.labels) > 20_000)
    rows = np.flatnonzero(split.survey.raw.owners == split.survey.raw.image_names.index("image02.png"))
    first = int(rows[0])
    expected = [Pair("duplicate-box", first, first + n, 1.0, "warning") for n in range(1, 20_000)]
    expected.append(Pair("same-place-two-classes", first, first + 20_000, 1.0, "warning"))
    assert split.faults.pairs == expected


def test_a_list_may_name_a_folder(sets, tmp_path):
    folder = sets.write(tmp_path / "data", "voc", sets.in_format(sets.clean(), "voc"))
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text(".\nimage00\nimage01\n")
    assert diagnose(folder, fast=True).findings
