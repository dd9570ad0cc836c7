"""Every label format: its files are recognised as its own alone, and what one writer writes another does not lose."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data.convert import convert, write_dataset
from multibox.data.formats import FORMATS, find_splits, locate, open_dataset
from multibox.structures import Dataset, Sample, pack

WRITTEN = [name for name, format in FORMATS.items() if format.write is not None]
CLASSES = ("zebra", "日本語", "a,b", "<&>", "no", "007", "it's", "x;y", "#5", "{b}", "100%", "ant hill")
IMAGES = ("one 1.JPG", "deep/er/Ärger.png", "日本.jpg", "a+b.jpg", "dots.in.name.jpg", "50%.png")
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Two splits with odd names, flags, fractions of pixels, an image without objects and a class without."""
    root, numbers = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    made: dict[str, Dataset] = {}
    for split in SPLITS:
        samples: list[Sample] = []
        for number, name in enumerate(IMAGES):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = int(numbers.integers(40, 90)), int(numbers.integers(40, 90))
            Image.new("RGB", (width, height), (number, 90, 200)).save(path)
            low = numbers.uniform(0, 20, (number, 2)).round(2)
            high = low + numbers.uniform(3, 20, (number, 2)).round(2)
            labels = numbers.integers(0, len(CLASSES) - 1, number)
            flags = numbers.integers(0, 4, number)
            boxes = np.concatenate([low, high], axis=1)
            samples.append(Sample(name, path, boxes, labels, difficult=flags == 1, crowd=flags == 2))
        made[split] = pack(samples, root=root, format="voc", split=split, class_names=CLASSES)
    return made


def objects(held: Dataset, *, difficult: bool, crowd: bool) -> dict[str, list[tuple[object, ...]]]:
    """Each image's class names, flags and boxes; crowds are left out where a format has no place for them."""
    return {
        Path(one.name).name: sorted(
            (held.class_names[label], bool(flag) and difficult, bool(many), *box)
            for label, flag, many, box in zip(
                one.labels, one.difficult, one.crowd, one.boxes_xyxy.tolist(), strict=True
            )
            if crowd or not many
        )
        for one in held
    }


def assert_alike(before: Dataset, after: Dataset, *formats: str) -> None:
    holds = [(FORMATS[name].holds_difficult, FORMATS[name].holds_crowd) for name in formats]
    keeps = {"difficult": all(one for one, _ in holds), "crowd": all(one for _, one in holds)}
    expected, got = objects(before, **keeps), objects(after, **keeps)
    assert expected.keys() == got.keys()
    for name, rows in expected.items():
        assert [row[:3] for row in rows] == [row[:3] for row in got[name]], name
        np.testing.assert_allclose([row[3:] for row in rows], [row[3:] for row in got[name]], atol=0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, splits: dict[str, Dataset]) -> dict[str, Path]:
    """The data set as every writer writes it."""
    root = tmp_path_factory.mktemp("written")
    for format in WRITTEN:
        write_dataset(splits, root / format, format)
    return {format: root / format for format in WRITTEN}


@pytest.mark.parametrize("format", WRITTEN)
def test_what_is_written_is_read_back(written: dict[str, Path], splits: dict[str, Dataset], format: str) -> None:
    root = written[format]
    assert locate(root, None).format == format and find_splits(root) == list(SPLITS)
    for split in SPLITS:
        after = open_dataset(root, split)
        assert_alike(splits[split], after, format)
        # VOC has no list of classes: those without objects are lost, and the rest is sorted
        used = {CLASSES[label] for one in splits.values() for label in one.labels}
        assert after.class_names == (tuple(sorted(used)) if format == "voc" else CLASSES)
        assert [path.read_bytes() for path in after.paths if path.suffix != ".rec"] == [
            splits[split].paths[list(map(_base, splits[split].image_names)).index(_base(name))].read_bytes()
            for name, path in zip(after.image_names, after.paths, strict=True)
            if path.suffix != ".rec"
        ]


def _base(name: str) -> str:
    return Path(name).name


@pytest.mark.parametrize("second", WRITTEN)
@pytest.mark.parametrize("first", WRITTEN)
def test_round_trips_between_all_writers(
    written: dict[str, Path], splits: dict[str, Dataset], tmp_path: Path, first: str, second: str
) -> None:
    convert(written[first], tmp_path / "out", second)
    assert locate(tmp_path / "out", None).format == second
    for split in SPLITS:
        assert_alike(splits[split], open_dataset(tmp_path / "out", split), first, second)


@pytest.mark.parametrize("format", WRITTEN)
def test_a_zip_of_each(
    written: dict[str, Path],
    splits: dict[str, Dataset],
    tmp_path: Path,
    format: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.make_archive(str(tmp_path / "set"), "zip", written[format].parent, format)
    for split in SPLITS:
        assert_alike(splits[split], open_dataset(tmp_path / "set.zip", split), format)


def createml(root: Path) -> None:
    box = {"label": "ant", "coordinates": {"x": 20, "y": 20, "width": 10, "height": 8}}
    (root / "labels.json").write_text(json.dumps([{"image": "a.jpg", "annotations": [box]}]))


def open_images(root: Path) -> None:
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"
    (root / "train.csv").write_text(f"{header},IsInside\na,xclick,/m/01,1,0.1,0.5,0.1,0.5,0,0,0,0,0\n")


def parquet(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs multibox[hub]")
    image = {"bytes": (root / "a.jpg").read_bytes(), "path": "a.jpg"}
    rows = [{"image": image, "objects": {"bbox": [[1, 2, 3, 4]], "category": ["ant"]}}]
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), root / "train.parquet")
    (root / "a.jpg").unlink()


def webdataset(root: Path) -> None:
    label = json.dumps({"objects": {"bbox": [[1, 2, 3, 4]], "category": ["ant"]}}).encode()
    with tarfile.open(root / "train-0.tar", "w") as tar:
        tar.add(root / "a.jpg", "a.jpg")
        info = tarfile.TarInfo("a.json")
        info.size = len(label)
        tar.addfile(info, io.BytesIO(label))


def json_min(root: Path) -> None:
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["ant"], "original_width": 60}
    (root / "x.json").write_text(json.dumps([{"image": "/data/upload/1/a.jpg", "id": 1, "label": [region]}]))


def video(root: Path) -> None:
    box = '<box frame="0" outside="0" occluded="0" keyframe="1" xtl="1" ytl="2" xbr="3" ybr="4"></box>'
    track = f'<track id="0" label="ant">{box}</track>'
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{track}</annotations>")
    (root / "a.jpg").rename(root / "frame_000000.jpg")


def one_xml(root: Path) -> None:
    corners = "<xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax>"
    thing = f"<object><name>ant</name><bndbox>{corners}</bndbox></object>"
    (root / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{thing}</annotation>")


def metadata_csv(root: Path) -> None:
    text = json.dumps({"bbox": [[1, 2, 3, 4]], "categories": ["ant"]}).replace('"', '""')
    (root / "metadata.csv").write_text(f'file_name,objects\na.jpg,"{text}"\n')


OTHERS: list[tuple[str, Callable[[Path], None]]] = [
    *(("createml", createml), ("csv", open_images), ("parquet", parquet), ("webdataset", webdataset)),
    *(("labelstudio", json_min), ("cvat", video), ("voc", one_xml), ("imagefolder", metadata_csv)),
]


def fired(path: Path) -> list[str]:
    return [name for name, format in FORMATS.items() if format.recognise(path) is not None]


def label_files(root: Path) -> Iterator[Path]:
    suffixes = (".json", ".xml", ".csv", ".jsonl", ".parquet", ".tar", ".rec", ".yaml")
    return (path for path in sorted(root.rglob("*")) if path.name.endswith(suffixes) and "config" not in path.name)


@pytest.mark.parametrize("format", WRITTEN)
def test_one_recogniser_fires_on_what_is_written(written: dict[str, Path], format: str) -> None:
    assert fired(written[format]) == [format]
    for path in label_files(written[format]):
        assert fired(path) in ([format], []), path


@pytest.mark.parametrize(("format", "make"), OTHERS, ids=[make.__name__ for _, make in OTHERS])
def test_one_recogniser_fires_on_what_others_write(
    tmp_path: Path, format: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    Image.new("RGB", (60, 50)).save(root / "a.jpg")
    make(root)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert fired(root) == [format]
    (path,) = label_files(root)
    assert fired(path) in ([format], [])
    assert len(open_dataset(root)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.json", '{"name": "x", "version": "1.0"}'),
        ("results.json", '[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]'),
        ("predictions.json", '[{"file": "a.jpg", "width": 3, "height": 4, "detections": []}]'),
        ("via_project.json", '{"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect"}}]}}'),
        ("dataset_infos.json", '{"default": {"features": {"image": {"_type": "Image"}}}}'),
        ("metadata.csv", "file_name,label\na.jpg,1\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "a cat"}'),
        ("page.xml", "<html><body/></html>"),
        ("notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {}}'),
        ("empty.json", ""),
        ("list.json", "[]"),
    ],
)
def test_other_files_in_a_folder_are_nobodys(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert fired(tmp_path) == []
