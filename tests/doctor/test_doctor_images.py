"""What the doctor says of image files: one damaged image among sound ones, found under its own id and no other."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from multibox import examine
from multibox.doctor.examine import diagnose
from multibox.doctor.frames import contrast
from multibox.doctor.repair import repair

QUIET = {"rare-class", "tiny-split", "class-imbalance", "class-in-one-split", "unused-class", "one-based-boxes"}


def photo(seed: int, size=(160, 120)) -> Image.Image:
    """Smooth random colours, which look like no other seed's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write_coco(folder, images, split="train", boxes=None):
    """Write a COCO split; images are files' names with a writer each."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    entries, annotations = [], []
    for number, (name, write) in enumerate(images.items(), 1):
        write(folder / split / name)
        entries.append({"id": number, "file_name": name})
        x, y, w, h = (boxes or {}).get(name, (3 + number, 20 + number, 50, 60))
        box = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
        annotations.append({**box, "area": w * h, "iscrowd": 0})
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def sound(seed: int):
    return lambda path: photo(seed).save(path)


def kinds_of(folder, **options) -> dict[str, list]:
    found: dict[str, list] = {}
    for one in examine(folder, **options):
        if one.kind not in QUIET:
            found.setdefault(one.kind, []).append(one)
    return found


def cut(path, keep: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def write_truncated(path):
    photo(1).save(path)
    cut(path, 0.6)


def write_deep_png(path):
    values = np.random.default_rng(0).integers(0, 65536, (120, 160)).astype(np.uint16)
    Image.fromarray(values).save(path)


def write_deep_colour_png(path):
    import zlib

    rows = np.random.default_rng(0).integers(0, 256, (120, 1 + 160 * 6), np.uint8)
    rows[:, 0] = 0

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 160, 120, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b""))


def write_animation(path):
    photo(1).save(path, save_all=True, append_images=[photo(2)], duration=100)


DAMAGE = {
    "truncated-jpeg": ("bad.jpg", write_truncated, "truncated-image", "error"),
    "truncated-png": ("bad.png", write_truncated, "truncated-image", "error"),
    "empty": ("bad.jpg", lambda path: path.write_bytes(b""), "empty-file", "error"),
    "text": ("bad.jpg", lambda path: path.write_text("<html>404 not found</html>"), "unreadable-image", "error"),
    "zeros": ("bad.png", lambda path: path.write_bytes(bytes(5000)), "unreadable-image", "error"),
    "png-named-jpg": ("bad.jpg", lambda path: photo(1).save(path, "PNG"), "wrong-extension", "warning"),
    "jpeg-named-png": ("bad.png", lambda path: photo(1).save(path, "JPEG"), "wrong-extension", "warning"),
    "webp-named-jpeg": ("bad.JPEG", lambda path: photo(1).save(path, "WEBP"), "wrong-extension", "warning"),
    "gif": ("bad.gif", write_animation, "animated-image", "warning"),
    "webp": ("bad.webp", write_animation, "animated-image", "warning"),
    "apng": ("bad.png", write_animation, "animated-image", "warning"),
    "pages": (
        "bad.tif",
        lambda path: photo(1).save(path, save_all=True, append_images=[photo(2)]),
        "animated-image",
        0,
    ),
    "refused-as-huge": ("bad.png", lambda path: Image.new("L", (12000, 4800), 90).save(path), "huge-image", "error"),
    "tiny": ("bad.png", lambda path: photo(1, (160, 8)).save(path), "tiny-image", "warning"),
    "deep-png": ("bad.png", write_deep_png, "deep-image", "note"),
    "deep-colour": ("bad.png", write_deep_colour_png, "deep-image", "note"),
    "deep-tiff": ("bad.tif", write_deep_png, "deep-image", "note"),
    "cmyk": ("bad.jpg", lambda path: photo(1).convert("CMYK").save(path), "cmyk-image", "note"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_has_its_name(tmp_path, damage):
    name, write, kind, severity = DAMAGE[damage]
    box = {"bad.png": (5, 1, 30, 6)} if damage == "tiny" else None
    images = {f"{seed}.jpg": sound(seed) for seed in range(3, 7)} | {name: write}
    found = kinds_of(write_coco(tmp_path, images, boxes=box))
    assert set(found) == {kind}
    (one,) = found[kind]
    assert one.file == str(tmp_path / "train" / name)
    assert severity in (0, one.severity)
    assert one.what and one.why and one.fix


@pytest.mark.parametrize("damage", ["empty", "text"])
def test_a_fast_look_finds_files_that_cannot_be_opened(tmp_path, damage):
    name, write, kind, _ = DAMAGE[damage]
    write_coco(tmp_path, {f"{seed}.jpg": sound(seed) for seed in range(3, 7)} | {name: write})
    assert set(kinds_of(tmp_path, fast=True)) == {kind}


def test_sound_images_of_every_kind_are_left_alone(tmp_path):
    names = ["a.jpg", "B.JPEG", "c.png", "d.bmp", "e.webp", "f.tif", "g.gif", "h.ppm", "i.JPG"]
    assert kinds_of(write_coco(tmp_path, {name: sound(seed) for seed, name in enumerate(names)})) == {}


def again(seed: int, change: str):
    def write(path):
        image = photo(seed, (480, 360))
        if change == "smaller":
            image = image.resize((160, 120))
        if change == "brighter":
            image = ImageEnhance.Brightness(image).enhance(1.1)
        image.save(path, quality=60)

    return write


@pytest.mark.parametrize("change", ["quality", "smaller", "brighter"])
def test_a_photograph_saved_again_is_a_near_duplicate(tmp_path, change):
    images = {f"{seed}.jpg": (lambda path, seed=seed: photo(seed, (480, 360)).save(path)) for seed in range(4)}
    found = kinds_of(write_coco(tmp_path, images | {"again.jpg": again(2, change)}))
    assert set(found) == {"near-duplicate-image"}
    assert "again.jpg shows nearly the same as 2.jpg" in found["near-duplicate-image"][0].what


def test_a_copy_is_a_duplicate_and_not_a_near_duplicate_too(tmp_path):
    found = kinds_of(
        write_coco(tmp_path, {f"{name}.jpg": sound(seed) for name, seed in zip("abcd", (1, 2, 1, 3), strict=True)})
    )
    assert set(found) == {"duplicate-image"}
    (one,) = found["duplicate-image"]
    assert one.file.endswith("c.jpg") and one.where == "c.jpg, split train"


@pytest.mark.parametrize(("copy", "severity"), [(sound(2), "error"), (again(2, "smaller"), "warning")])
def test_an_image_in_two_splits_under_another_name_is_leaked(tmp_path, copy, severity):
    write_coco(
        tmp_path,
        {
            f"{seed}.jpg": (lambda path, seed=seed: photo(seed, (480, 360)).save(path))
            if severity == "warning"
            else sound(seed)
            for seed in range(5)
        },
    )
    write_coco(tmp_path, {"9.jpg": sound(9), "other.jpg": copy}, "val")
    found = kinds_of(tmp_path)
    assert set(found) == {"leaked-image"}
    (one,) = found["leaked-image"]
    assert one.severity == severity
    assert one.file == str(tmp_path / "train" / "2.jpg") and one.where == "2.jpg, split train"


@pytest.mark.parametrize("name", ["all", "default", "boxes"])
def test_an_image_in_two_sets_counts_as_training_would_join_them(tmp_path, name):
    one, other = tmp_path / "one", tmp_path / "other"
    write_coco(one, {f"{seed}.jpg": sound(seed) for seed in range(3)})
    write_coco(one, {f"{seed}.jpg": sound(seed) for seed in (7, 8)}, "val")
    write_coco(other, {f"new{seed}.jpg": sound(seed) for seed in (2, 8, 11)}, name)
    found = kinds_of([one, other])
    assert set(found) == {"duplicate-image", "leaked-image"}
    assert [Path(twin.file).name for twin in found["duplicate-image"]] == ["new2.jpg"]
    assert [Path(twin.file).name for twin in found["leaked-image"]] == ["new8.jpg"]
    repair(diagnose([one, other]), tmp_path / "copy")
    assert not kinds_of(tmp_path / "copy")


def test_a_split_of_all_beside_others_of_its_set_is_no_copy(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    images = {f"{seed}.jpg": sound(seed) for seed in range(3)}
    write_coco(one, images)
    write_coco(one, images, "all")
    write_coco(other, {f"{seed}.jpg": sound(seed) for seed in range(4, 7)})
    assert not kinds_of([one, other])


def test_boxes_stand_out_where_they_belong():
    pixels = np.full((60, 80, 3), 128.0)
    pixels[10:30, 20:40] = (255, 0, 0)
    boxes = np.array([[20, 10, 40, 30], [50, 40, 70, 55], [-30, -30, -1, -1], [np.nan, 0, 1, 1], [0, 0, 80, 60]])
    right, wrong, outside, nonsense, whole = contrast(pixels, boxes)
    assert right == pytest.approx(127 + 128 + 128)
    assert wrong == outside == nonsense == whole == 0


def write_yolo(folder, *, follow_shown: bool, count=5, orientation=6):
    rng = np.random.default_rng(3)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text("train: images\nnames: [cat]\n")
    for number in range(count):
        x, y = rng.uniform(0.05, 0.5, 2)
        w, h = rng.uniform(0.2, 0.4, 2)
        image = photo(number).point(lambda value: 100 + value // 5)
        image.paste((220, 20, 20), (round(x * 160), round(y * 120), round((x + w) * 160), round((y + h) * 120)))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / "images" / f"{number}.jpg", exif=exif)
        cx, cy = x + w / 2, y + h / 2
        if follow_shown:
            cx, cy, w, h = {6: (1 - cy, cx, h, w), 3: (1 - cx, 1 - cy, w, h)}[orientation]
        (folder / "labels" / f"{number}.txt").write_text(f"0 {cx} {cy} {w} {h}\n")
    return folder


@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_without_sizes_that_follow_the_stored_image_are_found_by_contrast(tmp_path, orientation):
    found = kinds_of(write_yolo(tmp_path, follow_shown=False, orientation=orientation))
    assert set(found) == {"exif-mismatch"} and len(found["exif-mismatch"]) == 5


@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_that_follow_the_shown_image_are_no_finding(tmp_path, orientation):
    assert kinds_of(write_yolo(tmp_path, follow_shown=True, orientation=orientation)) == {}


def test_two_turned_images_say_nothing(tmp_path):
    assert kinds_of(write_yolo(tmp_path, follow_shown=False, count=2)) == {}


def test_declared_sizes(tmp_path):
    folder = write_coco(tmp_path, {f"{seed}.jpg": sound(seed) for seed in range(4)})
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for entry, size in zip(content["images"], ((160, 120), (80, 60), (161, 121), (160, 120)), strict=True):
        entry["width"], entry["height"] = size
    path.write_text(json.dumps(content))
    found = kinds_of(folder)
    assert set(found) == {"size-mismatch"}
    assert [one.severity for one in found["size-mismatch"]] == ["warning", "note"]
    assert found["size-mismatch"][0].what == (
        "1.jpg is 160 x 120, its labels say 80 x 60; the boxes fit the image itself"
    )


def test_progress_counts_images(tmp_path):
    write_coco(tmp_path, {f"{seed}.jpg": sound(seed) for seed in range(4)})
    calls: list[tuple[int, int]] = []
    examine(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)
