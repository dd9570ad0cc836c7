import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import multibox
from multibox.errors import ConfigError, ImageError, WeightsError


@pytest.fixture(scope="module")
def detector():
    """A TinySSD that always sees one dog: the first anchor of the one-cell map, .06 to .94 of any image."""
    made = multibox.create("tinyssd", ["cat", "dog"], recipe="d2l")
    heads = made.model.heads
    with torch.no_grad():
        for head in (*heads.classification, *heads.localization):
            head.weight.zero_()
            head.bias.zero_()
        for head in heads.classification:
            head.bias.view(-1, 3)[:, 0] = 12.0
        heads.classification[4].bias.view(-1, 3)[0] = torch.tensor([0.0, 0.0, 3.0])
    return made


def check(found, width, height):
    assert found.names == ("cat", "dog")
    assert found.labels.tolist() == [1]
    assert found.scores[0] == pytest.approx(np.exp(3) / (np.exp(3) + 2), abs=1e-5)
    expected = [0.06 * width, 0.06 * height, 0.94 * width, 0.94 * height]
    assert found.boxes[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_every_form_of_a_image_gives_pixels_of_the_original(detector, tmp_path):
    image = Image.new("RGB", (640, 200), (9, 99, 199))
    image.save(tmp_path / "a.png")
    for form in (image, np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        check(detector.predict(form), 640, 200)
    found = detector.predict([image] * 20)
    assert len(found) == 20
    check(found[19], 640, 200)
    assert detector.predict([]) == []


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_is_accepted(detector, tmp_path, mode):
    image = Image.new(mode, (50, 70), 1)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"a.{suffix}")
    check(detector.predict(tmp_path / f"a.{suffix}"), 50, 70)
    check(detector.predict(image), 50, 70)


def test_boxes_follow_the_exif_orientation(detector, tmp_path):
    image = Image.new("RGB", (60, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    check(detector.predict(tmp_path / "a.jpg"), 20, 60)
    with Image.open(tmp_path / "a.jpg") as opened:
        check(detector.predict(opened), 20, 60)


def test_the_threshold_counts(detector):
    image = Image.new("RGB", (50, 50))
    assert len(detector.predict(image, threshold=0.95)) == 0
    assert len(detector.predict(image, threshold=0.0)) > 1


def test_without_a_threshold_each_class_has_its_own():
    made = multibox.create("tinyssd", ["cat", "dog"], recipe="d2l")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    everything = made.predict(image, threshold=0.0)
    assert len(set(everything.labels.tolist())) == 2
    least = [float(np.sort(everything.scores[everything.labels == label])[-3]) for label in (0, 1)]
    made.config = made.config.updated({"post.thresholds": least})
    found = made.predict(image)
    wanted = everything.scores >= np.array(least, np.float64)[everything.labels]
    assert found == everything[wanted]
    # The score that was found as the threshold is itself reported
    assert [float(found.scores[found.labels == label].min()) for label in (0, 1)] == least
    assert made.predict(image, threshold=0.0) == everything
    made.config = made.config.updated({"post.thresholds": ()})
    assert made.predict(image) == everything[everything.scores > 0.3]
    made.config = made.config.updated({"post.thresholds": [0.5]})
    with pytest.raises(ConfigError, match=r"post.thresholds has 1 values for 2 classes \(cat, dog\)"):
        made.predict(image)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tinyssd", "ssdlite320-mobilenetv3"])
def test_a_quickened_detector_finds_the_same(preset):
    made = multibox.create(preset, ["cat", "dog"])
    images = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        for module in made.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # fresh ones would fold to nothing
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.2, 0.2)
        plain = made.outputs(images)
        quick = made.quicken().outputs(images)
        coarse = made.quicken("bfloat16").outputs(images)
    for name in ("logits", "offsets"):
        wanted = getattr(plain, name)
        torch.testing.assert_close(getattr(quick, name), wanted, atol=1e-4, rtol=1e-4)
        assert getattr(coarse, name).dtype == torch.bfloat16
        assert (getattr(coarse, name) - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert all(parameter.dtype == torch.float32 for parameter in made.model.parameters())
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.01)
        changed = made.model(images)
        torch.testing.assert_close(made.quicken().outputs(images).logits, changed.logits, atol=1e-4, rtol=1e-4)
        made.model.load_state_dict({key: value * 1.01 for key, value in made.model.state_dict().items()})
        torch.testing.assert_close(made.outputs(images).logits, made.model(images).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="precision='half': expected float32 or bfloat16"):
        made.quicken("half")


def test_mistakes(detector, tmp_path):
    with pytest.raises(ImageError, match=r"uint8 RGB \[H, W, 3\], got float64 \[4, 4, 3\]"):
        detector.predict(np.zeros((4, 4, 3)))
    with pytest.raises(ImageError, match=r"nothing\.png"):
        detector.predict(tmp_path / "nothing.png")
    with pytest.raises(WeightsError, match="neither best"):
        multibox.load(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        multibox.load(tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="did you mean"):
        multibox.create("tinysd", ["a"])
    for names in ([], ["a", "a"], "cat", [""]):
        with pytest.raises(ConfigError, match="class name"):
            multibox.create("tinyssd", names)


@pytest.mark.parametrize("name", ["create", "evaluate", "export"])
def test_public_functions_spell_every_argument_with_its_type(name):
    for parameter in inspect.signature(getattr(multibox, name)).parameters.values():
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        assert parameter.annotation not in (Any, inspect.Parameter.empty)


def test_export_takes_all_that_its_options_hold():
    from multibox.exporting import ExportOptions

    options = {field.name for field in dataclasses.fields(ExportOptions)}
    assert set(inspect.signature(multibox.export).parameters) == {"detector", "out", "overwrite"} | options


@pytest.mark.slow
def test_export_replaces_no_file_unless_told_to(detector, tmp_path):
    for taken, out in (("model.onnx", "model.onnx"), ("model.bin", "model.xml")):
        (tmp_path / taken).write_bytes(b"mine")
        with pytest.raises(ConfigError, match=rf"{taken} exists already; .*overwrite=True to replace it"):
            multibox.export(detector, tmp_path / out)
        assert (tmp_path / taken).read_bytes() == b"mine"
    multibox.export(detector, tmp_path / "model.onnx", overwrite=True)
    assert (tmp_path / "model.onnx").stat().st_size > 1000
