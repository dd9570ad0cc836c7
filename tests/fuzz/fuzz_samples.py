"""Valid samples of everything that is parsed, and the calls that parse them."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from multibox.data.convert import write_dataset
from multibox.data.formats import FORMATS, find_splits, locate, open_dataset, read_raw
from multibox.data.images import decode_image, image_size, load_image
from multibox.data.records import ImageRecord, scan, write_record
from multibox.doctor.examine import examine
from multibox.errors import DataError, MultiboxError
from multibox.structures import Sample, Size, pack

Files = Mapping[str, bytes]
Make = Callable[[Path], list[Files]]
Parse = Callable[[Path], None]


def encoded(mode: str, format: str, **options: object) -> bytes:
    """Return a small image in some format."""
    values = np.random.default_rng(5).integers(0, 256, (6, 8, 4), np.uint8)
    image = Image.fromarray(values).resize((40, 24))
    buffer = io.BytesIO()
    (image.convert("L").convert(mode) if mode in ("I;16", "F", "1", "LA") else image.convert(mode)).save(
        buffer, format, **options
    )
    return buffer.getvalue()


def images(_: Path) -> list[Files]:
    """Return one image of each kind."""
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "MPO"), ("RGBA", "PNG"), ("P", "PNG"), ("I;16", "PNG")]
    kinds += [("RGB", "BMP"), ("P", "GIF"), ("RGBA", "WEBP"), ("RGB", "TIFF"), ("F", "TIFF"), ("I;16", "TIFF")]
    kinds += [("L", "PPM"), ("1", "PPM"), ("RGB", "PPM"), ("RGB", "JPEG2000")]
    kinds += [("RGB", "AVIF")] if "AVIF" in Image.SAVE else []
    made = [encoded(mode, format) for mode, format in kinds]
    made += [encoded("RGB", "JPEG", progressive=True, exif=exif), encoded("RGB", "PNG", exif=exif)]
    made += [encoded("RGB", "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    made += [encoded("1", "TIFF", compression="group4"), encoded("RGB", "TIFF", exif=exif)]
    return [{"image": data} for data in made]


def parse_image(folder: Path) -> None:
    """Decode an image, and read its size."""
    path = folder / "image"
    size = None
    with suppress(MultiboxError):
        size = image_size(path)
    image = decode_image(path.read_bytes(), str(path))
    assert image.mode == "RGB"
    assert size is not None, "an image that can be decoded has a size"
    assert Size(image.height, image.width) == size, "the header's size is another than the image's"


def records(folder: Path) -> list[Files]:
    """Return a RecordIO file of three records, one of them in parts."""
    label = np.array([2, 5, 0, 0.1, 0.1, 0.9, 0.9], np.float32)
    path = folder / "sample.rec"
    with path.open("wb") as file:
        for key in range(3):
            image = encoded("RGB", "PNG") + (struct.pack("<I", 0xCED7230A) * 4 if key == 1 else b"")
            write_record(file, ImageRecord(key, label, image))
    return [{"a.rec": path.read_bytes()}]


def parse_records(folder: Path) -> None:
    """Read all records."""
    assert sum(len(record.image) for _, record in scan(folder / "a.rec")) >= 0


def data_set(folder: Path, format: str) -> list[Files]:
    """Return a small data set as our own writer writes it."""
    rows = []
    for number in range(3):
        path = folder / f"p{number}.png"
        path.write_bytes(encoded("RGB", "PNG"))
        boxes = np.array([[1, 2, 20, 18], [5, 5, 39, 23]], np.float64)[: number + 1]
        flags = np.zeros(len(boxes), np.bool_)
        rows.append(
            Sample(path.name, path, boxes, np.arange(len(boxes), dtype=np.int64) % 2, flags, flags, Size(24, 40))
        )
    splits = {
        name: pack(rows[part], root=folder, format="voc", split=name, class_names=("cat", "dog"))
        for name, part in (("train", slice(0, 2)), ("val", slice(2, 3)))
    }
    write_dataset(splits, folder / "out", format)
    return [files_of(folder / "out")]


def files_of(folder: Path) -> Files:
    """Return the files below a folder by their relative names."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parse_data_set(folder: Path, format: str | None) -> None:
    """Read every split in every way, as far as it goes."""
    first: MultiboxError | None = None
    with suppress(DataError):
        locate(folder)
    for split in find_splits(folder, format)[:4]:
        for on_bad in ("stop", "skip"):
            try:
                dataset = open_dataset(folder, split, format=format, on_bad=on_bad)
            except MultiboxError as error:
                first = first or error
                continue
            assert np.isfinite(dataset.boxes_xyxy).all()
            assert ((dataset.labels >= 0) & (dataset.labels < max(1, len(dataset.class_names)))).all()
            for sample in list(dataset)[:2]:
                try:
                    load_image(sample)
                except MultiboxError as error:
                    first = first or error
        read_raw(folder, split, format=format)
    if first is not None:
        raise first


def beside(_: Path, text: str, name: str, **more: str) -> list[Files]:
    """Return a label file beside three images, and other text files by their names with `__` for a slash."""
    files = {f"p{number}.png": encoded("RGB", "PNG") for number in range(3)} | {name: text.encode()}
    return [files | {key.replace("__", "/").replace("_dot_", "."): value.encode() for key, value in more.items()}]


CREATEML = json.dumps(
    [
        {
            "image": f"p{number}.png",
            "annotations": [
                {"label": "cat", "coordinates": {"x": 20.0, "y": 10.5, "width": 12, "height": 8}},
                {"label": "dog", "coordinates": {"x": 8, "y": 8, "width": 6, "height": 6}},
            ],
        }
        for number in range(3)
    ]
)
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n" + "".join(
    f"p{number},xclick,/m/01g317,1,0.1,0.8,0.2,0.9,0,{number % 2}\n" for number in range(3)
)
DARKNET = "classes = 2\ntrain = train.txt\nvalid = val.txt\nnames = obj.names\nbackup = backup/\n"
POLYGONS = json.dumps(
    {
        "images": [{"id": 1, "file_name": "p0.png", "width": 40, "height": 24}],
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 30, 2, 30, 20]], "bbox": [1, 2, 29, 18]},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 3,
                "bbox": [2, 3, 10, 10],
                "area": 100,
                "iscrowd": 1,
                "segmentation": {"size": [24, 40], "counts": [100, 20, 840]},
            },
        ],
    }
)


def every_format(folder: Path) -> list[Files]:
    """Return a data set in each of five formats."""
    made: list[Files] = []
    for format in ("voc", "coco", "yolo", "csv", "labelme"):
        (folder / format).mkdir()
        made += data_set(folder / format, format)
    return made


def parse_examined(folder: Path) -> None:
    """Examine a data set, which also reports what cannot be read."""
    for finding in examine(folder):
        assert finding.kind and finding.what


def zipped(folder: Path) -> list[Files]:
    """Return a .zip of a YOLO data set, packed and stored."""
    found: list[Files] = []
    (files,) = data_set(folder, "yolo")
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        found.append({"set.zip": buffer.getvalue()})
    return found


def parse_file(folder: Path, name: str) -> None:
    """Read the data set in one file."""
    parse_data_set(folder / name, None)


def shards(_: Path) -> list[Files]:
    """Return a tar shard of three images with JSON beside them, plain and packed by gzip."""
    label = {"objects": {"bbox": [[1, 2, 20, 10]], "category": ["cat"]}, "width": 40, "height": 24}
    found: list[Files] = []
    for mode, suffix in (("w", "tar"), ("w:gz", "tar.gz")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for number in range(3):
                for kind, data in (("png", encoded("RGB", "PNG")), ("json", json.dumps(label).encode())):
                    entry = tarfile.TarInfo(f"p{number}.{kind}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
        found.append({f"train-000000.{suffix}": buffer.getvalue()})
    return found


def parquet(folder: Path) -> list[Files]:
    """Return a Parquet file as the Hugging Face Hub holds them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "image": {"bytes": encoded("RGB", "PNG"), "path": "p.png"},
        "width": 40,
        "height": 24,
        "objects": {"bbox": [[1.0, 2.0, 20.0, 10.0]], "category": ["cat"]},
    }
    path = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([row] * 3), path)
    return [{f"data/{path.name}": path.read_bytes()}]


SAMPLES: dict[str, tuple[Make, Parse]] = {
    "images": (images, parse_image),
    "records": (records, parse_records),
    "polygons": (partial(beside, text=POLYGONS, name="instances.json"), partial(parse_data_set, format="coco")),
    "createml": (partial(beside, text=CREATEML, name="annotations.json"), partial(parse_data_set, format="createml")),
    "openimages": (partial(beside, text=OPEN_IMAGES, name="boxes.csv"), partial(parse_data_set, format=None)),
    "darknet": (
        partial(
            beside,
            text=DARKNET,
            name="obj.data",
            train_dot_txt="p0.png\np1.png\n",
            val_dot_txt="p2.png\n",
            obj_dot_names="cat\ndog\n",
            p0_dot_txt="0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.1 0.1\n",
            p1_dot_txt="1 0.1 0.1 0.3 0.1 0.3 0.4\n",
            p2_dot_txt="",
        ),
        partial(parse_data_set, format="yolo"),
    ),
}
for _name, _format in FORMATS.items():
    if _format.write is not None:
        SAMPLES[_name] = (partial(data_set, format=_name), partial(parse_data_set, format=_name))
SAMPLES["doctor"] = (every_format, parse_examined)
SAMPLES["zip"] = (zipped, partial(parse_file, name="set.zip"))
SAMPLES["webdataset"] = (shards, partial(parse_data_set, format="webdataset"))
if find_spec("pyarrow") is not None:
    SAMPLES["parquet"] = (parquet, partial(parse_data_set, format="parquet"))
