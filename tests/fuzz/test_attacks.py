"""Attacks worked by hand: bombs, lying lengths, files outside, loops, and names that no one expects."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data.convert import convert
from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.data.image_listing import find_images
from multibox.data.records import ImageRecord, read_record, scan, write_record
from multibox.errors import DataError, MultiboxError

PNG = io.BytesIO()
Image.new("RGB", (40, 24), (9, 99, 199)).save(PNG, "PNG")
PNG = PNG.getvalue()
ROW = "0 0.5 0.5 0.4 0.4\n"
XML = (
    "<annotation><filename>{name}</filename><size><width>40</width><height>24</height></size><object>"
    "<name>{label}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>18</ymax></bndbox></object>"
    "</annotation>"
)
LIMIT = 150 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what is unpacked out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def read(path, format=None, on_bad="stop"):
    """Read every split, and return how many boxes there are."""
    boxes = 0
    for split in find_splits(path, format):
        read_raw(path, split, format=format)
        boxes += len(open_dataset(path, split, format=format, on_bad=on_bad).labels)
    return boxes


@contextmanager
def refused(said, *, memory=LIMIT):
    """Expect a sentence of one line, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(MultiboxError, match=said) as error:
            yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


YOLO = {
    "images/train/a.png": PNG,
    "labels/train/a.txt": ROW,
    "data.yaml": "train: images/train\nnames: [cat]\n",
}


def pack_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_that_unpacks_to_a_thousand_times_its_size(tmp_path, cache):
    path = pack_zip(tmp_path / "a.zip", {**YOLO, "images/train/b.png": bytes(100 << 20)})
    assert path.stat().st_size < 1 << 20
    with refused("unpacks to more than .* MiB"):
        read(path)
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < LIMIT


def test_a_zip_that_lies_about_what_it_unpacks_to(tmp_path, cache):
    path = pack_zip(tmp_path / "a.zip", {**YOLO, "images/train/b.png": bytes(100 << 20)})
    real, said = struct.pack("<I", 100 << 20), struct.pack("<I", 1000)
    path.write_bytes(path.read_bytes().replace(real, said))
    with refused(r"a\.zip"):
        read(path)
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < LIMIT


def test_a_zip_in_a_zip_is_not_unpacked(tmp_path, cache):
    inner = pack_zip(tmp_path / "b.zip", {"x": bytes(50 << 20)})
    assert read(pack_zip(tmp_path / "a.zip", {**YOLO, "b.zip": inner.read_bytes()})) == 1
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 1 << 20


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
def test_a_zip_writes_nothing_outside(tmp_path, cache, name):
    path = tmp_path / "a.zip"
    pack_zip(path, {**YOLO, name: b"x"})
    with refused("outside of its own folder"):
        read(path)
    assert not list(tmp_path.rglob("out.txt"))


def test_a_link_in_a_zip_is_not_followed(tmp_path):
    path = pack_zip(tmp_path / "a.zip", YOLO)
    entry = zipfile.ZipInfo("images/link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc")
    with refused("symbolic link"):
        read(path)


@pytest.mark.slow
def test_a_packed_tar_that_unpacks_to_a_thousand_times_its_size(tmp_path, cache):
    with tarfile.open(tmp_path / "train-000000.tar.gz", "w:gz") as archive:
        for name, data in (("a.json", b'{"objects": {"bbox": [], "category": []}}'), ("a.png", bytes(100 << 20))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with refused("unpacks to more than"):
        read(tmp_path, "webdataset")
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < LIMIT


def test_links_devices_and_outside_names_in_a_tar_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "train-000000.tar", "w") as archive:
        for name, kind, target in (("a.png", tarfile.SYMTYPE, "/etc/passwd"), ("b.png", tarfile.CHRTYPE, "")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
        for name, data in (("../c.png", PNG), ("../c.json", b'{"objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    assert read(tmp_path, "webdataset") <= 1


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
ENTITIES = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>',
    "quadratic": f'<!DOCTYPE a [<!ENTITY l9 "{"ha" * 50_000}">]>',
    "a file": '<!DOCTYPE a [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
    "an address": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd" [<!ENTITY % p SYSTEM "http://127.0.0.1:9/y"> %p;]>',
}


@pytest.mark.parametrize("kind", ENTITIES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_entities_of_xml_are_not_expanded(tmp_path, kind, encoding):
    body = XML.format(name="a.png", label="&l9;" * (1 if "file" in kind else 1000))
    text = f'<?xml version="1.0" encoding="{encoding}"?>{ENTITIES[kind]}{body}'
    put(tmp_path, {"Annotations/a.xml": text.encode(encoding), "JPEGImages/a.png": PNG})
    with refused(r"a\.xml|is no data set"):
        read(tmp_path, "voc")


def frame(length, kind=0):
    return struct.pack("<II", 0xCED7230A, kind << 29 | length)


@pytest.mark.parametrize(
    "data",
    [
        frame((1 << 29) - 1) + bytes(100),
        frame(40) + struct.pack("<IfQQ", 1 << 31, 0, 0, 0) + bytes(16),
        frame(40) + struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0) + bytes(16),
        frame(8, kind=1) * 1000,
        frame(4, kind=7) + bytes(4),
        frame(0),
        b"\x0a\x23\xd7",
    ],
)
def test_lying_lengths_in_records(tmp_path, data):
    (tmp_path / "train.rec").write_bytes(data)
    with refused(r"train\.rec", memory=1 << 20):
        list(scan(tmp_path / "train.rec"))
    with refused(r"train\.rec", memory=4 << 20):
        read(tmp_path, "recordio")


@pytest.mark.parametrize("offset", ["-1", "-5", str(1 << 62), str(1 << 70), "1e3", "9" * 5000, "nan", ""])
def test_positions_of_an_idx_that_do_not_exist(tmp_path, offset):
    with (tmp_path / "train.rec").open("wb") as file:
        write_record(file, ImageRecord(0, np.array([2, 5, 0, 0.1, 0.1, 0.9, 0.9], np.float32), PNG))
    assert read(tmp_path, "recordio") == 1
    (tmp_path / "train.idx").write_text(f"0\t{offset}\n")
    with refused(r"train\.idx"):
        read(tmp_path, "recordio")


@pytest.mark.parametrize("offset", [-1, 1 << 62, 1 << 70])
def test_positions_that_do_not_exist(tmp_path, offset):
    (tmp_path / "a.rec").write_bytes(frame(0))
    with refused(r"a\.rec"):
        read_record(tmp_path / "a.rec", offset)


def test_links_that_lead_in_a_circle(tmp_path):
    put(tmp_path / "yolo", YOLO)
    (tmp_path / "yolo/images/train/again").symlink_to(tmp_path / "yolo/images")
    (tmp_path / "yolo/labels/train/again").symlink_to("..")
    (tmp_path / "yolo/images/train/b.png").symlink_to("b.png")
    assert read(tmp_path / "yolo", on_bad="skip") >= 1
    put(tmp_path / "voc", {"Annotations/a.xml": XML.format(name="a.png", label="cat"), "JPEGImages/a.png": PNG})
    (tmp_path / "voc/JPEGImages/again").symlink_to(tmp_path / "voc")
    (tmp_path / "voc/Annotations/b.xml").symlink_to("b.xml")
    assert read(tmp_path / "voc", on_bad="skip") == 1
    assert len(find_images([f"{tmp_path}/yolo/**/*"]).paths) < 100


NAMES = {
    "newline": b"a\nb",
    "escape": b"a\x1b[31mb",
    "tab": b"a\tb",
    "latin": b"caf\xe9",
    "bytes": b"\xff\xfe\x80",
    "long": b"n" * 250,
    "quotes": b"a'\"b",
    "percent": b"a%20b",
    "dash": b"-a",
    "space": b" a ",
    "emoji": "😀".encode(),
    "right to left": "‮gpj".encode(),
    "brackets": b"a[1]*?",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("to", ["voc", "coco", "yolo", "csv", "recordio", "labelme", "cvat", "labelstudio"])
def test_names_that_nobody_expects(tmp_path, kind, to):
    """Each is read; each is written and read again, or refused by a sentence."""
    name = os.fsdecode(NAMES[kind])
    put(tmp_path / "set", {"images/train/" + name + ".png": PNG, "labels/train/" + name + ".txt": ROW})
    put(tmp_path / "set", {"data.yaml": "train: images/train\nnames: [cat]\n"})
    assert read(tmp_path / "set") == 1
    try:
        convert(tmp_path / "set", tmp_path / "out", to)
    except MultiboxError as error:
        assert "\n" not in str(error)
        assert not (tmp_path / "out").exists()
    else:
        assert read(tmp_path / "out", to) == 1


@pytest.mark.parametrize("kind", NAMES)
def test_messages_about_such_names_can_be_printed(tmp_path, kind, run):
    name = os.fsdecode(NAMES[kind])
    put(tmp_path / "set", {"images/train/" + name + ".png": PNG[:60], "labels/train/" + name + ".txt": ROW})
    put(tmp_path / "set", {"data.yaml": "train: images/train\nnames: [cat]\n"})
    code, _, err = run("data", "show", tmp_path / "set", "--out", tmp_path / "a.png")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "\x1b" not in err


NESTED = "[" * 100_000
DIGITS = "7" * 1_000_000
TEXTS = {
    "nested list": NESTED,
    "nested object": '{"a":' * 100_000,
    "digits": DIGITS,
    "NUL": "\0" * 1000,
    "empty": "",
    "long line": "x" * 2_000_000,
}


def coco(value):
    return (
        f'{{"images": [{{"id": 1, "file_name": "a.png", "width": 40, "height": {value}}}], "annotations": '
        '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}], "categories": [{"id": 1, "name": "cat"}]}'
    )


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (len(TEXTS[kind]) > 1000)) for kind in TEXTS]
)
def test_hostile_values_in_every_text_format(tmp_path, kind):
    text = TEXTS[kind]
    sets = {
        "coco": {"annotations/instances_train.json": coco(text or "1"), "images/a.png": PNG},
        "coco whole": {"annotations/instances_train.json": '{"images": ' + text, "images/a.png": PNG},
        "yolo": {**YOLO, "labels/train/a.txt": f"0 0.5 0.5 {text} 0.4\n"},
        "yolo yaml": {**YOLO, "data.yaml": f"train: images/train\nnames: {text}\n"},
        "csv": {"a.csv": f"filename,label,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,{text}\n", "a.png": PNG},
        "voc": {
            "Annotations/a.xml": XML.format(name="a.png", label="cat").replace("20", text),
            "JPEGImages/a.png": PNG,
        },
        "recordio": {"train.lst": f"0\t2\t5\t0\t0.1\t0.1\t0.9\t{text}\ta.png\n", "a.png": PNG},
        "labelme": {
            "a.json": '{"shapes": [{"label": "cat", "points": [[1, 2], [3, ' + text + "]]}], "
            '"imagePath": "a.png", "imageData": null}',
            "a.png": PNG,
        },
        "createml": {
            "a.json": '[{"image": "a.png", "annotations": [{"label": "c", "coordinates": {"x": 9, "y": 9, "width": 5, '
            f'"height": {text}}}}}]}}]',
            "a.png": PNG,
        },
    }
    for name, files in sets.items():
        folder = put(tmp_path / name, files)
        for on_bad in ("stop", "skip"):
            try:
                read(folder, name.split()[0], on_bad)
            except MultiboxError as error:
                assert "\n" not in str(error), (name, str(error)[:200])
                assert len(str(error)) < 2000, (name, str(error)[:200])


CLASSES = [
    "a\nb",
    "\x1b[31m",
    "caf\\udce9",
    " a ",
    "a,b",
    'a"b',
    "#x",
    "null",
    "yes",
    "007",
    "é",
    "{a",
    "- a",
    "a: b",
    "'",
]


@pytest.mark.parametrize(
    "to", ["voc", "coco", "yolo", "csv", "recordio", "labelme", "cvat", "labelstudio", "imagefolder"]
)
@pytest.mark.parametrize("name", CLASSES)
def test_class_names_that_nobody_expects(tmp_path, name, to):
    """Each is written and read again as it was, but for letters that no label file holds."""
    name = name.encode().decode("unicode_escape") if "\\u" in name else name
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 24}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 10]}],
        "categories": [{"id": 1, "name": name}],
    }
    put(tmp_path / "set", {"annotations/instances_train.json": json.dumps(document), "images/a.png": PNG})
    (given,) = open_dataset(tmp_path / "set", "train").class_names
    convert(tmp_path / "set", tmp_path / "out", to)
    dataset = open_dataset(tmp_path / "out", find_splits(tmp_path / "out", to)[0], format=to)
    assert len(dataset.labels) == 1
    expected = "".join("_" if ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 else letter for letter in given)
    assert dataset.class_names[0].strip() == expected.strip()


def test_paths_that_are_too_long_or_hold_nul(tmp_path):
    for number, name in enumerate(("x" * 300, "images/" + "x" * 300, "a/" * 3000, "/" + "x" * 5000, "a\0b")):
        for kind, files in {
            "darknet": {"obj.data": f"classes = 1\ntrain = {name}\nnames = obj.names\n", "obj.names": "c\n"},
            "names": {"obj.data": f"classes = 1\ntrain = train.txt\nnames = {name}\n", "train.txt": "a.png\n"},
            "list": {"data.yaml": "train: train.txt\nnames: [c]\n", "train.txt": f"{name}.png\n"},
            "yaml": {"data.yaml": f"path: {name}\ntrain: {name}\nnames: [c]\n"},
            "labelme": {"a.json": json.dumps({"shapes": [], "imagePath": f"{name}.png", "imageData": None})},
            "csv": {"a.csv": f"filename,label,xmin,ymin,xmax,ymax\n{name}.png,cat,1,2,3,4\n"},
        }.items():
            with pytest.raises(MultiboxError):
                read(put(tmp_path / f"{kind}{number}", files))


def test_deep_yaml_and_its_references(tmp_path):
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    for text in ("- " * 3000, "{a: " * 3000, "names: &a [*a]\n", f"{laughs}train: images/train\nnames: *a8\n"):
        folder = put(tmp_path / str(abs(hash(text))), {**YOLO, "data.yaml": "train: images/train\nnames: [c]\n" + text})
        try:
            read(folder, "yolo")
        except MultiboxError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 2000


def test_a_csv_field_of_megabytes_is_refused(tmp_path):
    text = 'filename,label,xmin,ymin,xmax,ymax\na.png,"' + "cat" * 2_000_000 + '",1,2,3,4\n'
    put(tmp_path, {"a.csv": text, "a.png": PNG})
    with refused(r"a\.csv"):
        read(tmp_path, "csv")


def test_an_image_of_a_container_that_lies_about_its_place(tmp_path):
    with tarfile.open(tmp_path / "train-000000.tar", "w") as archive:
        for name, data in (("a.png", PNG), ("a.json", json.dumps({"objects": {"bbox": [], "category": []}}).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    data = bytearray((tmp_path / "train-000000.tar").read_bytes())
    data[124:136] = b"77777777777\0"  # 8 GB
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "train-000000.tar").write_bytes(data)
    with refused(r"train-000000\.tar", memory=8 << 20):
        read(tmp_path, "webdataset")


def test_folders_and_pipes_in_place_of_files(tmp_path):
    put(tmp_path, YOLO)
    (tmp_path / "images/train/b.png").mkdir()
    os.mkfifo(tmp_path / "images/train/c.png")
    (tmp_path / "labels/train/d.txt").mkdir()
    assert read(tmp_path, on_bad="skip") == 1


def test_gzip_members_without_end(tmp_path):
    (tmp_path / "train-000000.tar.gz").write_bytes(gzip.compress(b"")[:12] * 1000)
    with pytest.raises(DataError):
        read(Path(tmp_path), "webdataset")
