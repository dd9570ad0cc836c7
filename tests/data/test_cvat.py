from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.data.formats import find_splits, open_dataset, read_raw
from multibox.errors import DataError, ImageError
from multibox.structures import Size

AnyImage = Callable[..., Path]
LABELS = "".join(f"<label><name>{name}</name><color>#ff00ff</color></label>" for name in ("zebra", "ant", "unused"))
META = f"<meta><task><id>7</id><name>t</name><size>2</size><labels>{LABELS}</labels></task></meta>"


def box(label: str = "ant", corners: str = 'xtl="1.00" ytl="2.00" xbr="9.50" ybr="8.00"', more: str = "") -> str:
    return f'<box label="{label}" source="manual" occluded="0" {corners} z_order="0" {more}></box>'


def cvat(path: Path, body: str, meta: str = META) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n{meta}{body}</annotations>'
    path.write_text(text, encoding="utf-8")
    return path


def one(name: str, *shapes: str, more: str = "") -> str:
    return f'<image id="0" name="{name}" {more} width="100" height="50">{"".join(shapes)}</image>\n'


def test_every_shape(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "images" / "a.jpg")
    flags = '<attribute name="difficult">true</attribute><attribute name="is_crowd">false</attribute>'
    cuboid = " ".join(
        f'{axis}{end}{side}="{value + side}"'
        for axis, start in (("x", 10), ("y", 20))
        for end, value in zip(("tl", "bl", "tr", "br"), range(start, start + 4), strict=True)
        for side in (1, 2)
    )
    cvat(
        tmp_path / "annotations.xml",
        one(
            "a.jpg",
            box("zebra"),
            box("ant", 'xtl="40" ytl="20" xbr="60" ybr="30"', 'rotation="90.0"'),
            '<polygon label="ant" points="1.00,2.00;9.00,3.00;5.00,8.00" z_order="0"></polygon>',
            '<mask label="ant" rle="3,4" left="5" top="6" width="10" height="20"></mask>',
            '<ellipse label="ant" cx="50" cy="25" rx="10" ry="5"></ellipse>',
            f'<cuboid label="ant" {cuboid}></cuboid>',
            '<polyline label="ant" points="1,2;3,4"></polyline>',
            '<points label="ant" points="1,2"></points>',
            '<tag label="ant" source="manual"></tag>',
            '<skeleton label="ant"><points label="1" outside="0" points="1,2"></points></skeleton>',
            box("ant").replace("></box>", f">{flags}</box>"),
        ),
    )
    held = open_dataset(tmp_path)
    assert held.class_names == ("zebra", "ant", "unused") and held.split == "all" and held.sizes == [Size(50, 100)]
    assert held.boxes_xyxy.round(6).tolist() == [
        [1, 2, 9.5, 8],
        [45, 15, 55, 35],
        [1, 2, 9, 8],
        [5, 6, 15, 26],
        [40, 20, 60, 30],
        [11, 21, 15, 25],
        [1, 2, 9.5, 8],
    ]
    assert held.labels.tolist() == [0, 1, 1, 1, 1, 1, 1] and held.difficult.tolist() == [False] * 6 + [True]
    assert held.left_out == {"outline": 5, "not_a_box": 4}
    assert read_raw(tmp_path, "all").lines.tolist() == [1, 2, 3, 4, 5, 6, 11]


@pytest.mark.parametrize(
    ("label", "picture", "listed"),
    [
        ("annotations.xml", "images/a.jpg", "a.jpg"),
        ("annotations.xml", "a.jpg", "a.jpg"),
        ("annotations.xml", "images/deep/a.jpg", "deep/a.jpg"),
        ("annotations.xml", "a.jpg", "C:\\data\\a.jpg"),
        ("annotations.xml", "images/A.JPEG", "/mnt/share/a.jpg"),
        ("annotations/annotations.xml", "images/a.jpg", "a.jpg"),
        ("job_12.xml", "images/a.jpg", "a.jpg"),
    ],
)
def test_where_the_image_is(tmp_path: Path, image: AnyImage, label: str, picture: str, listed: str) -> None:
    root = tmp_path / "set"
    image(root / picture)
    cvat(root / label, one(listed, box()))
    assert open_dataset(root).paths == [root / picture] and open_dataset(root).format == "cvat"
    assert open_dataset(root / label).paths == [root / picture]


def test_subsets_are_splits(tmp_path: Path, image: AnyImage) -> None:
    for place in ("Train/a.jpg", "Validation/a.jpg", "b.jpg"):
        image(tmp_path / "images" / place)
    body = one("a.jpg", box("ant"), more='subset="Train"') + one("a.jpg", box("zebra"), more='subset="Validation"')
    cvat(tmp_path / "annotations.xml", body + one("b.jpg"))
    assert find_splits(tmp_path) == ["Train", "Validation", "default"]
    assert open_dataset(tmp_path, "train").paths == [tmp_path / "images" / "Train" / "a.jpg"]
    held = open_dataset(tmp_path, "val")
    assert held.paths == [tmp_path / "images" / "Validation" / "a.jpg"] and held.labels.tolist() == [0]
    assert len(open_dataset(tmp_path, "default").labels) == 0


def test_files_and_folders_are_splits(tmp_path: Path, image: AnyImage) -> None:
    for number, split in enumerate(("train", "val")):
        image(tmp_path / "by folder" / split / "images" / "a.jpg")
        cvat(tmp_path / "by folder" / split / "annotations.xml", one("a.jpg", box()))
        image(tmp_path / "by file" / "images" / f"{number}.jpg")
        cvat(tmp_path / "by file" / f"{split}.xml", one(f"{number}.jpg", box()))
    for root in (tmp_path / "by folder", tmp_path / "by file"):
        assert find_splits(root) == ["train", "val"]
        assert open_dataset(root, "val").paths[0].is_file()


def track(number: int, label: str, *boxes: str) -> str:
    return f'<track id="{number}" label="{label}" source="manual">{"".join(boxes)}</track>'


def at(frame: int, x: int, outside: int = 0, keyframe: int = 1) -> str:
    place = f'outside="{outside}" occluded="0" keyframe="{keyframe}" xtl="{x}" ytl="2" xbr="{x + 9}" ybr="8"'
    return f'<box frame="{frame}" {place} z_order="0"></box>'


@pytest.mark.parametrize("name", ["frame_{:06d}.PNG", "shot-{}.jpg"])
def test_tracks_of_a_video(tmp_path: Path, image: AnyImage, name: str) -> None:
    for frame in range(4):
        image(tmp_path / "images" / name.format(frame))
    size = "<original_size><width>100</width><height>50</height></original_size>"
    cvat(
        tmp_path / "annotations.xml",
        track(0, "ant", at(0, 10), at(1, 12, keyframe=0), at(2, 14, outside=1)) + track(1, "zebra", at(1, 50)),
        META.replace("</task>", f"{size}</task>"),
    )
    held = open_dataset(tmp_path)
    background = 2 if "frame" in name else 0
    assert [len(one.labels) for one in held] == [1, 2] + [0] * background and held.sizes[0] == Size(50, 100)
    assert held.boxes_xyxy[:, 0].tolist() == [10, 12, 50] and held.labels.tolist() == [1, 1, 0]
    assert [path.name for path in held.paths] == [name.format(frame) for frame in range(2 + background)]
    guess = ("2 frames were found by the numbers at the end of the images' names",)
    assert held.notes == (() if "frame" in name else guess)
    (tmp_path / "images" / name.format(1)).unlink()
    with pytest.raises(ImageError, match=r"frame 1: image 'frame_000001' is missing"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, on_bad="skip").left_out == {"missing_image": 1}


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (box(corners='xtl="1"'), "<box> should say its place in numbers, got source='manual', occluded='0', xtl='1'"),
        (box(corners='xtl="a" ytl="1" xbr="2" ybr="3"'), "should say its place in numbers"),
        (box(corners='xtl="nan" ytl="1" xbr="2" ybr="3"'), "not a finite number"),
        (box(label=" "), "<box> has no label"),
        ('<polygon label="ant" points="1,2;3"></polygon>', "<polygon> should say its place"),
        ('<polygon label="ant"></polygon>', "<polygon> should say its place"),
        ('<sphere label="ant" r="1"></sphere>', "<sphere> should say its place"),
    ],
)
def test_a_broken_shape(tmp_path: Path, image: AnyImage, broken: str, expected: str) -> None:
    image(tmp_path / "a.jpg")
    cvat(tmp_path / "annotations.xml", one("a.jpg", box(), broken))
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    assert expected in str(error.value) and "annotations.xml: image a.jpg" in str(error.value)
    held = open_dataset(tmp_path, on_bad="skip")
    assert len(held.labels) == 1 and held.left_out == {"broken_box": 1}


def test_hostile_xml_is_one_sentence(tmp_path: Path, image: AnyImage) -> None:
    image(tmp_path / "a.jpg")
    path = cvat(tmp_path / "annotations.xml", one("a.jpg", box("&lol;")))
    entity = '<!DOCTYPE x [<!ENTITY lol SYSTEM "file:///etc/passwd">]>'
    path.write_text(path.read_text().replace("<annotations>", f"{entity}<annotations>"))
    with pytest.raises(DataError, match="is no XML"):
        open_dataset(tmp_path)
    path.write_text(path.read_text()[:300])
    with pytest.raises(DataError, match="is no XML"):
        open_dataset(tmp_path)


def test_voc100_as_cvat_writes_it(shared: Path) -> None:
    held = open_dataset(shared / "voc100" / "gts" / "cvat_format")
    voc = open_dataset(shared / "voc100" / "gts" / "pascalvoc_format")
    assert held.class_names[:3] == ("person", "cat", "boat")
    assert len(held.notes) == 1 and held.notes[0].startswith("100 images were taken from ../../images")
    assert sorted(held.boxes_xyxy.tolist()) == sorted(voc.boxes_xyxy.tolist())
    assert sorted(held.paths) == sorted(voc.paths)
