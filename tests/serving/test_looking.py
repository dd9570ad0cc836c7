import asyncio
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra serve)")

from multibox.errors import ConfigError, ImageError
from multibox.inference.load import load
from multibox.serving.batching import Late, Work
from multibox.serving.hosted import Hosted, Room, fingerprint, open_models
from multibox.serving.looking import CANDIDATE_SCORE, Looker
from multibox.thresholds import lowest_scores


def noise(seed, height=240, width=320):
    """Return an image in which a detector sees much at low scores."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def same(found, expected):
    """Equal detections, those of equal scores in any order."""
    assert len(found) == len(expected)

    def order(one):
        rows = np.column_stack([-one.scores.round(4), one.labels, one.boxes.round(1)])
        return np.lexsort(rows.T[::-1])

    first, second = order(found), order(expected)
    np.testing.assert_allclose(found.scores[first], expected.scores[second], atol=1e-3)
    np.testing.assert_array_equal(found.labels[first], expected.labels[second])
    np.testing.assert_allclose(found.boxes[first], expected.boxes[second], atol=0.1)


@pytest.fixture(scope="module")
def coco():
    return load("coco", threads=1, precision="float32")


def work(detector, image, threshold, **options):
    return Work(image, lowest_scores(threshold, detector.thresholds, detector.names), **options)


@pytest.mark.slow
def test_requests_of_different_thresholds_in_one_batch_equal_predict(coco):
    images = [noise(seed) for seed in range(4)]
    thresholds = [0.02, 0.3, 0.1, 0.05]
    looked = Looker(coco).look([work(coco, *each) for each in zip(images, thresholds, strict=True)])
    for one, image, threshold in zip(looked, images, thresholds, strict=True):
        same(one.found, coco.predict(image, threshold))
        assert (one.width, one.height) == (320, 240)
    assert len(looked[0].found) == 100  # so many that the model's limit counts


def test_a_broken_image_does_not_hurt_its_batch(coco):
    images = [encoded(noise(0)), b"no image", encoded(noise(1, 200, 200)), encoded(noise(2))]
    looked = Looker(coco).look([work(coco, image, 0.05) for image in images])
    assert isinstance(looked[1], ImageError)
    for place in (0, 2, 3):
        same(looked[place].found, coco.predict(images[place], 0.05))


def test_a_failure_of_the_network_is_that_image_s_alone(coco):
    class Fails(type(coco)):
        def detect(self, images, *args, **options):
            if any(image.shape[0] == 200 for image in images):
                raise RuntimeError("two hundred")
            return super().detect(images, *args, **options)

    looked = Looker(Fails(coco.engine)).look([work(coco, noise(0, height, 320), 0.1) for height in (240, 200, 240)])
    assert str(looked[1]) == "two hundred"
    same(looked[0].found, coco.predict(noise(0), 0.1))
    same(looked[2].found, looked[0].found)


def test_raw_adds_the_candidates_from_which_suppression_chooses(coco):
    image = noise(3)
    plain, raw = Looker(coco).look([work(coco, image, 0.1), work(coco, image, 0.1, raw=True)])
    assert plain.candidates is None
    same(raw.found, plain.found)
    candidates = raw.candidates
    assert len(candidates) > len(raw.found)
    assert (np.diff(candidates.scores) <= 0).all()
    assert candidates.scores[-1] >= CANDIDATE_SCORE
    same(suppressed(candidates, coco.about["post"]["nms_threshold"], 0.1)[:100], raw.found)


def suppressed(candidates, threshold, lowest):
    """Greedy suppression class by class, as the page does it."""
    kept = []
    for place in np.flatnonzero(candidates.scores >= lowest):
        box, label = candidates.boxes[place], candidates.labels[place]
        if all(candidates.labels[k] != label or overlap(candidates.boxes[k], box) <= threshold for k in kept):
            kept.append(place)
    return candidates[kept]


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = sides.clip(0).prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


def test_suppression_and_number_can_be_asked_for(coco):
    image = noise(4)
    few, loose = Looker(coco).look([work(coco, image, 0.05, most=3), work(coco, image, 0.05, nms=1.0)])
    same(few.found, coco.predict(image, 0.05)[:3])
    assert len(loose.found) == 100 or len(loose.found) > len(coco.predict(image, 0.05))


@pytest.mark.slow
def test_a_hosted_model_answers_as_predict_does_and_counts_its_loads(coco):
    hosted = Hosted("coco", "coco", Room(cores=1))
    try:
        image = encoded(noise(5))
        looked = asyncio.run(hosted.look(image, 0.1))
        same(looked.found, load("coco", threads=1).predict(image, 0.1))
        before = hosted.version
        asyncio.run(hosted.reload())
        assert (before[-2:], hosted.version[-2:]) == ("-1", "-2")
        assert before[:12] == hosted.version[:12]
        for bad in ({"threshold": 2.0}, {"nms": 1.5}, {"most": 0}):
            with pytest.raises(ConfigError):
                asyncio.run(hosted.look(image, **bad))
    finally:
        hosted.close()


def test_a_model_that_cannot_be_read_again_stays(tmp_path):
    from multibox.builtin import FOLDER

    for name in ("face.onnx", "face.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    hosted = Hosted("face", str(tmp_path / "face.onnx"), Room(cores=1))
    try:
        before = hosted.version
        (tmp_path / "face.onnx").write_bytes(b"broken")
        with pytest.raises(Exception, match=r"face\.onnx"):
            asyncio.run(hosted.reload())
        assert hosted.version == before
        assert asyncio.run(hosted.look(noise(6))).width == 320
    finally:
        hosted.close()


@pytest.mark.slow
def test_an_image_that_waits_for_too_long_is_given_up():
    hosted = Hosted("face", "face", Room(cores=1, timeout=0.02))
    hosted.wait_ready()

    async def steps():
        many = [hosted.look(noise(7, 480, 640)) for _ in range(100)]
        return await asyncio.gather(*many, return_exceptions=True)

    results = asyncio.run(steps())
    assert any(isinstance(result, Late) for result in results)
    assert hosted.waiting == 0
    hosted.close()


def test_two_models_of_one_name_are_refused_and_names_can_be_given(tmp_path):
    with pytest.raises(ConfigError, match="two models are called face"):
        open_models(["face", "face"])
    models = open_models(["face", "b=face"], Room(cores=1))
    try:
        assert list(models) == ["face", "b"]
        models["face"].wait_ready()
        models["b"].wait_ready()
        assert models.ready
        models.draining = True
        assert not models.ready
    finally:
        for model in models.values():
            model.close()


def test_the_fingerprint_tells_files_apart(tmp_path):
    first, second = tmp_path / "a.xml", tmp_path / "b.xml"
    for file in (first, second):
        file.write_text("graph")
        file.with_suffix(".bin").write_bytes(b"weights")
    assert fingerprint(first) == fingerprint(second)
    second.with_suffix(".bin").write_bytes(b"others")
    assert fingerprint(first) != fingerprint(second)
