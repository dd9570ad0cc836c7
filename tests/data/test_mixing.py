import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.augmentation import AUGMENTATIONS, ColourJitter, plan
from multibox.data.augmentation_ops import View
from multibox.data.decoded import decode_once
from multibox.data.formats import open_dataset
from multibox.data.images import load_at_most, load_image, size_of
from multibox.data.loading import AugmentedImages, load_batches
from multibox.data.mixing import CopyPaste, Mixing, MixUp, Mosaic, Scene, mix, narrow
from multibox.data.rendering import project, render, snap
from multibox.data.sampling import Key
from multibox.structures import Size

MIXING = ("mosaic", "mixup", "copy-paste", "strong")
COLOURS = np.array([[250, 40, 40], [40, 250, 40], [40, 40, 250]])
SIZE = (40, 60)


class Fixed(np.random.Generator):
    """A generator whose numbers are all `share` of their range, and whose permutations change nothing."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__(np.random.PCG64(0))
        self.share = share

    def random(self, *_):
        return self.share

    def uniform(self, low, high, *_):
        return low + self.share * (high - low)

    def beta(self, *_):
        return self.share

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        drawn = np.floor(low + self.share * (np.asarray(high) - low)).astype(np.int64)
        return drawn if size is None else np.broadcast_to(drawn, size)

    def permutation(self, x):
        return np.arange(x) if np.ndim(x) == 0 else np.asarray(x)


def scene(colour=0, boxes=(), labels=(), size=SIZE):
    pixels = np.full((*size, 3), colour, np.uint8)
    pixels.setflags(write=False)  # as Pillow's are
    return Scene(pixels, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), np.arange(len(labels)))


def painted(rng, size=SIZE, most=4):
    """Draw a scene of solid rectangles on black, in the colours of their labels, none over another."""
    pixels, boxes, labels = np.zeros((*size, 3), np.uint8), [], []
    for column in range(int(rng.integers(0, most + 1))):
        width = size[1] // most
        x1, x2 = column * width + rng.integers(0, 4), (column + 1) * width - rng.integers(0, 4)
        y1 = rng.integers(0, size[0] // 2)
        y2 = rng.integers(y1 + 5, size[0] + 1)
        label = int(rng.integers(len(COLOURS)))
        pixels[y1:y2, x1:x2] = COLOURS[label]
        boxes.append([x1 / size[1], y1 / size[0], x2 / size[1], y2 / size[0]])
        labels.append(label)
    rows = np.array([10 * label + place for place, label in enumerate(labels)], np.int64)
    return Scene(pixels, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), rows)


def shrunk(whole):
    """Return how to draw a scene at any size."""

    def draw(size):
        pixels = Image.fromarray(np.asarray(whole.pixels)).resize(size[::-1], Image.Resampling.NEAREST)
        return Scene(np.asarray(pixels), whole.boxes_xyxy, whole.labels, whole.rows)

    return draw


# Worked by hand


def test_a_mosaic_puts_four_images_around_its_centre():
    sizes, colours = [], iter([20, 30, 40])

    def other(size):
        sizes.append(size)
        return scene(next(colours), [[0, 0.5, 1, 1]], [7], size)

    own = lambda size: scene(10, [[0.5, 0, 1, 1]], [3], size)  # noqa: E731
    mosaic = Mosaic(centre=(0.25, 0.75))
    pixels, boxes, labels, _, _ = mosaic(own, other, SIZE, Fixed(0.5))
    assert sizes == [(20, 30)] * 3
    assert [pixels[y, x, 0] for y, x in ((0, 0), (19, 29), (0, 30), (20, 0), (20, 30), (39, 59))] == [
        10, 10, 20, 30, 40, 40,
    ]  # fmt: skip
    assert np.allclose(boxes, [[0.25, 0, 0.5, 0.5], [0.5, 0.25, 1, 0.5], [0, 0.75, 0.5, 1], [0.5, 0.75, 1, 1]])
    assert labels.tolist() == [3, 7, 7, 7]
    sizes.clear()
    colours = iter([20, 30, 40])
    mosaic(own, other, SIZE, Fixed(0.0))
    assert sizes == [(10, 45), (30, 15), (30, 45)]


def test_a_quarter_of_another_shape_is_cut_and_not_squeezed():
    """Half as wide as high: half the window's width is seen, at the start for a generator of zeros."""
    boxes = np.array([[0.0, 0, 60, 80], [40, 0, 80, 80], [45, 0, 100, 80]])
    view = View(100, 80, boxes)
    narrow(view, 0.3, 0.6, Fixed(0.0))
    assert np.allclose(view.window, (0, 0, 50, 80))
    assert view.kept().tolist() == [True, True, False]
    assert np.allclose(project(view, boxes)[:2], [[0, 0, 1, 1], [0.8, 0, 1, 1]])
    view = View(100, 80, boxes, keep=np.ones(3, np.bool_))
    narrow(view, 0.6, 0.3, Fixed(1.0))
    assert np.allclose(view.window, (0, 40, 100, 80))
    assert view.kept().all()
    narrow(view, 0.3, 0.6, Fixed(0.0))
    assert view.kept().tolist() == [True, False, False]


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 150), (0.25, 175), (0.125, 188), (1.0, 100), (0.0, 200)])
def test_a_blend_is_a_weighted_mean_and_keeps_both_labels(ratio, expected):
    own, other = scene(100, [[0, 0, 0.5, 0.5]], [1]), scene(200, [[0.2, 0.2, 1, 1]], [2])
    pixels, boxes, labels, _, _ = MixUp()(lambda _: own, lambda _: other, SIZE, Fixed(ratio))
    assert (pixels == expected).all()
    assert np.array_equal(boxes, [[0, 0, 0.5, 0.5], [0.2, 0.2, 1, 1]])
    assert labels.tolist() == [1, 2]
    white = scene(255)
    assert (MixUp()(lambda _: white, lambda _: white, SIZE, Fixed(ratio)).pixels == 255).all()


def test_a_pasted_patch_with_its_margin_and_its_neighbour():
    """The object spans 20 x 20 of 40 x 60 pixels; a margin of a fifth makes 28 x 28; scale 1; placed at 0, 0.

    Its left neighbour shows 2 of 6 columns in the margin, the right one 1 of 10: only the first comes along.
    """
    pixels = np.full((*SIZE, 3), 50, np.uint8)
    pixels[10:30, 20:40] = 250
    boxes = np.array([[20, 10, 40, 30], [12, 10, 18, 30], [43, 10, 53, 30]]) / [60, 40, 60, 40]
    source = Scene(pixels, boxes, np.array([1, 2, 0]), np.array([7, 8, 9]))
    paste = CopyPaste(objects=1, scale=(1.0, 1.0), margin=0.2)

    class Margin(Fixed):
        def uniform(self, low, high, *_):
            return high

    result = paste(lambda _: scene(10), lambda _: source, SIZE, Margin(0.0))
    assert np.allclose(result.boxes_xyxy * [60, 40, 60, 40], [[4, 4, 24, 24], [0, 4, 2, 24]])
    assert result.labels.tolist() == [1, 2] and result.rows.tolist() == [7, 8]
    assert (result.pixels[4:24, 4:24] == 250).all()
    assert (result.pixels[28:] == 10).all() and (result.pixels[:, 28:] == 10).all()
    # Over four columns the patch fades in: 10 + (k + 1/2) / 4 * 40
    assert result.pixels[14, :4, 0].tolist() == [15, 25, 35, 45]
    assert result.pixels[14, 24:28, 0].tolist() == [45, 35, 25, 15]


@pytest.mark.parametrize(
    ("wide", "labels"),
    [
        (20, [5, 1]),  # the patch of 6 x 6 hides 6 of 20 columns, three tenths: allowed
        (12, [5]),  # half: the only place is refused
        (8, [5]),  # three quarters, a quarter shows: refused as well
        (7, [1]),  # more: the object is dropped
    ],
)
def test_objects_are_hidden_little_or_dropped(wide, labels):
    own = scene(10, [[0, 0, wide / 60, 6 / 40]], [5])
    source = scene(50, [[10 / 60, 10 / 40, 16 / 60, 16 / 40]], [1])
    paste = CopyPaste(objects=1, scale=(1.0, 1.0), margin=0.0)
    result = paste(lambda _: own, lambda _: source, SIZE, Fixed(0.0))
    assert result.labels.tolist() == labels
    assert (result.pixels == 50).any() == (1 in labels)
    assert (own.pixels == 10).all()


def test_what_several_patches_hide_adds_up():
    """Each of two patches hides three tenths of the object: the second is refused."""
    own = scene(10, [[0, 0, 20 / 60, 6 / 40]], [5])
    source = scene(50, [[10 / 60, 10 / 40, 16 / 60, 16 / 40], [30 / 60, 10 / 40, 36 / 60, 16 / 40]], [1, 2])
    paste = CopyPaste(objects=2, scale=(1.0, 1.0), margin=0.0)

    class Two(Fixed):
        def integers(self, low, high=None, size=None):
            return 2 if size is None else super().integers(low, high, size)

    result = paste(lambda _: own, lambda _: source, SIZE, Two(0.0))
    assert result.labels.tolist() == [5, 1]


def test_objects_cut_by_their_border_are_not_pasted():
    source = scene(50, [[0, 0.2, 0.3, 0.5], [0.4, 0.6, 0.7, 1.0]], [1, 2])
    result = CopyPaste()(lambda _: scene(10), lambda _: source, SIZE, np.random.default_rng(0))
    assert len(result.labels) == 0 and (result.pixels == 10).all()


@given(seed=st.integers(0, 10_000))
def test_the_place_that_hides_least_is_taken(seed):
    """One object fills the left half; with forty tries a free place on the right is found."""
    own = scene(10, [[0, 0, 0.5, 1]], [5])
    source = scene(50, [[0.4, 0.4, 0.6, 0.6]], [1])
    paste = CopyPaste(objects=1, scale=(1.0, 1.0), margin=0.0, tries=40)
    result = paste(lambda _: own, lambda _: source, SIZE, np.random.default_rng(seed))
    assert result.labels.tolist() == [5, 1]
    assert result.boxes_xyxy[1, 0] >= 0.5


# Properties


@given(seed=st.integers(0, 10_000), operation=st.sampled_from([Mosaic(1.0), MixUp(1.0), CopyPaste(1.0)]))
def test_boxes_have_area_lie_inside_and_labels_follow_the_colours(seed, operation):
    rng = np.random.default_rng(seed)
    own, other = painted(rng), painted(rng)
    pixels, boxes, labels, rows, _ = mix([operation], shrunk(own), shrunk(other), SIZE, rng)
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8 and boxes.shape == (len(labels), 4)
    assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    if isinstance(operation, Mosaic):
        assert len(labels) == len(own.labels) + 3 * len(other.labels)
    # Each came with its object, wherever it was put
    assert (rows // 10 == labels).all()
    for box, label in zip(boxes * [60, 40, 60, 40], labels, strict=True):
        # Pixels wholly inside: of a box of a few pixels, those at its border may be half of all
        (x1, y1), (x2, y2) = np.ceil(box[:2] - 1e-9).astype(int), np.floor(box[2:] + 1e-9).astype(int)
        # A thin one that is pasted, or pasted over, may be faded for the most part
        if min(x2 - x1, y2 - y1) < (5 if isinstance(operation, CopyPaste) else 1):
            continue
        inside = pixels[y1:y2, x1:x2].reshape(-1, 3).astype(int)
        # A blend leaves about half of the contrast; a patch may hide three tenths, and fade at its border
        lit = inside[:, label] - np.delete(inside, label, axis=1).min(axis=1)
        assert (lit > 50).mean() > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXING)
def test_marked_objects_stay_under_their_boxes_through_a_whole_recipe(squares, name):
    """Red and blue rectangles on grey: what a box asks for is of its colour, and what has a colour is in a box."""
    dataset = open_dataset(squares, "train")
    operations = [
        dataclasses.replace(operation, probability=1.0) if isinstance(operation, Mixing) else operation
        for operation in AUGMENTATIONS[name]
        if not isinstance(operation, ColourJitter)
    ]
    images = AugmentedImages(dataset, Size(64, 96), operations, fill=(110, 110, 110))
    seen, strays = 0, []
    for key in [(epoch, index) for epoch in range(4) for index in range(len(dataset))]:
        pixels, boxes, labels, rows, _ = images[key][0]
        assert (dataset.labels[rows] == labels).all()
        excess = pixels[..., 0].astype(int) - pixels[..., 2]  # red positive, blue negative, noise about 0
        covered = np.zeros(excess.shape, np.bool_)
        for x1, y1, x2, y2 in np.rint(boxes * [96, 64, 96, 64]).astype(int):
            covered[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = True
        for box, label in zip(np.rint(boxes * [96, 64, 96, 64]).astype(int), labels, strict=True):
            sign = 1 if dataset.class_names[label] == "red" else -1
            inside = sign * excess[box[1] : box[3], box[0] : box[2]]
            if name in ("mosaic", "copy-paste") and inside.size > 25:  # a blend may add red and blue to grey
                assert (inside > 60).mean() > 0.55
            seen += 1
        strays.append((np.abs(excess) > 40) & ~covered)
    assert seen > 40
    # Left out are objects that show less than a quarter: small pieces at borders
    assert np.mean(strays) < 0.02


@given(seed=st.integers(0, 1000), name=st.sampled_from(MIXING))
def test_images_without_objects_stay_images(seed, name):
    empty = scene(90)
    mixing = [operation for operation in AUGMENTATIONS[name] if isinstance(operation, Mixing)]
    rng = np.random.default_rng(seed)
    pixels, boxes, labels, _, _ = mix(mixing, shrunk(empty), shrunk(empty), SIZE, rng)
    assert (pixels == 90).all() and boxes.shape == (0, 4) and labels.shape == (0,)
    full = scene(90, [[0.2, 0.2, 0.4, 0.4]], [1])
    assert len(mix([CopyPaste(1.0)], shrunk(full), shrunk(empty), SIZE, rng).labels) == 1
    assert len(mix([CopyPaste(1.0)], shrunk(empty), shrunk(full), SIZE, rng).labels) == 1


# Distributions


@pytest.mark.parametrize("name", MIXING)
def test_operations_take_place_as_often_as_they_say(name):
    rng = np.random.default_rng(0)
    for operation in AUGMENTATIONS[name]:
        if isinstance(operation, Mixing):
            calls = []
            other = lambda size, calls=calls: calls.append(1) or scene(0, size=size)  # noqa: E731
            for _ in range(1000):
                mix([operation], lambda size: scene(0, size=size), other, (8, 8), rng)
            partners = 3 if isinstance(operation, Mosaic) else 1
            assert abs(len(calls) / partners / 1000 - operation.probability) < 0.05


def test_ratios_and_centres_are_spread_as_said():
    rng = np.random.default_rng(0)
    black, white = scene(0, size=(2, 2)), scene(255, size=(2, 2))
    ratios = [MixUp()(lambda _: white, lambda _: black, (2, 2), rng).pixels[0, 0, 0] / 255 for _ in range(2000)]
    assert abs(np.mean(ratios) - 0.5) < 0.01
    assert abs(np.std(ratios) - 1 / np.sqrt(8 * 32 + 4)) < 0.01
    heights = []
    own = lambda size: heights.append(size[0]) or scene(0, size=size)  # noqa: E731
    for _ in range(1000):
        Mosaic()(own, lambda size: scene(0, size=size), (100, 100), rng)
    assert min(heights) in (30, 31) and max(heights) in (69, 70)
    assert abs(np.mean(heights) - 50) < 1


@pytest.mark.parametrize("name", [*MIXING, "default"])
def test_a_mosaic_comes_first_as_others_have_no_other_size(name):
    mixing = [type(operation) for operation in AUGMENTATIONS[name] if isinstance(operation, Mixing)]
    assert mixing == sorted(mixing, key=[Mosaic, MixUp, CopyPaste].index)


# The loader


@pytest.mark.parametrize("name", MIXING)
def test_items_depend_on_seed_epoch_and_index_alone(squares, name):
    dataset = open_dataset(squares, "train")
    make = lambda seed=3: AugmentedImages(dataset, Size(48, 64), AUGMENTATIONS[name], seed=seed)  # noqa: E731
    keys = [[(epoch, index) for index in range(4)] for epoch in range(3)]
    alone = list(load_batches(make(), keys, 0, pin=False))
    backwards = make()
    items = {key: backwards[key] for key in reversed([key for batch in keys for key in batch])}
    worked = list(load_batches(make(), keys, 1, pin=False))
    for batch, other, batch_keys in zip(alone, worked, keys, strict=True):
        assert torch.equal(batch.images, other.images) and torch.equal(batch.gt_xyxy, other.gt_xyxy)
        assert torch.equal(batch.gt_labels, other.gt_labels)
        for image, key in zip(batch.images, batch_keys, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), items[key][0].pixels)
    assert not torch.equal(alone[0].images, alone[1].images)
    assert not np.array_equal(make(seed=4)[0, 1][0].pixels, items[0, 1][0].pixels)


@pytest.mark.parametrize("name", MIXING)
def test_keys_that_are_not_mixed_are_those_of_the_recipe_without_mixing(squares, name):
    dataset = open_dataset(squares, "train")
    mixed = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS[name])
    plain = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS["default"])
    for epoch in range(4):
        keys = [Key(epoch, i, mixed=epoch < 2) for i in range(len(dataset))]
        equal = [np.array_equal(mixed[key][0].pixels, plain[key][0].pixels) for key in keys]
        assert all(equal) if epoch >= 2 else not all(equal)


@pytest.mark.parametrize("name", MIXING)
def test_a_data_set_of_one_image(squares, name):
    dataset = open_dataset(squares, "train").subset([0])
    images = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS[name])
    for epoch in range(20):
        (pixels, boxes, labels, _, _), title, size = images[epoch, 0]
        assert pixels.shape == (64, 64, 3) and len(boxes) == len(labels)
        assert (title, size) == (dataset.image_names[0], (96, 96))


def test_partners_come_from_the_store(squares, monkeypatch):
    dataset = open_dataset(squares, "train")
    decoded = decode_once(dataset, None, Size(64, 64)).training
    images = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS["mosaic"], decoded=decoded)
    read, load = [], load_at_most
    monkeypatch.setattr("multibox.data.decoded.load_at_most", lambda s, *n: read.append(s.name) or load(s, *n))
    for epoch in range(5):
        for index in range(len(dataset)):
            images[epoch, index]
    assert sorted(read) == sorted(dataset.image_names)


def test_crowds_of_partners_are_not_asked_for(squares):
    dataset = open_dataset(squares, "train")
    dataset.crowd[:] = True
    images = AugmentedImages(dataset, Size(64, 64), AUGMENTATIONS["strong"])
    assert not any(len(images[0, index][0].labels) for index in range(len(dataset)))


@pytest.mark.parametrize(("steps", "until", "mixed"), [(20, 0.85, 17), (1, 0.85, 0), (10, 1.0, 10), (10, 0.0, 0)])
def test_training_mixes_in_its_share_of_the_steps_only(squares, tmp_path, steps, until, mixed):
    from multibox.training.run import RunOptions, prepare

    changes = {"train.steps": steps, "train.mix_until": until, "train.augmentation": "strong", "train.batch_size": 4}
    changes |= {"model.input_size": [64, 64]}
    trainer = prepare(squares, RunOptions(preset="tinyssd", out=tmp_path / "run", changes=changes))
    trainer._plan_mixing()
    assert trainer.batches.mixed_steps == mixed
    assert [all(key.mixed for key in trainer.batches.batch(step)) for step in range(steps)].count(True) == mixed
    trainer.hold.close()


# Recipes without mixing give what they gave before there was any (commit 1b90849)
BEFORE = {
    "none": "65e8f21ff995560e",
    "d2l": "e818023d63e1ab26",
    "default": "5d650e5fd949c42b",
    "any-way-up": "be57582a5955665f",
    "caffe": "7fa2f91b8dcef3fb",
    "hikapok": "af221b60598a81aa",
    "torchvision-ssd": "297d2210b27cb2de",
    "torchvision-ssdlite": "22cdb7cbaafbf4d9",
    "nvidia": "4ed1955bba722759",
}


@pytest.mark.parametrize("name", BEFORE)
def test_recipes_without_mixing_are_as_before(squares, name):
    """Draws by a hash of the boxes they give; pixels and boxes then follow the window at whole pixels."""
    dataset = open_dataset(squares, "train")
    images = AugmentedImages(dataset, Size(64, 80), AUGMENTATIONS[name], seed=3)
    digest = hashlib.sha256()
    for epoch, index in [(epoch, index) for epoch in range(3) for index in range(len(dataset))]:
        pixels, boxes, labels, _, _ = images[epoch, index][0]
        sample = dataset[index]
        image = load_image(sample)
        view = plan(AUGMENTATIONS[name], size_of(image), sample.boxes_xyxy, np.random.default_rng((3, epoch, index)))
        drawn = project(view, sample.boxes_xyxy[view.kept()])
        digest.update(drawn.round(6).tobytes() + labels.tobytes())
        snap(view, size_of(image))
        assert np.array_equal(pixels, render(np.array(image), view, (64, 80), (124, 116, 104)))
        assert np.array_equal(boxes, project(view, sample.boxes_xyxy[view.kept()]))
        # By a pixel of the window at most
        assert np.abs(boxes - drawn).max(initial=0) <= 1 / min(view.window_size())
    assert digest.hexdigest()[:16] == BEFORE[name]
