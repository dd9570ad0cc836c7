"""Where a data set is found: beside another format of the same labels, in split folders, further down, in a .zip."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from multibox.data.archives import unpack_zip
from multibox.data.convert import convert
from multibox.data.formats import find_splits, locate, open_dataset, read_raw
from multibox.data.formats.agreement import differ
from multibox.errors import ConfigError, DataError

AnyImage = Callable[..., Path]
CASES = Path(__file__).parents[3] / "shared" / "cases"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def xml(name: str, *boxes: tuple[str, int, int, int, int]) -> str:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for label, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><filename>{name}</filename>{objects}</annotation>"


def tutorial(root: Path, image: AnyImage) -> Path:
    """The TensorFlow tutorial: XML beside the images of two splits, and CSVs of the same labels."""
    boxes = {"train": [("cat", 1, 2, 9, 8), ("dog", 3, 3, 12, 9)], "test": [("cat", 2, 2, 8, 8)]}
    for split, of_split in boxes.items():
        lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for number, box in enumerate(of_split):
            name = f"{split}{number}.jpg"
            image(root / split / name)
            (root / split / f"{split}{number}.xml").write_text(xml(name, box))
            lines.append(",".join(map(str, (name, 16, 12, *box))))
        (root / f"{split}_labels.csv").write_text("\n".join(lines))
    return root


def test_the_tutorials_xml_and_csv_of_the_same_labels_are_one_data_set(tmp_path: Path, image: AnyImage) -> None:
    root = tutorial(tmp_path / "set", image)
    found = locate(root)
    assert (found.format, found.splits()) == ("voc", ["train", "test"])
    assert "(csv) holds the same boxes" in open_dataset(root, "train").notes[0]
    assert open_dataset(root, "test", format="CSV").format == "csv"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("1,2,9,8", "1,2,9,9.6", "different boxes in image train0"),
        ("cat,1", "cow,1", "cow"),
        ("train1", "gone", "boxes"),
    ],
)
def test_other_labels_beside_are_refused(tmp_path: Path, image: AnyImage, old: str, new: str, reason: str) -> None:
    root = tutorial(tmp_path / "set", image)
    file = root / "train_labels.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"set/.*\(voc\) and set/.*\(csv\), .*{reason}.*; name one with --format"):
        open_dataset(root, "train")


def test_half_a_pixel_is_no_difference(tmp_path: Path, image: AnyImage) -> None:
    root = tutorial(tmp_path / "set", image)
    file = root / "train_labels.csv"
    file.write_text(file.read_text().replace("1,2,9,8", "1.5,1.5,9.4,7.6"))
    assert locate(root).format == "voc"
    datasets = [open_dataset(root, split, format="voc") for split in ("train", "test")]
    assert differ(datasets, datasets[::-1]) == ""
    assert "2 and 3 boxes" in differ(datasets[:1], datasets)
    assert "cannot be read" in differ(datasets, [])


def flat(root: Path, image: AnyImage, *names: str) -> Path:
    for number, name in enumerate(names):
        image(root / f"{name}.jpg")
        (root / f"{name}.xml").write_text(xml(f"{name}.jpg", ("cat", number, 1, number + 5, 9)))
    return root


def test_folders_named_like_splits_are_splits_at_any_depth(tmp_path: Path, image: AnyImage) -> None:
    for folder, names in {"train_zip/train": ["a.jpg", "b.jpg"], "test_zip/test": ["a.jpg"]}.items():
        for name in names:
            image(tmp_path / "set" / folder / name)
        box = {"x": 5, "y": 5, "width": 4, "height": 4}
        content = [{"image": name, "annotations": [{"label": "cat", "coordinates": box}]} for name in names]
        (tmp_path / "set" / folder / "_annotations.createml.json").write_text(json.dumps(content))
    assert find_splits(tmp_path / "set") == ["train", "test"]
    train = open_dataset(tmp_path / "set", "train")
    assert list(train.image_names) == ["train_zip/a.jpg", "train_zip/b.jpg"]
    assert (train.split, train.root) == ("train", tmp_path / "set")
    raw = read_raw(tmp_path / "set", "test")
    assert (raw.split, list(raw.image_names)) == ("test", ["test_zip/a.jpg"])


@pytest.mark.parametrize("case", ["y25b_flat_splits", "k40_kaggle_two_levels"])
def test_cases_of_split_folders(case: str) -> None:
    root = CASES / "train-and-val-folders-one-format" / case
    if not root.exists():
        pytest.skip("needs ../shared/cases")
    splits = {name: len(open_dataset(root, name)) for name in find_splits(root)}
    assert splits in ({"train": 4, "val": 2}, {"train": 4, "test": 2})


def test_a_data_set_far_below_is_found_and_said(tmp_path: Path, image: AnyImage) -> None:
    root = tmp_path / "download"
    flat(root / "files" / "v2" / "cats", image, "a")
    (root / "__MACOSX" / "files").mkdir(parents=True)
    dataset = open_dataset(root)
    assert len(dataset) == 1
    assert f"{root}: the data set is in files/v2/cats" in dataset.notes
    flat(root / "files" / "v2" / "dogs", image, "b")
    with pytest.raises(DataError, match=r"v2/cats \(voc\) and download/files/v2/dogs \(voc\).*to join them"):
        open_dataset(root)


def test_formats_are_named_in_any_spelling(tmp_path: Path, image: AnyImage) -> None:
    root = flat(tmp_path / "set", image, "a")
    assert open_dataset(root, format="V-O_c").format == "voc"
    assert open_dataset(locate(root, "VOC")).format == "voc"
    with pytest.raises(ConfigError, match="unknown format 'voce'"):
        open_dataset(root, format="voce")


def packed(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        archive.writestr("__MACOSX/set/._a.xml", "junk")
        archive.writestr("set/.DS_Store", "junk")
    return path


def test_a_zip_is_unpacked_once_into_the_cache(tmp_path: Path, image: AnyImage) -> None:
    flat(tmp_path / "set", image, "a", "b")
    data = packed(tmp_path / "set.ZIP", tmp_path / "set")
    dataset = open_dataset(data)
    folder = next((tmp_path / "cache" / "multibox" / "unpacked").iterdir())
    assert dataset.notes[0] == f"{data} was unpacked into {folder}"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name[0] != ".") == [
        *("a.jpg", "a.xml", "b.jpg", "b.xml"),
    ]
    before = folder.stat().st_mtime_ns
    assert list(open_dataset(data).image_names) == ["a.jpg", "b.jpg"]
    assert folder.stat().st_mtime_ns == before
    flat(tmp_path / "set", image, "c")
    packed(data, tmp_path / "set")
    assert len(open_dataset(data)) == 3


def _link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("images")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc")


ATTACKS: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "above": (lambda archive: archive.writestr("a/../../b.xml", "x"), "outside of its own folder"),
    "absolute": (lambda archive: archive.writestr("/tmp/b.xml", "x"), "outside of its own folder"),
    "backslash": (lambda archive: archive.writestr("..\\b.xml", "x"), "outside of its own folder"),
    "drive": (lambda archive: archive.writestr("C:/b.xml", "x"), "outside of its own folder"),
    "link": (_link, "symbolic link"),
    "bomb": (lambda archive: archive.writestr("b.xml", bytes(80 << 20)), "unpacks to more than"),
    "file-as-folder": (lambda archive: [archive.writestr(n, "x") for n in ("b", "b/c")] and None, "two files named"),
    "long": (lambda archive: archive.writestr("b" * 300, "x"), "cannot be unpacked"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_zip_is_refused_and_leaves_nothing(tmp_path: Path, attack: str) -> None:
    write, reason = ATTACKS[attack]
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.txt", "x")
        write(archive)
    with pytest.raises(DataError, match=reason):
        open_dataset(path)
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left == [path]


def test_what_is_no_zip_or_locked_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(DataError, match=r"no \.zip that can be read"):
        open_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.xml", "x")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        open_dataset(path)


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_names_without_a_stated_encoding_are_guessed_and_said(tmp_path: Path, encoding: str) -> None:
    name = "图片/猫狗.txt".encode(encoding)
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x" * len(name), "x")
    path.write_bytes(path.read_bytes().replace(b"x" * len(name), name))
    folder, notes = unpack_zip(path)
    assert (folder / "图片" / "猫狗.txt").read_text() == "x"
    assert f"were read as {encoding.upper()}" in notes[0]
    assert unpack_zip(path) == (folder, notes)


def coco(root: Path, image: AnyImage, splits: dict[str, list[str]], names: list[str]) -> Path:
    for split, files in splits.items():
        images = [{"id": i, "file_name": name} for i, name in enumerate(files)]
        boxes = [
            {"id": i, "image_id": i // len(names), "category_id": i % len(names) + 1, "bbox": [i % len(names), 1, 4, 4]}
            for i in range(len(files) * len(names))
        ]
        for name in files:
            image(root / split / name)
        (root / "annotations").mkdir(exist_ok=True)
        content = {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": i + 1, "name": n} for i, n in enumerate(names)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_several_data_sets_are_joined_by_class_name(tmp_path: Path, image: AnyImage) -> None:
    one = coco(tmp_path / "one" / "set", image, {"train2017": ["a.jpg", "b.jpg"], "val2017": ["c.jpg"]}, ["dog", "cat"])
    two = coco(tmp_path / "two" / "set", image, {"train": ["a.jpg"]}, ["cat", "cow"])
    assert find_splits([one, two]) == ["train", "val"]
    train = open_dataset([one, str(two)], "train")
    assert train.class_names == ("dog", "cat", "cow")
    assert list(train.image_names) == ["set/a.jpg", "set/b.jpg", "set-2/a.jpg"]
    assert train.labels.tolist() == [0, 1, 0, 1, 1, 2]
    assert train.starts.tolist() == [0, 2, 4, 6]
    assert [path.parents[1] for path in train.paths] == [one, one, two]
    val = open_dataset([one, two], "val")
    assert len(val) == 1
    assert val.notes[0] == "split val: there is none in set-2"
    raw = read_raw([one, two], "train")
    assert raw.class_names == ["dog", "cat", "cow"]
    assert np.array_equal(raw.labels, train.labels)
    assert raw.owners.tolist() == [0, 0, 1, 1, 2, 2]
    assert find_splits([one, one]) == ["train2017", "val2017"]
    with pytest.raises(DataError, match="no data set was given"):
        find_splits([])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("annotations/instances.json", b"", "instances.json is empty"),
        ("annotations/instances.json", b"[]", "instances.json is JSON, but of no known tool"),
        ("annotations/instances.json", b"null", "instances.json is JSON, but of no known tool"),
        ("annotations/instances.json", b'{"annotations": []}', "got an object with ['annotations']"),
        ("annotations/instances.json", b"[" * 200_000, "instances.json is nested too deep"),
        ("result.json", b'[{"a": ', "result.json is no JSON"),
        ("notes.xml", b"<svg/>", "expected <annotation> or <annotations> outermost, got <svg>"),
        ("train-000000.tar", b"image" * 400, "train-000000.tar is no tar file"),
        ("train-000000.tgz", b"image" * 400, "train-000000.tgz is no tar file"),
        ("boxes.csv", b"a,b\n1,2\n", "boxes.csv: its header names no column"),
    ],
)
def test_a_broken_label_file_is_named(tmp_path: Path, image: AnyImage, name: str, content: bytes, reason: str) -> None:
    image(tmp_path / "set" / "images" / "a.jpg")
    file = tmp_path / "set" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    for path in (tmp_path / "set", file):
        with pytest.raises(DataError) as error:
            open_dataset(path)
        assert name in str(error.value) and (path == file or reason in str(error.value))


def test_both_formats_are_named_for_all_splits_and_once(tmp_path: Path, image: AnyImage) -> None:
    root = tutorial(tmp_path / "set", image)
    (note,) = convert(root, tmp_path / "coco", "coco").notes
    assert note.endswith(
        ": set/{train,test}/*.xml (voc) is read; set/{train,test}_labels.csv (csv) holds the same boxes"
    )
