"""The relabel list, read back with our own readers: labels are as they were, and suggestions are no labels."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from multibox.analysis.relabel import is_untouched, renew_relabel, write_relabel
from multibox.analysis.suspects import find_suspects
from multibox.columns import Texts
from multibox.data.convert import write_dataset
from multibox.data.formats import FORMATS, open_dataset
from multibox.structures import Detections, Sample, Size, pack

NAMES = ("cell", "plate")
BOXES = np.array([[10.0, 10, 50, 50], [60, 60, 90, 95]])


@pytest.fixture
def source(tmp_path):
    """Return a data set of 12 images as VOC, of which image 3 lacks a label and image 5 has a wrong class."""
    samples = []
    (tmp_path / "plain").mkdir()
    for number in range(12):
        path = tmp_path / "plain" / f"im {number}.png"
        Image.new("RGB", (100, 100), (number * 20, 90, 120)).save(path)
        rows = [0] if number == 3 else [0, 1]
        labels = np.array([0, 0 if number == 5 else 1])[rows]
        flags = np.zeros(len(rows), np.bool_)
        samples.append(Sample(path.name, path, BOXES[rows], labels, flags, flags, Size(100, 100)))
    return pack(samples, root=tmp_path / "plain", format="", split="train", class_names=NAMES)


def written(source, format, folder):
    write_dataset({"train": source}, folder, format)
    return open_dataset(folder, "train", class_names=NAMES)


def suspects_of(dataset):
    seen = Detections(BOXES.astype(np.float32), np.array([0.9, 0.8], np.float32), np.array([0, 1]), NAMES)
    found = find_suspects([seen] * len(dataset), dataset, NAMES)
    assert {(one["kind"], one["file"]) for one in found} == {("missing", "im 3.png"), ("class", "im 5.png")}
    return found


def boxes_in(dataset):
    return {
        sample.name.rpartition("/")[2]: sorted(
            zip(sample.boxes_xyxy.round(3).tolist(), sample.labels.tolist(), strict=True)
        )
        for sample in dataset
    }


WRITTEN = [name for name, format in FORMATS.items() if format.write is not None]


@pytest.mark.parametrize("format", WRITTEN)
def test_all_forms_hold_the_labels_as_they_are(source, format, tmp_path):
    dataset = written(source, format, tmp_path / "data")
    suspects = suspects_of(dataset)
    done = write_relabel(suspects, dataset, tmp_path / "out" / "relabel")
    assert (done.images, done.format) == (2, format)
    wanted = {name: boxes for name, boxes in boxes_in(dataset).items() if name in ("im 3.png", "im 5.png")}
    folder = tmp_path / "out" / "relabel"
    for place in (folder / "labels", folder / "label-studio.json", folder / "cvat.xml"):
        read = open_dataset(place, class_names=NAMES)
        assert boxes_in(read) == wanted and read.class_names == NAMES, place.name
    # The suggestions are beside the labels
    tasks = {
        one["data"]["image"].rpartition("/")[2]: one for one in json.loads((folder / "label-studio.json").read_text())
    }
    (missing,) = tasks["im%203.png"]["predictions"][0]["result"]
    assert missing["value"]["rectanglelabels"] == ["plate"] and missing["value"]["x"] == pytest.approx(60)
    marked = [region.get("meta") for region in tasks["im%205.png"]["annotations"][0]["result"]]
    assert [meta for meta in marked if meta] == [{"text": [f"cell is plate? ({suspects[1]['suspicion']:.2f})"]}] or (
        [meta for meta in marked if meta] == [{"text": [f"cell is plate? ({suspects[0]['suspicion']:.2f})"]}]
    )
    tree = ElementTree.parse(folder / "cvat.xml")
    assert {tag.get("label") for tag in tree.iter("tag")} == {"suspect"} and len(list(tree.iter("tag"))) == 2
    declared = {label.findtext("name") for label in tree.iterfind("./meta//labels/label")}
    assert declared == {one["name"] for one in json.loads((folder / "cvat-labels.json").read_text())}


@pytest.mark.parametrize("format", WRITTEN)
def test_images_of_one_of_two_joined_data_sets_are_found(source, format, tmp_path):
    dataset = written(source, format, tmp_path / "data")
    names = [f"two/{name.rpartition('/')[2]}" for name in dataset.image_names]
    suspects = suspects_of(dataset)
    write_relabel(suspects, replace(dataset, image_names=Texts.of(names)), tmp_path / "relabel")
    tasks = json.loads((tmp_path / "relabel" / "label-studio.json").read_text())
    files = [unquote(one["data"]["image"].partition("?d=")[2]) for one in tasks]
    assert len(files) == 2 and all((tmp_path / "relabel" / file).is_file() for file in files)


def test_label_files_of_voc_are_the_very_files(source, tmp_path):
    dataset = written(source, "voc", tmp_path / "data")
    original = tmp_path / "data" / "Annotations" / "im 3.xml"
    original.write_text(original.read_text().replace("Unspecified", "Left"))
    write_relabel(suspects_of(dataset), dataset, tmp_path / "relabel")
    assert (tmp_path / "relabel" / "labels" / "Annotations" / "im 3.xml").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("format", ["voc", "coco", "yolo", "labelme"])
def test_the_labels_are_drawn_after_a_correction(source, format, tmp_path, run):
    dataset = written(source, format, tmp_path / "data")
    labels = tmp_path / "relabel" / "labels"
    write_relabel(suspects_of(dataset), dataset, labels.parent)
    for old, new in (("cell", "cell"), ("cell", "dish")):
        for file in (path for path in labels.rglob("*") if path.suffix in (".xml", ".json", ".yaml", ".csv")):
            file.write_text(file.read_text().replace(old, new))
        code, out, err = run("data", "show", labels, "--out", tmp_path / "sheet.png", "--overwrite")
        assert code == 0 and f"{new}: 3 boxes" in out, err


def test_the_list_is_a_table_and_no_label_file(source, tmp_path):
    dataset = written(source, "coco", tmp_path / "data")
    suspects = suspects_of(dataset)
    write_relabel(suspects, dataset, tmp_path / "relabel")
    with (tmp_path / "relabel" / "list.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["kind"], row["file"]) for row in rows] == [
        (str(one["rank"]), one["kind"], one["file"]) for one in suspects
    ]
    (swapped,) = (row for row in rows if row["kind"] == "class")
    assert (swapped["box"], swapped["name"], swapped["suggested_name"]) == ("60 60 90 95", "cell", "plate")
    assert open_dataset(tmp_path / "relabel", class_names=NAMES).class_names == NAMES


def test_a_format_that_is_only_read_becomes_coco_with_a_note(source, tmp_path):
    dataset = written(source, "voc", tmp_path / "data")
    object.__setattr__(dataset, "format", "createml")
    done = write_relabel(suspects_of(dataset), dataset, tmp_path / "relabel")
    assert done.format == "coco" and "createml are not written" in done.notes[0]


def test_without_suspects_there_is_an_empty_list(source, tmp_path):
    done = write_relabel([], source, tmp_path / "relabel")
    assert (done.images, done.notes) == (0, ["no label is suspect"])
    assert sorted(path.name for path in (tmp_path / "relabel").iterdir()) == [".written.json", "list.csv"]


def test_a_folder_is_untouched_until_a_file_is_changed_added_or_removed(source, tmp_path):
    dataset = written(source, "voc", tmp_path / "data")
    folder = tmp_path / "relabel"

    def again():
        renew_relabel(suspects_of(dataset), dataset, folder)
        assert is_untouched(folder) and [path.name for path in tmp_path.glob("relabel*")] == ["relabel"]
        return folder / "labels" / "Annotations" / "im 3.xml"

    label = again()
    label.write_text(label.read_text())
    assert not is_untouched(folder)
    again().unlink()
    assert not is_untouched(folder)
    again().with_name("mine.xml").write_text("mine")
    assert not is_untouched(folder)
    again()
    (folder / ".written.json").unlink()
    assert not is_untouched(folder) and not is_untouched(tmp_path / "nothing")


def test_a_folder_that_holds_something_is_refused(source, tmp_path):
    (tmp_path / "relabel").mkdir()
    (tmp_path / "relabel" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_relabel([], source, tmp_path / "relabel")
    assert [path.name for path in (tmp_path / "relabel").iterdir()] == ["mine.txt"]
