"""Dividing a data set: no scene on two sides, shares kept, everything there, the same for the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.convert import convert, write_dataset
from multibox.data.formats import FORMATS, find_splits, open_dataset
from multibox.data.splitting import divide, split_dataset
from multibox.data.sprites import make_sprites
from multibox.errors import ConfigError, DataError
from multibox.structures import Dataset, Sample, pack

Run = Callable[..., tuple[int, str, str]]


def made(classes: list[list[int]], names: int = 3) -> Dataset:
    """Images with objects of these classes and no files."""
    samples = [
        Sample(f"{i}.jpg", Path(f"{i}.jpg"), np.tile([1.0, 1, 9, 9], (len(one), 1)), np.array(one, np.int64),
               difficult=np.zeros(len(one), np.bool_), crowd=np.zeros(len(one), np.bool_))
        for i, one in enumerate(classes)
    ]  # fmt: skip
    class_names = [f"c{i}" for i in range(names)]
    return pack(samples, root=Path("made"), format="voc", split="all", class_names=class_names)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.lists(st.integers(0, 2), max_size=3)), min_size=20, max_size=80),
    st.booleans(),
    st.integers(0, 3),
)
def test_no_group_is_divided_and_all_images_are_there(
    images: list[tuple[int, list[int]]], stratify: bool, seed: int
) -> None:
    groups = np.unique([group for group, _ in images], return_inverse=True)[1]
    pool = made([classes for _, classes in images])
    try:
        where = divide(groups, pool, [0.7, 0.1, 0.2], stratify=stratify, seed=seed)
    except DataError:
        assert len(np.unique(groups)) < 3
        return
    assert set(where.tolist()) == {0, 1, 2}
    for group in range(groups.max() + 1):
        assert len(set(where[groups == group].tolist())) == 1
    assert np.array_equal(where, divide(groups, pool, [0.7, 0.1, 0.2], stratify=stratify, seed=seed))
    largest = np.bincount(groups).max()
    assert abs((where == 1).sum() - 0.1 * len(images)) <= largest + 1
    assert abs((where == 2).sum() - 0.2 * len(images)) <= largest + 1


def test_shares_are_kept_and_stratified_by_class() -> None:
    rng = np.random.default_rng(0)
    pool = made([rng.choice(3, rng.integers(0, 4), p=[0.8, 0.15, 0.05]).tolist() for _ in range(600)])
    groups = np.arange(600)
    owners = np.repeat(np.arange(600), np.diff(pool.starts))
    for stratify in (False, True):
        where = divide(groups, pool, [0.7, 0.1, 0.2], stratify=stratify, seed=0)
        assert np.bincount(where).tolist() == [420, 60, 120]
        table = np.array([np.bincount(pool.labels[where[owners] == split], minlength=3) for split in range(3)])
        shares = table / table.sum(axis=0)
        if stratify:
            assert np.abs(shares - np.array([[0.7], [0.1], [0.2]])).max() < 0.03
    other = divide(groups, pool, [0.7, 0.1, 0.2], stratify=True, seed=1)
    assert not np.array_equal(where, other)


def test_too_few_groups_are_refused() -> None:
    pool = made([[0]] * 10)
    with pytest.raises(DataError, match=r"10 images.* fewer groups \(2\) than splits \(3\)"):
        divide(np.arange(10) % 2, pool, [0.7, 0.1, 0.2], stratify=False, seed=0)
    assert sorted(np.bincount(divide(np.arange(10) % 3, pool, [0.7, 0.1, 0.2], stratify=False, seed=0))) == [3, 3, 4]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of sprites and a smaller copy of each, in the splits train and val."""
    root = tmp_path_factory.mktemp("twins")
    make_sprites(root / "one", images=30, classes=2, size=96)
    one = open_dataset(root / "one", "train")
    samples: list[Sample] = []
    for sample in one:
        copy = root / f"copy-{Path(sample.name).stem}x.png"
        with Image.open(sample.path) as image:
            image.resize((80, 80)).save(copy)
        none = np.zeros(len(sample.labels), np.bool_)
        samples += [sample, Sample(copy.name, copy, sample.boxes_xyxy * 80 / 96, sample.labels, none, none)]
    both = pack(samples, root=root, format="voc", split="train", class_names=one.class_names)
    write_dataset({"train": both, "val": open_dataset(root / "one", "val")}, root / "voc", "voc")
    return root / "voc"


@pytest.mark.slow
@pytest.mark.parametrize("format", [name for name, one in FORMATS.items() if one.write is not None])
def test_every_format_is_divided_without_leaks(tmp_path: Path, twins: Path, format: str) -> None:
    data = tmp_path / "data"
    convert(twins, data, format)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    done = split_dataset(data, tmp_path / "out", val=0.2, test=0.2, stratify=True, format=format)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    assert done.written_as == format
    assert find_splits(tmp_path / "out", format) == ["train", "val", "test"]
    splits = {name: open_dataset(tmp_path / "out", name, format=format) for name in done.images}
    assert {name: len(one) for name, one in splits.items()} == done.images
    assert sum(done.images.values()) == 57
    assert sum(done.groups.values()) == 30
    scenes = [
        {Path(name).stem.removeprefix("copy-").removesuffix("x") for name in one.image_names} for one in splits.values()
    ]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) == 30
    if format in ("coco", "csv", "yolo"):
        assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".png"]
        assert all(path.is_relative_to(data) for one in splits.values() for path in one.paths)


def test_the_command_says_what_it_did(tmp_path: Path, twins: Path, run: Run) -> None:
    out = tmp_path / "out"
    code, text, _ = run("data", "split", twins, out, "--val", 0.1, "--test", 0.2, "--stratify", "--seed", 3)
    assert code == 0
    assert f"wrote {out} as voc: 57 images (train " in text
    assert "in 30 groups" in text
    assert "objects of " in text
    assert (out / "ImageSets" / "Main" / "test.txt").is_file()
    again = split_dataset(twins, tmp_path / "again", val=0.1, test=0.2, stratify=True, seed=3)
    assert list(open_dataset(out, "val").image_names) == list(open_dataset(again.destination, "val").image_names)
    assert run("data", "show", out, "--split", "test", "--out", tmp_path / "sheet.png")[0] == 0


def test_groups_by_pattern_classes_and_several_sets(tmp_path: Path, twins: Path, run: Run) -> None:
    done = split_dataset(twins, tmp_path / "out", val=0.3, group_by=r"\d(?=x?\.png$)")
    assert sum(done.groups.values()) <= 10
    digits = [
        {Path(n).stem.removesuffix("x")[-1] for n in open_dataset(tmp_path / "out", s).image_names} for s in done.images
    ]
    assert not digits[0] & digits[1]
    name = next(iter(next(iter(done.objects.values()))))
    joined = split_dataset([twins, tmp_path / "out"], tmp_path / "both", val=0.3, classes=[name])
    assert set(joined.objects["train"]) == {name}
    assert sum(joined.groups.values()) == 30
    assert sum(joined.images.values()) == 2 * 57
    for options, words in (
        (("--val", 0.9, "--test", 0.5), "sum to less than 1"),
        (("--val", 0), "leaves one split"),
        (("--group-by", "("), "no regular expression"),
        (("--group-by", "nothing"), "no image's name fits"),
    ):
        code, _, error = run("data", "split", twins, tmp_path / "none", *options)
        assert code == 2
        assert words in error
        assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="exists already"):
        split_dataset(twins, tmp_path / "out")
    with pytest.raises(ConfigError):
        split_dataset(twins, tmp_path / "none", val=-0.1)


def test_an_empty_split_is_noted_and_left_out_of_a_conversion(tmp_path: Path, twins: Path, run: Run) -> None:
    data = tmp_path / "data"
    convert(twins, data, "coco")
    empty = {"images": [], "annotations": [], "categories": []}
    (data / "annotations" / "instances_test.json").write_text(json.dumps(empty))
    code, text, _ = run("data", "convert", data, tmp_path / "out", "--to", "VOC")
    assert code == 0
    assert "split 'test' holds no images; check its list or folder; it is left out" in text
    assert find_splits(tmp_path / "out") == ["train", "val"]
