"""docs/labels.md tells the truth: folders as annotation tools write them are read to the right boxes, or refused."""

import json
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multibox.data.formats import find_splits, open_dataset
from multibox.errors import DataError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
NAMES, CLASSES = ("a", "b"), ("cat", "dog")
WIDTH, HEIGHT = 80, 60
BOX = (10, 20, 30, 50)
CENTRE = " ".join(str(v) for v in (20 / WIDTH, 35 / HEIGHT, 20 / WIDTH, 30 / HEIGHT))
"""The box as YOLO writes it."""
HEADER, ROW = "filename,width,height,class,xmin,ymin,xmax,ymax", "{}.jpg,80,60,cat,10,20,30,50"


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def images(folder: Path, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.new("RGB", (WIDTH, HEIGHT), (200, 60, 40)).save(folder / (name + suffix))


def voc(root: Path, labels: str, folder: str, lists: dict[str, Sequence[str]] | None = None) -> None:
    images(root / folder)
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
    )
    for name, label in zip(NAMES, CLASSES, strict=True):
        thing = f"<object><name>{label}</name><difficult>Unspecified</difficult><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{thing}</annotation>"
        write(root / labels / f"{name}.xml", xml)
    for name, lines in (lists or {}).items():
        write(root / f"ImageSets/Main/{name}.txt", *lines)


def yolo(root: Path, labels: str, folder: str, files: dict[str, Sequence[str]]) -> None:
    images(root / folder)
    for label, name in enumerate(NAMES):
        write(root / labels / f"{name}.txt", f"{label} {CENTRE}")
    for name, lines in files.items():
        write(root / name, *lines)


def coco(root: Path, file: str, folder: str, prefix: str = "", unused: str = "") -> None:
    images(root / folder)
    x1, y1, x2, y2 = BOX
    entries = list(enumerate(NAMES, start=1))
    content = {
        "images": [
            {"id": i, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT} for i, name in entries
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]} for i, _ in entries
        ],
        "categories": [{"id": 0, "name": unused}] * bool(unused)
        + [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)],
    }
    write(root / file, json.dumps(content))


def table(root: Path, file: str, folder: str, header: str = HEADER, row: str = ROW, suffix: str = ".jpg") -> None:
    images(root / folder, suffix)
    write(root / file, header, *(row.format(name) for name in NAMES))


def labelme(root: Path) -> None:
    images(root)
    x1, y1, x2, y2 = BOX
    for name, label in zip(NAMES, CLASSES, strict=True):
        shape = {
            "label": label,
            "points": [[x2, y1], [x1, y2]],
            "group_id": None,
            "shape_type": "rectangle",
            "flags": {},
        }
        content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
        write(root / f"{name}.json", json.dumps(content | {"imageHeight": HEIGHT, "imageWidth": WIDTH}, indent=2))


def cvat(root: Path, video: bool = False) -> None:
    corners = " ".join(f'{key}="{value}.00"' for key, value in zip(("xtl", "ytl", "xbr", "ybr"), BOX, strict=True))
    labels = "".join(f"<label><name>{name}</name><color>#fa3253</color></label>" for name in CLASSES)
    lines = [f"<version>1.1</version><meta><task><name>my task</name><labels>{labels}</labels></task></meta>"]
    for number, (name, label) in enumerate(zip(NAMES, CLASSES, strict=True)):
        if video:
            box = f'<box frame="{number}" keyframe="1" outside="0" occluded="0" {corners} z_order="0"></box>'
            lines.append(f'<track id="{number}" label="{label}" source="manual">{box}</track>')
        else:
            box = f'<box label="{label}" source="manual" occluded="0" {corners} z_order="0"></box>'
            lines.append(f'<image id="{number}" name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}">{box}</image>')
    write(root / "annotations.xml", '<?xml version="1.0" encoding="utf-8"?>', "<annotations>", *lines, "</annotations>")
    images(root / "images")
    for number, name in enumerate(NAMES if video else ()):
        (root / "images" / f"{name}.jpg").rename(root / "images" / f"frame_{number:06d}.jpg")


def label_studio(root: Path, flat: bool = False) -> None:
    images(root / "images")
    x1, y1, x2, y2 = BOX
    place = {"x": x1 / WIDTH * 100, "y": y1 / HEIGHT * 100, "rotation": 0}
    place |= {"width": (x2 - x1) / WIDTH * 100, "height": (y2 - y1) / HEIGHT * 100}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    tasks: list[dict[str, object]] = []
    for number, (name, label) in enumerate(zip(NAMES, CLASSES, strict=True), start=1):
        value = place | {"rectanglelabels": [label]}
        image = f"/data/upload/1/0a1b2c3d-{name}.jpg"
        result = size | {"image_rotation": 0, "value": value, "from_name": "label", "to_name": "image", "id": name}
        annotations = [{"id": number, "was_cancelled": False, "result": [result | {"type": "rectanglelabels"}]}]
        task = {"id": number, "annotations": annotations, "predictions": [], "data": {"image": image}}
        tasks.append({"image": image, "id": number, "label": [value | size], "annotator": 1} if flat else task)
    write(root / "project-1-at-2026-11-28-10-00-0a1b2c3d.json", json.dumps(tasks))


def createml(root: Path, file: str) -> None:
    images(root)
    x1, y1, x2, y2 = BOX
    place = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
    entries = [
        {"image": f"{name}.jpg", "annotations": [{"label": label, "coordinates": place}]}
        for name, label in zip(NAMES, CLASSES, strict=True)
    ]
    write(root / file, json.dumps(entries))


def objects(label: object) -> dict[str, object]:
    x1, y1, x2, y2 = BOX
    return {"bbox": [[x1, y1, x2 - x1, y2 - y1]], "categories": [label]}


def imagefolder(root: Path) -> None:
    images(root / "train")
    pairs = zip(NAMES, CLASSES, strict=True)
    rows = [{"file_name": f"{name}.jpg", "objects": objects(label)} for name, label in pairs]
    write(root / "train" / "metadata.jsonl", *map(json.dumps, rows))


def parquet(root: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs multibox[hub]")
    images(root)
    files = [root / f"{name}.jpg" for name in NAMES]
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "objects": objects(label)}
        for label, file in enumerate(files)
    ]
    label = {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "List"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "objects": {"categories": label}}}}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    (root / "data").mkdir()
    pytest.importorskip("pyarrow.parquet").write_table(table, root / "data" / "train-00000-of-00001.parquet")
    for file in files:
        file.unlink()


def webdataset(root: Path) -> None:
    images(root)
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        for name, label in zip(NAMES, CLASSES, strict=True):
            write(root / f"{name}.json", json.dumps({"objects": objects(label)}))
            for file in (root / f"{name}.jpg", root / f"{name}.json"):
                tar.add(file, file.name)
                file.unlink()


def parts(root: Path, make: Callable[[Path], None], names: Sequence[str] = ("train", "valid")) -> None:
    for name in names:
        make(root / name)


DARKNET = {
    "obj.data": ("classes = 2", "train = data/train.txt", "names = data/obj.names"),
    "obj.names": CLASSES,
    "train.txt": [f"data/obj_train_data/{name}.jpg" for name in NAMES],
}
YAML = {
    "data.yaml": ("path: .", "train: train.txt", "names:", "  0: cat", "  1: dog"),
    "train.txt": [f"images/train/{name}.jpg" for name in NAMES],
}
ROBOFLOW = {"data.yaml": ("train: ../train/images", "val: ../valid/images", "nc: 2", "names: ['cat', 'dog']")}
BANANAS = {"header": "img_name,label,xmin,ymin,xmax,ymax", "row": "{}.png,0,10,20,30,50", "suffix": ".png"}
LISTED = [
    f"{i}\t2\t5\t{i}\t{10 / WIDTH}\t{20 / HEIGHT}\t{30 / WIDTH}\t{50 / HEIGHT}\t{name}.jpg"
    for i, name in enumerate(NAMES)
]
OPEN_IMAGES = {
    "header": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf",
    "row": "{},xclick,/m/01yrx,1,0.125,0.375,0.33333333,0.83333333,0",
}


def roboflow_yolo(root: Path) -> None:
    parts(root, partial(yolo, labels="labels", folder="images", files={}))
    write(root / "data.yaml", *ROBOFLOW["data.yaml"])


def makesense_csv(root: Path) -> None:
    images(root)
    write(root / "labels_my-project_2026-11-28-10-30-00.csv", *(f"cat,10,20,20,30,{name}.jpg,80,60" for name in NAMES))


def im2rec(root: Path) -> None:
    images(root)
    write(root / "train.lst", *LISTED)
    write(root / "classes.txt", *CLASSES)


READ: list[tuple[str, str, Callable[[Path], None]]] = [
    ("LabelImg", "PascalVOC", partial(voc, labels="", folder="")),
    ("LabelImg", "YOLO", partial(yolo, labels="", folder="", files={"classes.txt": CLASSES})),
    ("Label Studio", "COCO", partial(coco, file="result.json", folder="images", prefix="images/")),
    ("Label Studio", "YOLO", partial(yolo, labels="labels", folder="images", files={"classes.txt": CLASSES})),
    ("Label Studio", "Pascal VOC XML", partial(voc, labels="Annotations", folder="images")),
    ("CVAT", "COCO 1.0", partial(coco, file="annotations/instances_default.json", folder="images/default")),
    (
        "CVAT",
        "PASCAL VOC 1.1",
        partial(voc, labels="Annotations", folder="JPEGImages", lists={"default": NAMES}),
    ),
    ("CVAT", "YOLO", partial(yolo, labels="obj_train_data", folder="obj_train_data", files=DARKNET)),
    ("CVAT", "YOLO", partial(yolo, labels="labels/train", folder="images/train", files=YAML)),
    ("Roboflow", "COCO", partial(parts, make=partial(coco, file="_annotations.coco.json", folder=""))),
    ("Roboflow", "Pascal VOC", partial(parts, make=partial(voc, labels="", folder=""))),
    ("Roboflow", "YOLOv8", roboflow_yolo),
    ("Roboflow", "CSV", partial(parts, make=partial(table, file="_annotations.csv", folder=""))),
    ("makesense.ai", "VOC XML", partial(voc, labels="", folder="")),
    ("makesense.ai", "YOLO", partial(yolo, labels="labels", folder="images", files={"classes.txt": CLASSES})),
    ("makesense.ai", "CSV", makesense_csv),
    (
        "VoTT",
        "CSV",
        partial(table, file="my-export.csv", folder="", header='"image","xmin","ymin","xmax","ymax","label"',
                row='"{}.jpg",10,20,30,50,"cat"'),
    ),
    ("VGG VIA", "COCO format", partial(coco, file="via_project_coco.json", folder="")),
    ("LabelMe", "its folder as it is", labelme),
    ("CVAT", "CVAT for images 1.1", cvat),
    ("CVAT", "for video", partial(cvat, video=True)),
    ("Label Studio", "JSON", label_studio),
    ("Label Studio", "JSON-MIN", partial(label_studio, flat=True)),
    ("LabelImg", "CreateML", partial(createml, file="a.json")),
    ("Roboflow", "CreateML", partial(parts, make=partial(createml, file="_annotations.createml.json"))),
    ("LabelMe", "labelme2voc.py", partial(voc, labels="Annotations", folder="JPEGImages")),
    ("Supervisely", "Export to COCO", partial(coco, file="annotations/instances.json", folder="images")),
    ("COCO Annotator", "COCO", partial(coco, file="my-data-1.json", folder="")),
    ("MediaPipe Model Maker", "COCO", partial(coco, file="labels.json", folder="images", unused="background")),
    ("MediaPipe Model Maker", "VOC", partial(voc, labels="Annotations", folder="images")),
    (
        "Dive into Deep Learning",
        "CSV",
        partial(parts, make=partial(table, file="label.csv", folder="images", **BANANAS),
                names=("bananas_train", "bananas_val")),
    ),
    (
        "PASCAL VOC",
        "",
        partial(voc, labels="Annotations", folder="JPEGImages", lists={"train": NAMES, "cat_train": ("a 1", "b -1")}),
    ),
    ("COCO", "train2017", partial(coco, file="annotations/instances_train2017.json", folder="train2017")),
    ("Ultralytics", "data.yaml", partial(yolo, labels="labels/train", folder="images/train", files=YAML)),
    ("Darknet", "obj.data", partial(yolo, labels="obj_train_data", folder="obj_train_data", files=DARKNET)),
    ("MXNet im2rec", "train.lst", im2rec),
    ("Hugging Face imagefolder", "metadata.jsonl", imagefolder),
    ("Hugging Face Parquet", "parquet", parquet),
    ("WebDataset", "KEY.json", webdataset),
    ("PASCAL VOC", "years are joined", partial(voc, labels="VOC2012/Annotations", folder="VOC2012/JPEGImages")),
    ("ImageNet", "CLS-LOC", partial(voc, labels="Annotations/CLS-LOC/train", folder="Data/CLS-LOC/train")),
    ("keras-retinanet", "", partial(table, file="train.csv", folder="train", header="", row="{}.jpg,10,20,30,50,cat")),
    ("Open Images CSV", "", partial(table, file="train-annotations-bbox.csv", folder="train", **OPEN_IMAGES)),
]  # fmt: skip


def row_of(tool: str) -> str:
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {tool} |"))


@pytest.mark.parametrize(("tool", "export", "make"), READ, ids=[f"{tool}-{export}" for tool, export, _ in READ])
def test_what_the_page_calls_read_is_read(tool, export, make, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert export in row_of(tool)
    root = tmp_path / "data"
    make(root)
    for split in find_splits(root):
        dataset = open_dataset(root, split)
        assert len(dataset) == 2
        np.testing.assert_allclose(dataset.boxes_xyxy, [BOX, BOX], atol=0.01)
        assert "background" not in dataset.class_names


def test_every_tool_of_the_first_table_is_tried():
    rows = PAGE.partition("## Which export do I choose?")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} <= {tool for tool, _, _ in READ}
    assert len(rows) == 12


def test_the_tutorial_folder_is_read_with_both_formats(tmp_path):
    folder = tmp_path / "images"
    parts(folder, partial(voc, labels="", folder=""), ("train", "test"))
    rows = [ROW.format(name).replace("cat", label) for name, label in zip(NAMES, CLASSES, strict=True)]
    for split in ("train", "test"):
        write(folder / f"{split}_labels.csv", HEADER, *rows)
    assert "XML beside, `train_labels.csv`, or both" in row_of("TensorFlow tutorial")
    assert find_splits(tmp_path) == ["train", "test"] and len(open_dataset(tmp_path, "test").labels) == 2
    for path in folder.rglob("*.xml"):
        path.unlink()
    assert open_dataset(tmp_path, "test").format == "csv"


VIA = {"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect"}}]}}


@pytest.mark.parametrize(
    ("tool", "export", "file", "text"),
    [
        ("Label Studio", "CSV", "project-1.csv", "image,id,label,annotator\n/data/upload/a.jpg,1,[],1"),
        ("VoTT", "JSON", "x-export.json", json.dumps({"name": "x", "assets": {}})),
        ("VGG VIA", "VIA JSON", "via_project.json", json.dumps(VIA)),
        ("VGG VIA", "VIA CSV", "via_project.csv", "filename,file_size,region_shape_attributes\na.jpg,1,{}"),
        ("Supervisely", "its own", "ds0/ann/a.jpg.json", json.dumps({"objects": [], "size": {}})),
    ],
)
def test_what_the_page_calls_not_read_is_refused(tool, export, file, text, tmp_path):
    assert export in row_of(tool).split(" | ")[3]
    images(tmp_path)
    write(tmp_path / file, text)
    with pytest.raises(DataError, match="is no data set"):
        find_splits(tmp_path)
