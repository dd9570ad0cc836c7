"""A corpus of damage: each kind made on a sound set in every format that can hold it, named and mended or left.

A damage changes the objects before they are written, or the files after it. The doctor must name it by its own id, say
nothing that is not true, and the repaired copy must lack every kind that `--fix` promises to mend.
"""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multibox import examine
from multibox.data.records import ImageRecord, scan, write_record
from multibox.doctor.examine import diagnose
from multibox.doctor.findings import KINDS
from multibox.doctor.repair import remaining_kinds, repair
from multibox.errors import DataError

ALL = ("voc", "coco", "yolo", "csv", "recordio")
FILES = ("voc", "coco", "yolo", "csv")
"""Formats whose images are files."""
QUIET = {"rare-class", "class-imbalance", "unused-class", "class-in-one-split"}
"""Notes that are true of the sound sets, too, which are small."""
IMAGES = {"voc": "JPEGImages", "coco": "{}", "yolo": "images/{}", "csv": "{}/images"}
LISTS = "ImageSets/Main"


@dataclass
class Made:
    """A set while it is made."""

    format: str
    folder: Path
    objects: dict[str, dict[str, list[Any]]]
    """Objects of each image of each split: class and box xyxy in pixels."""
    classes: list[str]
    layout: str = ""
    fractions: bool | None = None
    after: list[Callable[[], None]] = field(default_factory=list)

    @property
    def first(self) -> list[Any]:
        return self.objects["train"]["image00"]

    def image(self, name: str = "image03", split: str = "train") -> Path:
        return self.folder / IMAGES[self.format].format(split) / f"{name}.png"

    def label(self, name: str = "image03", split: str = "train") -> Path:
        places = {"voc": f"Annotations/{name}.xml", "yolo": f"labels/{split}/{name}.txt"}
        places |= {"coco": f"annotations/instances_{split}.json", "csv": f"{split}/label.csv"}
        return self.folder / places[self.format]

    def rename(self, old: str, new: str, name: str = "image03") -> None:
        """Give an image another ending, in the label file as well."""
        self.image(name).rename(self.image(name).with_name(name + new))
        if self.format != "yolo":
            path = self.label(name)
            path.write_text(path.read_text().replace(name + old, name + new))

    def put_image(self, data: bytes, ending: str = ".png", name: str = "image03", split: str = "train") -> None:
        """Replace an image by these bytes, in its file or its record."""
        if self.format == "recordio":
            self.records(lambda key, label: data if key == int(name[-2:]) % 40 else None, split)
            return
        self.image(name, split).write_bytes(data)
        if ending != ".png":
            self.rename(".png", ending, name)

    def records(self, change: Callable[[int, Any], bytes | None], split: str = "train") -> None:
        path = self.folder / f"{split}.rec"
        held = [record for _, record in scan(path)]
        with path.open("wb") as file:
            for record in held:
                label = record.label.copy()
                image = change(record.key, label)
                write_record(file, ImageRecord(record.key, label, record.image if image is None else image))

    def coco(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.label()
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def photo(number: int, size=(200, 120)) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Damage:
    kind: str
    make: Callable[[Made], None]
    formats: tuple[str, ...] = ALL
    with_it: frozenset[str] = frozenset()
    """Other kinds that are true as well."""


DAMAGE: dict[str, Damage] = {}


def damage(kind: str, *formats: str, with_it: tuple[str, ...] = ()):
    def keep(make: Callable[[Made], None]) -> Callable[[Made], None]:
        DAMAGE[make.__name__] = Damage(kind, make, formats or ALL, frozenset(with_it))
        return make

    return keep


def set_box(made: Made, box: list[Any], name: str = "image00", place: int = 0) -> None:
    label, _ = made.objects["train"][name][place]
    made.objects["train"][name][place] = (label, box)


def moved(made: Made, **changes: float) -> list[float]:
    x1, y1, x2, y2 = made.first[0][1]
    box = {"x1": x1, "y1": y1, "x2": x2, "y2": y2} | changes
    return [box["x1"], box["y1"], box["x2"], box["y2"]]


# Boxes


@damage("reversed-box")
def reversed_left_and_right(made):
    x1, y1, x2, y2 = made.first[0][1]
    set_box(made, [x2, y1, x1, y2])


@damage("reversed-box")
def reversed_top_and_bottom(made):
    x1, y1, x2, y2 = made.first[0][1]
    set_box(made, [x1, y2, x2, y1])


@damage("empty-box")
def without_width(made):
    set_box(made, moved(made, x2=made.first[0][1][0]))


@damage("empty-box")
def a_point(made):
    x1, y1, _, _ = made.first[0][1]
    set_box(made, [x1, y1, x1, y1])


@damage("tiny-box")
def under_a_pixel(made):
    x1, y1, _, _ = made.first[0][1]
    set_box(made, [x1, y1, x1 + 0.4, y1 + 0.4])


@damage("outside-box")
def right_of_the_image(made):
    set_box(made, [230, 20, 260, 60])


@damage("outside-box")
def above_the_image(made):
    set_box(made, [30, -60, 60, -5])


@damage("clipped-box")
def over_the_right_edge(made):
    set_box(made, [170, 20, 215, 60], place=2)


@damage("clipped-box")
def over_the_left_edge(made):
    set_box(made, [-12, 20, 30, 60])


@damage("clipped-box")
def three_percent_over_the_edge(made):
    for number, rows in enumerate(made.objects["train"].values()):
        if number % 6 == 0:
            rows[2] = (rows[2][0], [170, 20, 208, 60])


@damage("whole-image-box", with_it=("nested-duplicate",))
def whole_image(made):
    made.objects["train"]["image05"] = [("cat", [0, 0, 200, 120])]


@damage("duplicate-box")
def the_same_box_twice(made):
    made.first.append(made.first[0])


@damage("duplicate-box")
def the_same_box_a_pixel_beside(made):
    label, box = made.first[0]
    made.objects["train"]["image05"] = [("cat", [20, 20, 80, 90]), ("cat", [21, 20, 81, 90])]
    assert label and box


@damage("same-place-two-classes")
def the_same_box_of_another_class(made):
    label, box = made.first[0]
    made.first.append(("dog" if label == "cat" else "cat", box))


@damage("nested-duplicate")
def a_second_label_inside_the_first(made):
    made.objects["train"]["image05"] = [("cat", [20, 20, 80, 90]), ("cat", [24, 24, 77, 86])]


@damage("not-a-number")
def one_nan_of_many(made):
    set_box(made, moved(made, x1=float("nan")), "image00")


@damage("not-a-number")
def one_infinite(made):
    set_box(made, [10.0, 10.0, float("inf"), 50.0])


@damage("not-a-number", "voc", "yolo", "csv")
def a_coordinate_of_text(made):
    def after():
        path = made.label("image00")
        number = (
            r"(<xmin>)[^<]*"
            if made.format == "voc"
            else r"(?m)(^\d+ )\S+"
            if made.format == "yolo"
            else r"(image00.png,\w+,)[^,]+"
        )
        path.write_text(re.sub(number, r"\g<1>abc", path.read_text(), count=1))

    made.after.append(after)


@damage("normalised-boxes", "voc", "coco", "csv")
def fractions_for_pixels(made):
    made.fractions = True


@damage("pixel-boxes", "yolo", "recordio")
def pixels_for_fractions(made):
    made.fractions = False


@damage("wrong-box-format", "voc", "csv", "recordio")
def width_and_height_for_corners(made):
    made.layout = "xywh"


@damage("wrong-box-format", "coco", "yolo")
def corners_for_width_and_height(made):
    made.layout = "xyxy"


@damage("wrong-box-format", "coco", "voc", "csv")
def centres_for_corners(made):
    made.layout = "cxcywh"


@damage("wrong-box-format", "voc", "csv")
def columns_of_x_before_those_of_y(made):
    made.layout = "xxyy"


@damage("swapped-axes")
def x_and_y_exchanged(made):
    for split in made.objects.values():
        for rows in split.values():
            rows[:] = [(label, [y1, x1, y2, x2]) for label, (x1, y1, x2, y2) in rows]


@damage("scale-mismatch", "csv", "voc", "coco")
def twice_as_large(made):
    for split in made.objects.values():
        for rows in split.values():
            rows[:] = [(label, [2 * value for value in box]) for label, box in rows]


@damage("one-based-boxes", "csv", "coco", "yolo", with_it=("clipped-box",))
def counted_from_1(made):
    for split in made.objects.values():
        for number, rows in enumerate(split.values()):
            if number % 2:
                rows[0] = (rows[0][0], [0, 4, 40, 60])
                rows[2] = (rows[2][0], [150, 4, 199, 60])
            rows[:] = [(label, [x1 + 1, y1 + 1, x2 + 1, y2 + 1]) for label, (x1, y1, x2, y2) in rows]


# Classes


def call(made: Made, new: str, count: int = 1) -> None:
    made.classes.append(new)
    for name in list(made.objects["train"])[:count]:
        rows = made.objects["train"][name]
        rows[0] = (new, rows[0][1])


@damage("misspelt-class", with_it=("rare-class",))
def other_capitals(made):
    call(made, "Cat")


@damage("misspelt-class", with_it=("rare-class",))
def a_plural(made):
    call(made, "cats")


@damage("misspelt-class", "voc", "csv", "coco")
def a_space_or_a_dash(made):
    for split in made.objects.values():
        for rows in split.values():
            rows[:] = [("guide-dog" if label == "dog" else label, box) for label, box in rows]
    made.classes[:] = ["cat", "guide-dog"]
    call(made, "guide_dog")


@damage("background-class")
def called_background(made):
    call(made, "Background", 6)


@damage("background-class")
def called_ignore(made):
    call(made, "__ignore__", 6)


@damage("rare-class")
def one_object_of_a_class(made):
    call(made, "zeppelin")


@damage("unused-class", "coco", "yolo", "recordio")
def a_class_without_objects(made):
    made.classes.append("unicorn")


@damage("class-in-one-split")
def a_class_in_val_alone(made):
    made.classes.append("bird")
    rows = made.objects["val"]["image41"]
    rows[0] = ("bird", rows[0][1])


@damage("no-objects", "voc", "coco", "csv", "recordio")
def no_object_anywhere(made):
    for split in made.objects.values():
        for rows in split.values():
            rows.clear()


@damage("difficult-everything", "voc")
def everything_is_difficult(made):
    def after():
        for path in (made.folder / "Annotations").iterdir():
            path.write_text(path.read_text().replace("</name>", "</name><difficult>1</difficult>"))

    made.after.append(after)


@damage("class-out-of-range", "yolo")
def a_class_number_without_name(made):
    made.after.append(lambda: made.label().write_text("77 0.5 0.5 0.2 0.2\n"))


@damage("class-out-of-range", "recordio")
def a_class_number_beyond_the_list(made):
    def change(key, label):
        if key == 3:
            label[2] = 9

    made.after.append(lambda: made.records(change))


# Image files


@damage("truncated-image")
def half_a_jpeg(made):
    data = encoded(photo(70), "JPEG", quality=95)
    made.after.append(lambda: made.put_image(data[: len(data) // 2], ".jpg"))


@damage("truncated-image")
def half_a_png(made):
    data = encoded(photo(70))
    made.after.append(lambda: made.put_image(data[: len(data) // 2]))


@damage("empty-file")
def no_bytes(made):
    made.after.append(lambda: made.put_image(b""))


@damage("unreadable-image")
def a_page_of_text(made):
    made.after.append(lambda: made.put_image(b"<!doctype html><title>404</title>" * 20))


@damage("wrong-extension", *FILES)
def a_jpeg_called_png(made):
    made.after.append(lambda: made.put_image(encoded(photo(70), "JPEG")))


@damage("wrong-extension", *FILES)
def a_png_called_jpg(made):
    made.after.append(lambda: made.put_image(encoded(photo(70)), ".jpg"))


@damage("animated-image")
def a_moving_gif(made):
    data = encoded(photo(70), "GIF", save_all=True, append_images=[photo(71)], duration=100)
    made.after.append(lambda: made.put_image(data, ".gif"))


@damage("deep-image")
def sixteen_bits(made):
    values = (np.asarray(photo(70).convert("L")).astype(np.uint16)) * 200
    made.after.append(lambda: made.put_image(encoded(Image.fromarray(values))))


@damage("cmyk-image")
def printing_colours(made):
    made.after.append(lambda: made.put_image(encoded(photo(70).convert("CMYK"), "JPEG"), ".jpg"))


@damage("huge-image", "csv", "yolo")
def sixty_megapixels(made):
    made.after.append(lambda: made.put_image(encoded(photo(70, (100, 60)).resize((10000, 6000), 0), compress_level=1)))


@damage("tiny-image", "yolo", "recordio", with_it=("tiny-box",))
def six_pixels(made):
    made.after.append(lambda: made.put_image(encoded(photo(70, (10, 6)))))


@damage("exif-mismatch", "voc", "coco")
def labelled_as_stored(made):
    def after():
        exif = Image.Exif()
        exif[0x0112] = 6
        for number in range(4, 9):
            made.put_image(encoded(photo(70 + number), "JPEG", exif=exif), ".jpg", f"image{number:02}")

    made.after.append(after)


@damage("size-mismatch", "voc", "coco")
def shrunk_after_labelling(made):
    made.after.append(lambda: made.put_image(encoded(photo(70, (100, 60)))))


@damage("size-mismatch", "voc", "coco")
def a_wrong_size_in_the_label_file(made):
    def after():
        path = made.label()
        text = path.read_text()
        if made.format == "coco":
            text = text.replace('"width": 200, "height": 120', '"width": 64, "height": 64', 1)
        path.write_text(text.replace("<width>200</width><height>120<", "<width>64</width><height>64<"))

    made.after.append(after)


# Twins, leaks and splits


@damage("duplicate-image")
def the_same_bytes_under_two_names(made):
    made.after.append(lambda: [made.put_image(encoded(photo(70)), name=name) for name in ("image03", "image07")])


@damage("near-duplicate-image")
def saved_again_at_quality_60(made):
    def after():
        large = photo(70, (800, 480))
        made.put_image(encoded(large), name="image03")
        made.put_image(encoded(large.resize((200, 120)), "JPEG", quality=60), ".jpg", "image07")

    made.after.append(after)
    if made.format in ("voc", "coco"):  # whose label files declare the size
        made.after[:] = [
            lambda: [
                made.put_image(encoded(photo(70)), name="image03"),
                made.put_image(encoded(photo(70), "JPEG", quality=60), ".jpg", "image07"),
            ]
        ]


@damage("leaked-image")
def in_train_and_in_val_under_other_names(made):
    data = encoded(photo(70))
    made.after.append(lambda: [made.put_image(data, name="image03"), made.put_image(data, name="image44", split="val")])


@damage("leaked-image")
def in_train_and_saved_again_in_val(made):
    data, again = encoded(photo(70)), encoded(photo(70).resize((180, 108)).resize((200, 120)))
    made.after.append(
        lambda: [made.put_image(data, name="image03"), made.put_image(again, name="image44", split="val")]
    )


@damage("split-overlap", "voc", with_it=("leaked-image",))
def listed_in_train_and_val(made):
    def after():
        path = made.folder / LISTS / "val.txt"
        path.write_text(path.read_text() + "image03\n")

    made.after.append(after)


@damage("empty-split", "voc")
def an_empty_list(made):
    made.after.append(lambda: (made.folder / LISTS / "test.txt").write_text(""))


@damage("empty-split", "coco")
def a_file_without_images(made):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    path = made.folder / "annotations" / "instances_test.json"
    made.after.append(lambda: path.write_text(json.dumps(content)))


@damage("tiny-split")
def three_images_to_validate_on(made):
    made.objects["val"] = dict(list(made.objects["val"].items())[:3])


@damage("label-without-image", *FILES)
def an_image_is_gone(made):
    made.after.append(lambda: made.image().unlink())


@damage("image-without-label", *FILES)
def an_image_without_labels(made):
    made.after.append(lambda: photo(90).save(made.image("image90")))


@damage("image-without-label", "yolo")
def a_label_file_is_gone(made):
    made.after.append(lambda: made.label().unlink())


@damage("list-names-missing-file", "voc")
def a_list_names_a_ghost(made):
    def after():
        path = made.folder / LISTS / "train.txt"
        path.write_text(path.read_text() + "ghost\n")

    made.after.append(after)


@damage("name-collision", *FILES)
def one_stem_with_two_endings(made):
    made.after.append(lambda: photo(90).save(made.image().with_suffix(".jpg")))


@damage("name-collision", "voc")
def one_name_in_other_capitals(made):
    def after():
        photo(90).save(made.image("IMAGE03"))
        made.label("IMAGE03").write_text(made.label("image05").read_text().replace("image05", "IMAGE03"))
        path = made.folder / LISTS / "train.txt"
        path.write_text(path.read_text() + "IMAGE03\n")

    made.after.append(after)


@damage("empty-split", "csv")
def a_table_with_its_header_alone(made):
    made.after.append(lambda: made.label(split="val").write_text("img_name,label,xmin,ymin,xmax,ymax\n"))


@damage("unreadable-image", "yolo", "voc")
def a_link_that_leads_nowhere(made):
    def after():
        made.image().unlink()
        made.image().symlink_to(made.folder / "nowhere.png")

    made.after.append(after)


# Label files


@damage("unreadable-label", "voc", "yolo")
def a_broken_label_file(made):
    made.after.append(
        lambda: made.label().write_text("<annotation><object" if made.format == "voc" else "zero a b c d\n")
    )


@damage("unreadable-label", "voc")
def an_empty_label_file(made):
    made.after.append(lambda: made.label().write_text(""))


@damage("unreadable-label", "yolo")
def a_line_with_three_numbers(made):
    made.after.append(lambda: made.label().write_text("0 0.5 0.5\n"))


@damage("unknown-encoding", "yolo")
def bytes_that_are_no_text(made):
    made.after.append(lambda: made.label().write_bytes(b"0 0.5 0.5 0.2 0.2 \xff\xfe\x80\x81\n"))


@damage("outline-as-box", "yolo")
def an_outline(made):
    made.after.append(lambda: made.label().write_text("0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 0.2 0.3\n"))


# COCO


@damage("duplicate-id", "coco")
def two_annotations_of_one_id(made):
    made.after.append(lambda: made.coco(lambda content: content["annotations"][3].update(id=1)))


@damage("duplicate-id", "coco", with_it=("dangling-id",))
def two_images_of_one_id(made):
    made.after.append(lambda: made.coco(lambda content: content["images"][4].update(id=4)))


@damage("dangling-id", "coco")
def an_annotation_of_no_image(made):
    made.after.append(lambda: made.coco(lambda content: content["annotations"][3].update(image_id=999)))


@damage("missing-category", "coco", with_it=("dangling-id",))
def an_annotation_of_no_category(made):
    made.after.append(lambda: made.coco(lambda content: content["annotations"][3].update(category_id=77)))


@damage("text-id", "coco")
def ids_of_text(made):
    def change(content):
        for name, key in (("images", "id"), ("annotations", "image_id")):
            for entry in content[name]:
                entry[key] = str(entry[key])

    made.after.append(lambda: made.coco(change))


@damage("crowd-without-rle", "coco")
def a_crowd_without_run_lengths(made):
    made.after.append(lambda: made.coco(lambda content: content["annotations"][3].update(iscrowd=1)))


@damage("missing-area", "coco")
def no_areas(made):
    made.after.append(lambda: made.coco(lambda content: [entry.pop("area") for entry in content["annotations"]]))


@damage("category-zero", "coco")
def categories_from_0(made):
    def change(content):
        for name, key in (("categories", "id"), ("annotations", "category_id")):
            for entry in content[name]:
                entry[key] -= 1

    made.after.append(lambda: made.coco(change))


CASES = [(name, format) for name, one in DAMAGE.items() for format in one.formats]


def make(sets, folder: Path, format: str, name: str = "") -> Path:
    """Write a set of 12 images to train on and 10 to validate on, with a damage or sound."""
    val = {f"image{40 + number}": rows for number, rows in enumerate(sets.clean(10, seed=1).values())}
    made = Made(format, folder, {"train": sets.clean(12), "val": val}, list(sets.classes))
    if name:
        DAMAGE[name].make(made)
    for split, objects in made.objects.items():
        rows = sets.in_format(objects, format, layout=made.layout, fractions=made.fractions)
        sets.write(folder, format, rows, made.classes, split)
    for change in made.after:
        change()
    return folder


def kinds(findings) -> set[str]:
    return {one.kind for one in findings}


def test_there_are_enough():
    assert len(DAMAGE) >= 60
    assert sum(len(one.formats) for one in DAMAGE.values()) >= 150


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL)
def test_sound_sets_have_no_findings(tmp_path, sets, format):
    assert kinds(examine(make(sets, tmp_path / "set", format))) <= QUIET


def named(sets, folder: Path, format: str, name: str):
    one = DAMAGE[name]
    found = kinds(examine(make(sets, folder, format, name)))
    assert one.kind in found, found
    assert found <= QUIET | {one.kind} | one.with_it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [(name, one.formats[n % len(one.formats)]) for n, (name, one) in enumerate(DAMAGE.items()) if n % 3 == 0],
)
def test_a_third_of_the_damages_is_named(tmp_path, sets, name, format):
    named(sets, tmp_path / "set", format, name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), CASES)
def test_each_damage_is_named_in_each_format_and_mended_or_left(tmp_path, sets, name, format):
    folder = tmp_path / "set"
    named(sets, folder, format, name)
    shutil.copytree(folder, tmp_path / "before", symlinks=True)
    kind = DAMAGE[name].kind
    diagnosis = diagnose(folder)
    if kind == "no-objects":
        return
    try:
        done = repair(diagnosis, tmp_path / "copy")
    except DataError:
        assert KINDS[kind].fix == "left to you"
        return
    left = kinds(examine(done.folder, format=done.format))
    assert left <= remaining_kinds(), left - remaining_kinds()
    assert [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()] == [
        path.read_bytes() for path in sorted((tmp_path / "before").rglob("*")) if path.is_file()
    ]
