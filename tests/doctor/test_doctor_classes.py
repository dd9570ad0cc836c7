"""What the doctor says of class names and numbers of objects."""

import re
import shlex
from pathlib import Path

import pytest

from multibox import examine
from multibox.data.formats import open_dataset
from multibox.doctor.class_checks import _joining, twins
from multibox.doctor.examine import diagnose
from multibox.doctor.findings import KINDS, kinds_markdown, worst_first
from multibox.doctor.repair import repair

ALL = ("voc", "coco", "yolo", "csv", "recordio")


def found(folder, kind):
    return [one for one in examine(folder, fast=True) if one.kind == kind]


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ({"helmet": 100, "Helmet": 3}, [("Helmet", "helmet", True)]),
        ({"Helmet": 100, "helmet": 3}, [("helmet", "Helmet", True)]),
        ({"traffic light": 9, "traffic_light": 2, "Traffic-Light": 1}, None),
        ({"helmet": 100, "helmets": 90}, [("helmets", "helmet", False)]),
        ({"box": 9, "boxes": 2}, [("boxes", "box", False)]),
        ({"berry": 9, "berries": 2}, [("berries", "berry", False)]),
        ({"helmet": 100, "helmt": 2}, []),
        ({"helmet": 100, "hemlet": 2}, [("hemlet", "helmet", False)]),
        ({"person": 100, "persom": 2}, [("persom", "person", False)]),
        ({"person": 100, "parson": 90}, []),
        ({"class1": 100, "class2": 1, "class12": 1}, []),
        ({"lane 1": 50, "lane 2": 1}, []),
        ({"cat": 100, "car": 1, "cart": 1}, []),
        ({"a": 10, "A": 10}, []),
        ({"left": 10, "right": 2}, []),
        ({"": 0, "cat": 1}, []),
    ],
)
def test_twins_are_spellings_of_one_class(counts, pairs):
    if pairs is None:
        pairs = [("Traffic-Light", "traffic light", True), ("traffic_light", "traffic light", True)]
        assert {rare for rare, _, certain in twins(counts) if certain} == {rare for rare, _, _ in pairs}
    else:
        assert twins(counts) == pairs


def rename(objects, old, new, images):
    return {
        name: [(new if label == old and number < images else label, box) for label, box in rows]
        for number, (name, rows) in enumerate(objects.items())
    }


@pytest.mark.parametrize("format", ALL)
def test_a_misspelt_class_is_found_and_joined_where_certain(sets, tmp_path, format):
    objects = rename(sets.clean(), "dog", "Dog", 2)
    folder = sets.write(tmp_path / "data", format, sets.in_format(objects, format), ("cat", "dog", "Dog"))
    one = found(folder, "misspelt-class")
    assert [finding.where for finding in one] == ["class Dog"] and one[0].severity == "warning"
    done = repair(diagnose(folder, fast=True), tmp_path / "copy")
    assert [change.after for change in done.changes if change.kind == "misspelt-class"] == ["dog"]
    copy = open_dataset(tmp_path / "copy")
    assert sorted(copy.class_names) == ["cat", "dog"] and len(copy.labels) == 36
    assert not found(tmp_path / "copy", "misspelt-class")


def test_a_plural_is_left_to_a_person(sets, tmp_path):
    objects = rename(sets.clean(), "dog", "dogs", 2)
    folder = sets.write(tmp_path / "data", "voc", sets.in_format(objects, "voc"), ("cat", "dog", "dogs"))
    (one,) = found(folder, "misspelt-class")
    assert one.fix == "If they are one class, give it one spelling, or join both with --merge dog=dogs."
    repair(diagnose(folder, fast=True), tmp_path / "copy")
    assert sorted(open_dataset(tmp_path / "copy").class_names) == ["cat", "dog", "dogs"]


def test_the_advice_joins_two_spellings_on_a_command_line(run, sets, tmp_path):
    objects = rename(sets.clean(), "dog", "traffic lights", 3)
    objects = rename(objects, "dog", "traffic light", 12)
    classes = ("cat", "traffic light", "traffic lights")
    folder = sets.write(tmp_path / "data", "coco", sets.in_format(objects, "coco"), classes)
    (one,) = found(folder, "misspelt-class")
    (option, rule) = shlex.split(re.search(r"--merge .*(?=\.$)", one.fix)[0])
    assert rule == "traffic light=traffic lights"
    assert run("data", "convert", folder, tmp_path / "joined", "--to", "coco", option, rule)[0] == 0
    assert sorted(open_dataset(tmp_path / "joined").class_names) == ["cat", "traffic light"]


@pytest.mark.parametrize("name", ["a,bcdefg", "abc=defg", " abcdefg", "abc\ndefg", 'abc"defg', "abc$defg"])
def test_names_that_no_option_takes_are_joined_in_the_files(name):
    assert "--merge" not in _joining(name, "abcdefg", True)


@pytest.mark.parametrize("format", ["coco", "yolo", "csv", "recordio"])
def test_a_class_without_objects_is_noted(sets, tmp_path, format):
    classes = ("cat", "dog", "bird")
    folder = sets.write(tmp_path, format, sets.in_format(sets.clean(), format), classes)
    assert [one.where for one in found(folder, "unused-class")] == ["class bird"]


@pytest.mark.parametrize("name", ["background", "__ignore__", "__background__", "Background", "DontCare"])
@pytest.mark.parametrize("format", ALL)
def test_a_name_that_stands_for_no_class_is_found(sets, tmp_path, format, name):
    objects = rename(sets.clean(), "dog", name, 12)
    folder = sets.write(tmp_path, format, sets.in_format(objects, format), ("cat", name))
    assert [one.where for one in found(folder, "background-class")] == [f"class {name}"]


def test_an_unused_background_of_coco_is_no_finding(sets, tmp_path):
    objects = sets.in_format(sets.clean(), "coco")
    folder = sets.write(tmp_path, "coco", objects, ("cat", "dog", "background"))
    assert not found(folder, "background-class") and not found(folder, "unused-class")


@pytest.mark.parametrize("format", ["yolo", "recordio", "csv"])
def test_a_class_beyond_the_names_is_found(sets, tmp_path, format):
    folder = sets.write(tmp_path / "data", format, sets.in_format(sets.clean(), format))
    if format == "yolo":
        file = folder / "labels" / "train" / "image00.txt"
        file.write_text("7" + file.read_text()[1:])
    elif format == "csv":
        file = folder / "train" / "label.csv"
        file.write_text(file.read_text().replace("dog", "zebra", 1))
    else:
        (folder / "classes.txt").write_text("cat\n")
    assert found(folder, "class-out-of-range")
    repair(diagnose(folder, fast=True), tmp_path / "copy")
    assert not found(tmp_path / "copy", "class-out-of-range")


@pytest.mark.parametrize("format", ALL)
def test_rare_and_uneven_classes_are_noted(sets, tmp_path, format):
    objects = rename(sets.clean(), "dog", "cat", 11)
    folder = sets.write(tmp_path, format, sets.in_format(objects, format))
    assert [one.where for one in found(folder, "rare-class")] == ["class dog"]
    assert [one.severity for one in found(folder, "class-imbalance")] == ["note"]


@pytest.mark.slow
@pytest.mark.parametrize(("images", "severity"), [(14, "warning"), (2, "note")])
def test_a_class_of_one_split_is_a_mistake_if_chance_would_have_shared_it(sets, tmp_path, images, severity):
    objects = rename(sets.clean(40), "dog", "bird", images)
    classes = ("cat", "dog", "bird")
    folder = sets.write(tmp_path, "coco", sets.in_format(objects, "coco"), classes)
    sets.write(tmp_path, "coco", sets.in_format(sets.clean(30, seed=1), "coco"), classes, split="val")
    (one,) = found(folder, "class-in-one-split")
    assert one.where == "class bird" and one.severity == severity


@pytest.mark.parametrize("format", ALL)
def test_no_objects_at_all_are_an_error(sets, tmp_path, format):
    folder = sets.write(tmp_path, format, {name: [] for name in sets.clean()})
    (one,) = found(folder, "no-objects")
    assert one.severity == "error"


def test_difficult_everything_is_found(sets, tmp_path):
    folder = sets.write(tmp_path, "voc", sets.in_format(sets.clean(), "voc"))
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    (one,) = found(folder, "difficult-everything")
    assert "36 of 36" in one.what


def test_findings_are_grouped_and_the_worst_first(sets, tmp_path):
    objects = sets.clean()
    objects["image05"][0] = ("dog", [50, 60, 40, 70])
    objects["image06"][0] = ("dog", [0, 0, 200, 120])
    objects["image07"][0] = ("dog", [5, 5, 5, 70])
    objects["image08"][0] = ("dog", [50, 60, 40, 70])
    folder = sets.write(tmp_path, "voc", sets.in_format(objects, "voc"))
    kinds = [one.kind for one in examine(folder)]
    assert (
        kinds
        == ["reversed-box", "reversed-box", "empty-box", "whole-image-box", "rare-class", "rare-class"][: len(kinds)]
    )
    assert worst_first(reversed(examine(folder)))[0].kind == "reversed-box"


def test_every_kind_has_words_and_a_way_to_mend():
    assert len(KINDS) >= 60
    for kind, about in KINDS.items():
        assert kind == kind.lower() and " " not in kind
        assert about.why.endswith(".") and about.mend


def test_the_page_of_kinds_is_the_table():
    page = Path(__file__).parents[2] / "docs" / "doctor-kinds.md"
    text = page.read_text(encoding="utf-8")
    assert text == kinds_markdown(), "write it anew: multibox list findings --markdown > docs/doctor-kinds.md"
    assert max(map(len, text.splitlines())) < 120
