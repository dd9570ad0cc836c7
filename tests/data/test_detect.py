import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.data.formats import find_splits, open_dataset
from multibox.errors import ConfigError, DataError

AnyImage = Callable[..., Path]
XML = (
    "<annotation><filename>a.jpg</filename><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def voc(root: Path, image: AnyImage) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(XML)
    image(root / "JPEGImages" / "a.jpg")
    return root


def coco(root: Path, image: AnyImage) -> Path:
    image(root / "train" / "a.jpg")
    (root / "annotations").mkdir(parents=True)
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


def test_one_level_down_and_alone(tmp_path: Path, image: AnyImage) -> None:
    voc(tmp_path / "VOCdevkit" / "VOC2007", image)
    assert open_dataset(tmp_path / "VOCdevkit").image_names == ["a.jpg"]
    voc(tmp_path / "VOCdevkit" / "other", image)
    with pytest.raises(DataError, match=r"VOCdevkit/VOC2007 \(voc\) and VOCdevkit/other \(voc\)"):
        open_dataset(tmp_path / "VOCdevkit")
    assert open_dataset(tmp_path / "VOCdevkit" / "VOC2007").image_names == ["a.jpg"]


def test_two_at_once_are_refused_until_one_is_named(tmp_path: Path, image: AnyImage) -> None:
    root = coco(voc(tmp_path / "both", image), image)
    with pytest.raises(DataError) as error:
        find_splits(root)
    text = str(error.value)
    assert "both/Annotations/*.xml (voc)" in text and "both/annotations/instances_train.json (coco)" in text
    assert "--format" in text and "\n" not in text
    assert open_dataset(root, format="voc").format == "voc" and open_dataset(root, format="coco").format == "coco"


def test_bccd_and_its_csv_of_the_same_boxes_are_one_data_set(shared: Path) -> None:
    dataset = open_dataset(shared / "bccd", "test")
    assert (dataset.root, len(dataset)) == (shared / "bccd" / "BCCD", 72)
    assert "bccd/BCCD (voc) is read; bccd/test.csv (csv) holds the same boxes" in dataset.notes[0]


def test_no_data_set_says_what_was_looked_for_and_found(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "holiday" / "beach.jpg")
    (tmp_path / "holiday" / "more").mkdir()
    with pytest.raises(DataError, match=r"holiday is no data set; looked for voc: .*coco: .*found beach\.jpg, more/"):
        open_dataset(tmp_path / "holiday")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found nothing"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no label file"):
        open_dataset(tmp_path / "holiday" / "beach.jpg")


def test_wrong_words(tmp_path: Path, image: AnyImage) -> None:
    root = coco(tmp_path / "set", image)
    with pytest.raises(ConfigError, match="unknown format 'coc', did you mean 'coco'"):
        open_dataset(root, format="coc")
    with pytest.raises(ConfigError, match="on_bad should be"):
        open_dataset(root, on_bad="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"has no split 'tran', did you mean 'train'.*it holds: train"):
        open_dataset(root, "tran")


def test_other_folders_beside_do_not_confuse(tmp_path: Path, image: AnyImage) -> None:
    root = voc(tmp_path / "set", image)
    (root / "runs").mkdir()
    (root / "runs" / "metrics.csv").write_text("epoch,loss\n1,2\n")
    (root / "notes.csv").write_text("who,when\n")
    (root / "package.json").write_text("{}")
    (root / "config.yaml").write_text("train: yes\n")
    (root / "old.yaml").write_bytes("größe: 1".encode("latin-1"))
    (root / "model.data").write_bytes(bytes(range(256)))
    (root / "table.csv").write_bytes(bytes(range(128, 256)))
    (root / ".cache").mkdir()
    (root / ".cache" / "a.xml").write_text(XML)
    assert open_dataset(root).format == "voc"


@pytest.mark.parametrize(
    ("written", "asked"), [("val2017", "val"), ("valid", "val"), ("val", "valid"), ("train2014", "train")]
)
def test_splits_by_their_other_names(tmp_path: Path, image: AnyImage, written: str, asked: str) -> None:
    root = coco(tmp_path / "set", image)
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / f"instances_{written}.json")
    (root / "train").rename(root / written)
    assert open_dataset(root, asked).split == written
