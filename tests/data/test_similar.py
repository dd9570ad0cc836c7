"""Images that look the same: what counts as one image, and the groups made of them."""

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from multibox.data.similar import image_hashes, near_duplicate_groups, same_bytes_groups, scene_groups
from multibox.data.sprites import make_sprites
from multibox.structures import Labels, Sample

SHARED = Path(__file__).parents[3] / "shared" / "data"
VARIANTS = {
    "quality": lambda image: _encoded(image, quality=30),
    "half": lambda image: _encoded(image.resize((image.width // 2, image.height // 2))),
    "brighter": lambda image: _encoded(ImageEnhance.Brightness(image).enhance(1.12)),
    "contrast": lambda image: _encoded(ImageEnhance.Contrast(image).enhance(1.15)),
    "blurred": lambda image: _encoded(image.filter(ImageFilter.GaussianBlur(1.5))),
    "png": lambda image: _encoded(image, kind="PNG"),
}


def _encoded(image: Image.Image, kind: str = "JPEG", quality: int = 85) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, quality=quality)
    return data.getvalue()


def _sample(path: Path) -> Sample:
    none = np.zeros(0, np.int64)
    return Sample(path.name, path, np.zeros((0, 4)), none, none.astype(bool), none.astype(bool))


def _drawn(seed: int) -> Image.Image:
    """A soft landscape of few colours, unlike every other seed's."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_changed_copy_is_a_near_duplicate(tmp_path: Path, variant: str) -> None:
    for seed in range(8):
        (tmp_path / f"{seed}a.png").write_bytes(_encoded(_drawn(seed), "PNG"))
        (tmp_path / f"{seed}b.jpg").write_bytes(VARIANTS[variant](_drawn(seed)))
    groups = near_duplicate_groups(image_hashes([_sample(path) for path in sorted(tmp_path.iterdir())]))
    assert groups.tolist() == [n // 2 for n in range(16)]


def test_drawn_images_of_one_kind_are_not_near_duplicates(tmp_path: Path) -> None:
    make_sprites(tmp_path / "set", images=60, size=96)
    samples = [_sample(path) for path in sorted((tmp_path / "set" / "JPEGImages").iterdir())]
    assert len(np.unique(near_duplicate_groups(image_hashes(samples)))) == 60


def test_objects_of_other_colours_or_places_on_an_even_ground_are_not_near_duplicates(tmp_path: Path) -> None:
    for number, (colour, x) in enumerate([("red", 20), ("blue", 20), ("lime", 20), ("red", 60), ("black", 20)]):
        image = Image.new("RGB", (128, 96), "grey")
        image.paste(Image.new("RGB", (30, 30), colour), (x, 30))
        image.save(tmp_path / f"{number}.png")
    hashes = image_hashes([_sample(path) for path in sorted(tmp_path.iterdir())])
    assert near_duplicate_groups(hashes).tolist() == [0, 1, 2, 3, 4]


def test_even_images_differ_by_their_colour(tmp_path: Path) -> None:
    for number, colour in enumerate(["black", "#030303", "white", "red"]):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{number}.jpg")
    hashes = image_hashes([_sample(path) for path in sorted(tmp_path.iterdir())])
    assert near_duplicate_groups(hashes).tolist() == [0, 0, 1, 2]


def test_an_unreadable_image_is_alone_and_progress_counts_it(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"" if name == "a" else b"no image")
    counted: list[int] = []
    hashes = image_hashes([_sample(tmp_path / name) for name in "abcd"], lambda: counted.append(1))
    assert not hashes.any()
    assert len(counted) == 4
    assert near_duplicate_groups(hashes).tolist() == [0, 1, 2, 3]
    assert near_duplicate_groups(hashes[:0]).shape == (0,)
    assert same_bytes_groups([_sample(tmp_path / name) for name in "abcd"]).tolist() == [0, 1, 1, 2]


def test_bccd_holds_one_near_duplicate_and_no_false_one() -> None:
    images = sorted((SHARED / "bccd" / "BCCD" / "JPEGImages").glob("*.jpg"))
    if not images:
        pytest.skip("needs ../shared/data/bccd")
    hashes = image_hashes([_sample(path) for path in images])
    groups = near_duplicate_groups(hashes)
    (twice,) = np.flatnonzero(np.bincount(groups) > 1)
    assert [images[i].stem for i in np.flatnonzero(groups == twice)] == ["BloodImage_00037", "BloodImage_00038"]
    assert np.array_equal(scene_groups([path.name for path in images], hashes), groups)


def _made(words: list[int]) -> Labels:
    """Hashes with these bits, and thumbnails that all agree."""
    hashes = np.full((len(words), 97), 0x00FF00FF00FF00FF, np.uint64)
    hashes[:, 0] = words
    hashes[:, 0] |= np.uint64(1)
    return hashes


@given(st.lists(st.integers(0, 2**18 - 1), min_size=1, max_size=30), st.integers(0, 4))
def test_groups_are_the_components_of_close_pairs(words: list[int], distance: int) -> None:
    hashes = _made([2 * word for word in words])
    expected = list(range(len(words)))
    for _ in words:
        for i, one in enumerate(words):
            for j, other in enumerate(words):
                if (one ^ other).bit_count() <= distance:
                    expected[i] = expected[j] = min(expected[i], expected[j])
    groups = near_duplicate_groups(hashes, distance)
    assert groups.tolist() == [sorted(set(expected)).index(root) for root in expected]


def test_ten_thousand_images_that_all_look_the_same_take_no_time_for_every_pair() -> None:
    hashes = _made([0] * 10_000)
    hashes[:, 5] = np.random.default_rng(0).integers(0, 255, 10_000)  # no two are equal
    started = time.perf_counter()
    assert not near_duplicate_groups(hashes).any()
    assert time.perf_counter() - started < 10


def test_a_burst_is_one_scene(tmp_path: Path) -> None:
    wide = _drawn(1).resize((320, 120))
    for number in range(4):  # the camera moves by 4 % of the image at a time
        wide.crop((number * 7, 0, number * 7 + 160, 120)).save(tmp_path / f"IMG_{number + 8:04}.jpg")
    for number in range(4):
        _drawn(number + 10).save(tmp_path / f"IMG_{number + 20:04}.jpg")
    names = sorted(path.name for path in tmp_path.iterdir())
    hashes = image_hashes([_sample(tmp_path / name) for name in names])
    assert scene_groups(names, hashes).tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    others = [f"{chr(97 + number)}.jpg" for number in range(8)]
    assert len(np.unique(scene_groups(others, hashes))) > 2  # without running numbers only near-duplicates count


def test_names_make_groups() -> None:
    hashes = np.zeros((5, 97), np.uint64)
    roboflow = ["a/cat_jpg.rf.0a1b.jpg", "b/cat_jpg.rf.99ff.jpg", "b/dog_jpg.rf.99ff.jpg", "cat_jpg.jpg", "7.jpg"]
    assert scene_groups(roboflow, hashes).tolist() == [0, 0, 1, 2, 3]
    names = ["p1-a.jpg", "p2-a.jpg", "p1-b.jpg", "x.jpg", "y.jpg"]
    assert scene_groups(names, hashes, re.compile(r"p\d")).tolist() == [0, 1, 0, 2, 3]
    assert scene_groups(names, hashes, re.compile(r"-(\w)")).tolist() == [0, 0, 1, 2, 3]
