import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.convert import convert, write_dataset
from multibox.data.formats import FORMATS as TABLE
from multibox.data.formats import find_splits, open_dataset
from multibox.data.images import image_bytes, load_image, sample_size, size_of
from multibox.data.splitting import split_dataset
from multibox.errors import ConfigError, DataError
from multibox.structures import Dataset, Sample, Size, pack

AnyImage = Callable[..., Path]
FORMATS = tuple(name for name, format in TABLE.items() if format.write is not None)


def sample(path: Path, boxes: list[list[float]], labels: list[int], name: str = "", **flags: list[bool]) -> Sample:
    count = len(labels)
    return Sample(
        name=name or path.name,
        path=path,
        boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(flags.get("difficult", [False] * count), dtype=np.bool_),
        crowd=np.array(flags.get("crowd", [False] * count), dtype=np.bool_),
    )


def dataset(
    samples: list[Sample], split: str = "train", names: tuple[str, ...] = ("ant", "bee & <co>", "no")
) -> Dataset:
    return pack(samples, root=Path(), format="voc", split=split, class_names=names)


@pytest.fixture
def splits(tmp_path: Path, image: AnyImage) -> dict[str, Dataset]:
    one = image(tmp_path / "in" / "one 1.JPG", (97, 61), 20)
    two = image(tmp_path / "in" / "two.png", (640, 480), 90)
    other = image(tmp_path / "other" / "one 1.JPG", (33, 77), 200)
    train = [
        sample(one, [[0, 0, 97, 61], [3, 4, 5, 60]], [2, 0], difficult=[False, True]),
        sample(two, [[1, 2, 3, 4], [5, 6, 639, 479]], [1, 1], "deep/two.png", crowd=[True, False]),
    ]
    return {"train": dataset(train), "val": dataset([sample(other, [], []), sample(two, [[7, 7, 9, 9]], [1])], "val")}


def rows(held: Dataset, flags: bool = True) -> dict[str, list]:
    """Each image's boxes with class names and flags, whatever the order."""
    return {
        one.name: sorted(
            (*box, held.class_names[label], *((bool(difficult), bool(crowd)) if flags else ()))
            for box, label, difficult, crowd in zip(
                one.boxes_xyxy.tolist(), one.labels, one.difficult, one.crowd, strict=True
            )
        )
        for one in held
    }


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back(splits: dict[str, Dataset], tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    notes = write_dataset(splits, out, format)
    assert find_splits(out) == ["train", "val"]
    for split, before in splits.items():
        after = open_dataset(out, split)
        assert after.format == format and after.notes == () and after.class_names == before.class_names
        expected = rows(before)
        if format == "voc":  # both splits have a "one 1.JPG", and VOC has one folder for all
            expected = {f"{split}/{name}": value for name, value in expected.items()}
        if format in ("yolo", "recordio"):
            expected = {name: [row for row in value if not row[-1]] for name, value in expected.items()}
        if format == "yolo":
            expected = {name: [(*row[:-2], False, False) for row in value] for name, value in expected.items()}
        assert rows(after) == expected
        for one in after:
            original = next(two for two in before if one.name.endswith(two.name))
            assert image_bytes(one) == original.path.read_bytes()
    assert any("1 crowd box has no place in" in note for note in notes) == (format in ("yolo", "recordio"))
    assert any("1 difficult flag has no place in YOLO and was dropped" in note for note in notes) == (format == "yolo")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@given(
    corners=st.lists(
        st.tuples(*[st.floats(0, 80, allow_subnormal=False)] * 2, *[st.floats(2, 300)] * 2), min_size=1, max_size=4
    )
)
def test_any_box_survives_every_format(tmp_path_factory: pytest.TempPathFactory, image: AnyImage, corners) -> None:
    root = tmp_path_factory.mktemp("any")
    path = image(root / "a.png", (400, 400))
    boxes = [[x, y, x + width, y + height] for x, y, width, height in corners]
    given_boxes = np.array(boxes)
    held = {"train": dataset([sample(path, boxes, [0] * len(boxes))], names=("ant",))}
    for format in FORMATS:
        write_dataset(held, root / format, format)
        back = open_dataset(root / format).boxes_xyxy
        if format in ("voc", "csv"):
            np.testing.assert_array_equal(back, given_boxes)
        elif format == "coco":
            np.testing.assert_allclose(back, given_boxes, rtol=3e-16)
        else:
            np.testing.assert_allclose(back, given_boxes, rtol=1e-6, atol=6e-5 if format == "recordio" else 1e-6)


def test_round_trip_of_voc100_through_all(shared: Path, tmp_path: Path) -> None:
    first = shared / "voc100" / "gts" / "pascalvoc_format"
    last = first
    for number, to in enumerate(("voc", "coco", "recordio", "csv", "yolo", "voc")):
        done = convert(last, tmp_path / f"{number}{to}", to)
        assert done.splits == {"all": 100} and done.boxes == 273 and len(done.class_names) == 20
        assert bool(done.notes) == (to == "yolo" or number == 0)  # the first set's images lie in ../../images
        last = done.destination
    assert done.read_as == "yolo"
    before, after = open_dataset(first), open_dataset(last)
    assert before.class_names == after.class_names and rows(before, flags=False) == rows(after, flags=False)
    assert rows(open_dataset(tmp_path / "3csv")) == rows(before)
    for one, two in zip(before.paths, sorted(after.paths), strict=True):
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_bccd_and_its_overlapping_splits(shared: Path, tmp_path: Path) -> None:
    done = convert(shared / "bccd" / "BCCD", tmp_path / "coco", "coco", link=True)
    assert done.splits == {"train": 205, "val": 87, "trainval": 292, "test": 72} and done.boxes == 4886 + 2804 + 1137
    assert "trainval: 2 boxes without area were dropped" in " ".join(done.notes)
    back = convert(tmp_path / "coco", tmp_path / "voc", "voc")
    assert back.notes == () and len(list((tmp_path / "voc" / "JPEGImages").iterdir())) == 364
    assert rows(open_dataset(tmp_path / "voc", "test")) == rows(open_dataset(shared / "bccd" / "BCCD", "test"))


def test_nothing_is_half_written(splits: dict[str, Dataset], tmp_path: Path) -> None:
    splits["val"].paths[0].unlink()
    for format in FORMATS:
        with pytest.raises(DataError):
            write_dataset(splits, tmp_path / "out", format)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "other"]


def test_a_destination_in_use_is_left_alone(splits: dict[str, Dataset], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_dataset(splits, tmp_path / "out", "coco")  # empty is fine
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path / "out", tmp_path / "in" / "two.png"):
        with pytest.raises(DataError, match="exists already"):
            write_dataset(splits, place, "voc")
        with pytest.raises(DataError, match="exists already"):
            convert(tmp_path / "out", place, "yolo")
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match="did you mean 'yolo'"):
        write_dataset(splits, tmp_path / "x", "yollo")
    with pytest.raises(DataError, match="nothing to write"):
        write_dataset({}, tmp_path / "x", "yolo")


def test_no_copy_is_written_into_its_source(splits: dict[str, Dataset], tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_dataset(splits, root, "voc")
    before = sorted(root.rglob("*"))
    for write in (lambda: convert(root, root / "copy", "coco"), lambda: split_dataset([root], root / "copy", val=0.5)):
        with pytest.raises(DataError, match=r"copy lies in .*set, which is never changed; give a folder outside it"):
            write()
    assert sorted(root.rglob("*")) == before


def test_two_images_that_would_share_a_label_file(tmp_path: Path, image: AnyImage) -> None:
    paths = [image(tmp_path / "in" / name) for name in ("a.png", "a.jpg")]
    with pytest.raises(DataError, match=r"a\.png and a\.jpg of split 'train' would share one label file"):
        write_dataset({"train": dataset([sample(path, [], []) for path in paths])}, tmp_path / "out", "yolo")


def test_boxes_over_the_edge_are_clipped_where_fractions_are_held(tmp_path: Path, image: AnyImage) -> None:
    path = image(tmp_path / "a.png", (100, 50))
    held = {"train": dataset([sample(path, [[-5, 0, 50, 60], [200, 1, 210, 9]], [0, 0])])}
    assert write_dataset(held, tmp_path / "yolo", "yolo") == [
        "1 box was clipped at the image's edge, as YOLO holds fractions of the image",
        "1 box outside the image left out, as YOLO holds fractions of the image",
    ]
    assert open_dataset(tmp_path / "yolo").boxes_xyxy.tolist() == [[0, 0, 50, 50]]
    assert len(write_dataset(held, tmp_path / "voc", "voc")) > 0
    assert open_dataset(tmp_path / "voc").boxes_xyxy.tolist() == [[-5, 0, 50, 60], [200, 1, 210, 9]]


def test_splits_with_different_classes_are_joined_by_name(tmp_path: Path, image: AnyImage) -> None:
    path = image(tmp_path / "a.png")
    one = dataset([sample(path, [[1, 1, 9, 9]], [1])], names=("x", "y"))
    two = dataset([sample(path, [[1, 1, 9, 9]], [0])], "val", names=("y", "z"))
    write_dataset({"train": one, "val": two}, tmp_path / "out", "coco")
    for split in ("train", "val"):
        held = open_dataset(tmp_path / "out", split)
        assert held.class_names == ("x", "y", "z") and held.labels.tolist() == [1]


def test_a_set_without_sizes_and_with_odd_split_names(
    tmp_path: Path, image: AnyImage, splits: dict[str, Dataset]
) -> None:
    for format in FORMATS:
        write_dataset({"fold1": splits["train"], "fold2": splits["val"]}, tmp_path / format, format)
        assert find_splits(tmp_path / format) == ["fold1", "fold2"], format
        moved = shutil.move(tmp_path / format, tmp_path / f"moved {format}")
        assert len(open_dataset(moved, "fold1")) == 2


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned"])
def test_every_reader_gives_height_and_width_in_this_order(tmp_path: Path, format: str, turned: bool) -> None:
    """A box in the far corner of a wide image; a swapped size would cut it off or give the wrong numbers."""
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.new("RGB", (40, 100) if turned else (100, 40)).save(tmp_path / "wide.jpg", exif=exif)
    write_dataset(
        {"train": dataset([sample(tmp_path / "wide.jpg", [[60, 10, 95, 30]], [0])])}, tmp_path / "out", format
    )
    held = open_dataset(tmp_path / "out")
    assert held.boxes_xyxy.tolist() == [[60, 10, 95, 30]]
    size = held.sizes[0] or sample_size(held[0])
    assert isinstance(size, Size) and (size.height, size.width) == (40, 100)
    assert held[0].size == held.sizes[0] and size_of(load_image(held[0])) == size
