import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.augmentation import (
    AUGMENTATIONS,
    ColourJitter,
    CoveringCrop,
    Flip,
    ScaleJitter,
    View,
    find_augmentation,
    plan,
)
from multibox.data.images import resize_image
from multibox.data.rendering import project, recolour, render, resize_pixels
from multibox.errors import ConfigError
from multibox.structures import Size

FILL = (124, 116, 104)
BOXES = np.array([[10.0, 20.0, 30.0, 60.0]])


def gradient(width=100, height=80):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 2, y * 2, (x + y)], -1).astype(np.uint8))


def test_no_operation_is_a_plain_resize():
    view = plan((), Size(80, 100), BOXES, np.random.default_rng(0))
    pixels = render(np.array(gradient()), view, (40, 50), FILL)
    assert np.array_equal(pixels, np.asarray(gradient().resize((50, 40), Image.Resampling.BILINEAR)))
    assert np.allclose(project(view, BOXES), [[0.1, 0.25, 0.3, 0.75]])


def test_flips_move_boxes_with_pixels():
    view = plan((Flip(1.0), Flip(1.0, vertical=True)), Size(80, 100), BOXES, np.random.default_rng(0))
    pixels = render(np.array(gradient()), view, (80, 100), FILL)
    assert np.array_equal(pixels, np.asarray(gradient())[::-1, ::-1])
    assert np.allclose(project(view, BOXES), [[0.7, 0.25, 0.9, 0.75]])


def test_a_window_beyond_the_image_is_filled():
    view = View(100, 80, BOXES)
    view.window = (-100.0, -80.0, 100.0, 80.0)
    pixels = render(np.array(gradient()), view, (160, 200), FILL)
    assert (pixels[:80] == FILL).all()
    assert (pixels[:, :100] == FILL).all()
    assert np.array_equal(pixels[80:, 100:], np.asarray(gradient()))
    assert np.allclose(project(view, BOXES), [[0.55, 0.625, 0.65, 0.875]])


@given(seed=st.integers(0, 10_000), name=st.sampled_from(["none", "d2l", "default", "any-way-up"]))
def test_a_marked_object_stays_under_its_box(seed, name):
    """A white rectangle on black stays where the projected box says, whatever the geometry."""
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 10:30] = 255
    operations = [op for op in AUGMENTATIONS[name] if not isinstance(op, ColourJitter)]
    view = plan(operations, Size(80, 100), BOXES, np.random.default_rng(seed))
    pixels = render(image, view, (200, 200), (0, 0, 0))
    x1, y1, x2, y2 = project(view, BOXES)[0] * 200
    ys, xs = np.nonzero(pixels[..., 0] > 127)
    assert abs(xs.min() - x1) <= 3
    assert abs(xs.max() + 1 - x2) <= 3
    assert abs(ys.min() - y1) <= 3
    assert abs(ys.max() + 1 - y2) <= 3


@given(seed=st.integers(0, 10_000))
def test_same_generator_same_image(seed):
    views = [plan(AUGMENTATIONS["default"], Size(80, 100), BOXES, np.random.default_rng(seed)) for _ in range(2)]
    first, second = (render(np.array(gradient()), view, (64, 64), FILL) for view in views)
    assert np.array_equal(first, second)
    assert views[0].window == views[1].window


@given(seed=st.integers(0, 2_000))
def test_d2l_crop_covers_what_it_touches(seed):
    boxes = np.array([[10.0, 20.0, 30.0, 60.0], [70.0, 10.0, 90.0, 30.0]])
    view = plan((CoveringCrop(),), Size(80, 100), boxes, np.random.default_rng(seed))
    visible = view.visible()
    assert ((visible == 0) | (visible > 0.95)).all()
    assert (visible > 0.95).any()
    x1, y1, x2, y2 = view.window
    assert x1 >= 0 and y1 >= 0 and x2 <= 100 and y2 <= 80
    whole = view.window == (0, 0, 100, 80)
    assert whole or 0.75 <= (x2 - x1) / (y2 - y1) <= 1.33


def test_scale_jitter_zooms_both_ways_and_keeps_an_object():
    areas = []
    for seed in range(200):
        view = plan((ScaleJitter(probability=1.0),), Size(80, 100), BOXES, np.random.default_rng(seed))
        x1, y1, x2, y2 = view.window
        areas.append((x2 - x1) * (y2 - y1) / 8000)
        assert view.visible().max() > 0.7
    assert min(areas) < 0.4
    assert max(areas) > 1.8


def test_colour_jitter_keeps_grey_grey_without_hue_and_is_mild_on_average():
    operation = ColourJitter(hue=0.0, probability=1.0)
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    means = []
    for seed in range(200):
        pixels = render(
            np.array(grey), plan((operation,), Size(8, 8), BOXES[:0], np.random.default_rng(seed)), (8, 8), FILL
        )
        assert np.ptp(pixels[0, 0].astype(int)) <= 1
        means.append(pixels.mean())
    assert 85 < np.mean(means) < 115
    assert np.std(means) > 10


def test_unknown_recipe_names_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        find_augmentation("defualt")


@pytest.mark.parametrize("shift", [(0, 0, 0), (12.5, 12.5, 12.5), (3, -40, 7)])
@pytest.mark.parametrize("size", [(1, 1), (8, 9), (150, 200)])
def test_colours_change_as_in_pillow_to_one_level(size, shift):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    matrix = np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3))
    changed = recolour(image, np.column_stack([matrix, shift]))
    pillow = Image.fromarray(image).convert("RGB", tuple(np.column_stack([matrix, shift]).ravel().tolist()))
    difference = np.abs(changed.astype(int) - np.asarray(pillow))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert np.array_equal(recolour(image[:, ::-1], np.eye(3, 4)), image[:, ::-1])


@pytest.mark.parametrize("size", [(5, 7), (40, 30), (64, 64), (200, 90), (1, 300)])
def test_bytes_are_resized_as_in_pillow_to_one_level(size):
    image = np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    pillow = resize_image(Image.fromarray(image), Size(*size))
    assert np.abs(resize_pixels(image, Size(*size)).astype(int) - np.asarray(pillow)).max() <= 1
    assert resize_pixels(image, Size(*size)).flags.c_contiguous
    # A part of an image, without a copy
    part = image[10:50, 20:60]
    pillow = resize_image(Image.fromarray(np.ascontiguousarray(part)), Size(*size))
    assert np.abs(resize_pixels(part, Size(*size)).astype(int) - np.asarray(pillow)).max() <= 1
