"""The stream of images through a detector: order, errors, bounded memory."""

import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import multibox
from multibox.errors import ImageError
from multibox.inference import streaming as pipeline
from multibox.inference.results import ImageResult, result_files
from multibox.inference.streaming import Seen, drawing, predict_stream
from multibox.limits import decoding_threads
from multibox.structures import Detections

NAMES = ("dark", "light")


class Fake:
    """A detector that finds one object per image: its mean says the score, its brightness the class."""

    names = NAMES
    background = (255, 255, 255)

    def __init__(self):
        self.batches = []

    def predict(self, images, threshold=None):
        self.batches.append([image.shape for image in images])
        means = [float(image.mean()) for image in images]
        boxes = np.array([[0, 0, 1, 1]], np.float32)
        return [
            Detections(boxes, np.array([m / 255], np.float32), np.array([int(m > 127)], np.int64), NAMES) for m in means
        ]


@pytest.fixture
def greys(tmp_path):
    """Forty images of grey level 5 times their number, of two sizes in turn."""
    paths = [tmp_path / f"{index}.png" for index in range(40)]
    for index, path in enumerate(paths):
        Image.new("L", (8, 6) if index % 2 else (6, 8), 5 * index).save(path)
    return paths


def levels(stream):
    return [round(float(seen.found.scores[0]) * 255) // 5 for seen in stream]


def test_order_is_kept_and_images_of_one_size_go_together(greys):
    detector = Fake()
    seen = list(predict_stream(detector, iter(greys)))
    assert [each.path for each in seen] == greys
    assert levels(seen) == list(range(40))
    assert all(each.image.size == ((8, 6) if index % 2 else (6, 8)) for index, each in enumerate(seen))
    assert [len(batch) for batch in detector.batches] == [16, 16, 8]
    # Sorted by shape, so that a detector that batches neighbours of one size makes two batches of them
    assert all(batch == sorted(batch) for batch in detector.batches)


def test_several_detectors_share_the_work_and_order_is_kept(greys):
    shared = [Fake(), Fake(), Fake()]
    assert levels(predict_stream(shared, greys)) == list(range(40))
    assert [len(each.batches) for each in shared] == [4, 3, 3]
    threads = []
    assert len(pipeline.open_copies(lambda count: threads.append(count) or Fake())) == len(threads)
    assert 1 <= sum(threads) <= decoding_threads()


def test_an_image_that_cannot_be_read_is_its_own_result(greys):
    greys[3].write_bytes(b"")
    greys[39].unlink()
    seen = list(predict_stream(Fake(), greys))
    assert [index for index, each in enumerate(seen) if isinstance(each.found, ImageError)] == [3, 39]
    assert seen[3].image is None and "is empty" in str(seen[3].found)
    assert levels(seen[4:39]) == list(range(4, 39))
    assert list(predict_stream(Fake(), [])) == []


def test_a_caller_may_stop_half_way(greys):
    before = threading.enumerate()
    stream = predict_stream(Fake(), greys)
    assert isinstance(next(stream), Seen)
    stream.close()
    # Those of other tests may be ending still
    assert not set(threading.enumerate()) - set(before)


def test_an_error_of_the_network_arrives(greys):
    class Broken(Fake):
        def predict(self, images, threshold=None):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(predict_stream(Broken(), greys))


def test_large_images_are_decoded_less_far_ahead(greys, monkeypatch):
    detector = Fake()
    monkeypatch.setattr(pipeline, "PIXELS_AHEAD", 200)  # four images of 48 pixels
    assert levels(predict_stream(detector, greys)) == list(range(40))
    assert max(map(len, detector.batches)) == 3


def test_a_detector_without_a_fixed_input_shape_works_through_it(greys):
    from multibox import api

    made = api.create("tinyssd", list(NAMES))
    made.config = made.config.updated({"model.input_size": (64, 64)})
    with np.errstate(all="raise"):
        seen = list(predict_stream(made, greys[:5], 0.0))
    wanted = made.predict(greys[:5], 0.0)
    for each, expected in zip(seen, wanted, strict=True):
        assert np.allclose(each.found.boxes, expected.boxes, atol=1e-3)
        assert np.allclose(each.found.scores, expected.scores, atol=1e-5)


def test_drawings_are_written_and_their_errors_arrive(greys, tmp_path):
    found = Fake().predict([np.full((6, 8, 3), 200, np.uint8)])[0]
    with drawing() as draw:
        for index in range(50):
            draw(tmp_path / "d" / f"{index}.jpg", Image.new("RGB", (8, 6)), found)
    assert len(list((tmp_path / "d").glob("*.jpg"))) == 50
    with pytest.raises(OSError) as error, drawing() as draw:
        draw(greys[0] / "x.jpg", Image.new("RGB", (8, 6)), found)
    assert error.value.filename is not None


def test_an_image_longer_than_a_jpeg_may_be_is_drawn_smaller(tmp_path):
    found = Fake().predict([np.full((6, 8, 3), 200, np.uint8)])[0]
    with drawing() as draw:
        draw(tmp_path / "long.jpg", Image.new("RGB", (70_000, 20)), found)
    with Image.open(tmp_path / "long.jpg") as drawn:
        assert drawn.width == 65_500


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Held, 600 more images of 48 kB would be 29 MB and their 100 boxes each 2 MB; the queue itself may fill later."""
    Image.new("RGB", (128, 128), (90, 90, 90)).save(tmp_path / "a.png")

    class Crowd(Fake):
        def predict(self, images, threshold=None):
            return [
                Detections(np.zeros((100, 4), np.float32), np.ones(100, np.float32), np.zeros(100, np.int64), NAMES)
                for _ in images
            ]

    paths = [tmp_path / "a.png"] * 800
    places = {name: tmp_path / name for name in ("json_file", "coco", "voc")}
    stems = [f"{index}.png" for index in range(800)]
    peaks = []
    tracemalloc.start()
    try:
        with result_files(stems, NAMES, **places) as add:
            for index, seen in enumerate(predict_stream(Crowd(), paths)):
                add(index, ImageResult(stems[index], 128, 128, seen.found))
                if index in (199, 799):
                    peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + pipeline.AHEAD * 128 * 128 * 3
    assert len((tmp_path / "voc" / "comp4_det_test_dark.txt").read_text().splitlines()) == 80_000


@pytest.mark.slow
def test_an_image_alone_and_among_others_gives_the_same(monkeypatch):
    sizes = []
    found = multibox.load("face")
    run = found.engine.run

    def watched(feeds):
        sizes.append(len(feeds["images"]))
        return run(feeds)

    pixels = list(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8))
    monkeypatch.setattr(found, "engine", found.engine._replace(run=watched, on_gpu=False))
    found.predict(pixels)
    assert sizes == [1, 1, 1]
    monkeypatch.setattr(found, "engine", found.engine._replace(on_gpu=True))
    found.predict(pixels)
    assert sizes == [1, 1, 1, 3]
