import io
import tracemalloc
import types
from collections import UserList

import numpy as np
import pytest
import torch
from PIL import Image

import multibox
from multibox.errors import ConfigError, ImageError
from multibox.exporting import export
from multibox.inference import inputs

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def eager():
    return multibox.create("tinyssd", CLASSES, recipe="d2l", device="cpu")


@pytest.fixture(scope="module")
def exported(eager, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(eager, file)
    return multibox.load(file, precision="float32")


@pytest.fixture(params=["eager", "exported"])
def detector(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def forms(pixels, folder):
    file = folder / "a.png"
    Image.fromarray(pixels).save(file)
    tensor = torch.from_numpy(pixels)
    yield from (file, str(file), file.read_bytes(), bytearray(file.read_bytes()), io.BytesIO(file.read_bytes()))
    yield from (Image.fromarray(pixels), Image.open(file), tensor, tensor.permute(2, 0, 1))
    # As OpenCV's image turned to RGB: negative strides
    yield pixels[..., ::-1].copy()[..., ::-1]


def test_every_form_gives_the_same(detector, pixels, tmp_path):
    wanted = detector.predict(pixels, 0.0)
    assert len(wanted) > 10
    for form in forms(pixels, tmp_path):
        assert detector.predict(form, 0.0) == wanted, type(form)
    with (tmp_path / "a.png").open("rb") as file:
        assert detector.predict(file, 0.0) == wanted


@pytest.mark.slow
def test_lists_give_lists_and_generators_give_generators(detector, pixels, tmp_path):
    several = [*forms(pixels, tmp_path), pixels[:20]] * 2
    for group in (several[:3], tuple(several[:3]), UserList(several[:3])):
        assert [len(one) for one in detector.predict(group, 0.0)] == [len(detector.predict(pixels, 0.0))] * 3
    several = [form for form in several if not isinstance(form, io.BytesIO)]
    lazy = detector.predict((form for form in several), 0.0)
    assert isinstance(lazy, types.GeneratorType)
    assert list(lazy) == detector.predict(several, 0.0)
    assert detector.predict([]) == []
    assert list(detector.predict(iter([]))) == []


@pytest.mark.slow
def test_a_generator_is_read_as_it_is_used(detector):
    """A hundred images of 3 MB: neither they nor more than a few batches are held at once."""
    made = []

    def images():
        for index in range(100):
            made.append(index)
            yield np.zeros((1000, 1000, 3), np.uint8)

    tracemalloc.start()
    try:
        found = detector.predict(images(), 1.0)
        assert made == []
        assert len(next(found)) == 0
        assert len(made) <= 3 * inputs.BATCH
        assert sum(1 for _ in found) == 99
        assert tracemalloc.get_traced_memory()[1] < 70 * 3e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_broken_file_half_way_is_named_and_nothing_hangs(detector, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 40
    paths[30] = tmp_path / "no.png"
    with pytest.raises(ImageError, match=r"no\.png"):
        detector.predict(paths)
    found = detector.predict(iter(paths))
    assert len(next(found)) >= 0
    found.close()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "image given as None, which cv2.imread returns"),
        (3, "image given as int: expected a path"),
        ({"a": 1}, "image given as dict: expected"),
        (object(), "image given as object"),
        ([None], "image given as None"),
        (np.zeros((4, 4, 3)), r"must be uint8 RGB \[H, W, 3\], got float64 \[4, 4, 3\]; values from 0 to 1"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\]; a grey image"),
        (np.zeros((4, 4, 1), np.uint8), "a grey image becomes RGB"),
        (np.zeros((4, 4, 4), np.uint8), r"image\[\.\.\., :3\]"),
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"list\(images\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \[0, 4, 3\]"),
        (torch.zeros(3, 4, 5), r"a tensor must be .*got float32 \[3, 4, 5\]; .*to\(torch.uint8\)"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"list\(images\)"),
        (torch.zeros(3, 9, 3, dtype=torch.uint8), r"\[3, 9, 3\] may be \[3, H, W\] or \[H, W, 3\]"),
        (b"no image", "the image given as bytes is no image"),
        (b"", "is empty"),
        (io.StringIO("text"), "binary mode"),
    ],
)
def test_what_is_no_image_gets_a_sentence(eager, given, sentence):
    with pytest.raises(ImageError, match=sentence):
        eager.predict(given)


def test_a_folder_and_a_missing_file(detector, tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        detector.predict(tmp_path)
    with pytest.raises(ImageError, match=r"no\.jpg"):
        detector.predict(str(tmp_path / "no.jpg"))


def test_a_score_equal_to_the_threshold_is_reported(detector, pixels):
    everything = detector.predict(pixels, 0.0)
    for score in everything.scores[[0, len(everything) // 2]]:
        # A float32 as such, as a Python float, and as the decimal number that it prints as
        for threshold in (score, float(score), float(str(score))):
            found = detector.predict(pixels, threshold)
            assert found.scores.min() == score
            assert found.scores.tolist() == everything.scores[everything.scores >= score].tolist()
    assert len(detector.predict(pixels, 1)) == 0


@pytest.mark.parametrize("threshold", [1.5, -1, float("nan"), float("inf"), "0.5", True, [0.5], np.float32(1.01)])
def test_thresholds_that_are_none(detector, pixels, threshold):
    for images in (pixels, [], iter([pixels])):
        with pytest.raises(ConfigError, match=r"threshold=.*: expected a number from 0 to 1"):
            detector.predict(images, threshold)
