"""What `multibox bench` measures with: stopwatch, loads, the cut file, torchvision's twin, and who agrees with whom."""

import time

import numpy as np
import pytest
import torch

from multibox import api
from multibox.benchmarking import clock, measurement
from multibox.benchmarking.subjects import PARTS, DisagreementError
from multibox.benchmarking.torchvision_peer import (
    EXACT,
    ROUNDED,
    agree,
    comparable,
    compare,
    eager_subject,
    torchvision_twin,
    twin_subject,
)
from multibox.benchmarking.workload import (
    LOADS,
    as_jpeg,
    count_candidates,
    folder_images,
    synthetic_images,
    synthetic_outputs,
)
from multibox.data.images import decode_image
from multibox.errors import ConfigError, ImageError
from multibox.models.build import measure
from multibox.structures import Detections, Size

SIZE = Size(96, 96)


def detections(*rows):
    """Rows are x1, y1, x2, y2, score, label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), ("a", "b"))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(clock, "PAUSE", 0.0)
    monkeypatch.setattr(clock, "TURN", 0.0)


@pytest.fixture(scope="module")
def lite():
    """A small SSDLite whose heads answer something."""
    detector = api.create("ssdlite320-mobilenetv3", ["a", "b", "c"])
    detector.config = detector.config.updated({"model.input_size": SIZE})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in detector.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.bias.fill_(1)
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        images = torch.from_numpy(np.stack(synthetic_images(4, SIZE))).permute(0, 3, 1, 2)
        detector.model.train()(images)
        detector.model.eval()
        spread = detector.model(images).logits.std()
        for _, layer in detector.model.heads.class_layers():
            layer.weight.mul_(3 / spread)
    return comparable(detector)


def test_turns_alternate_and_the_first_run_of_each_does_not_count():
    seen = []
    sides = {name: lambda name=name: seen.append(name) for name in "ab"}
    ticks = []
    found = clock.take_turns(sides, 2, lambda: ticks.append(1))
    assert seen == list("aabbaabb")
    assert set(found) == {"a", "b"} and set(found["a"]) == {clock.WHOLE}
    assert len(ticks) == 4


def test_parts_are_kept_apart_and_quick_work_runs_more_often(monkeypatch):
    monkeypatch.setattr(clock, "TURN", 10.0)
    calls = []

    def work():
        calls.append(1)
        return {"one": float(len(calls)), "two": 7.0}

    found = clock.take_turns({"side": work}, 1)["side"]
    assert len(calls) == clock.MOST + 1
    assert found["two"] == clock.Spread(7.0, 7.0, 7.0)
    # Runs 2 to 11
    assert found["one"] == pytest.approx((6.5, 2.9, 10.1))


def test_the_whole_of_work_is_timed():
    found = clock.take_turns({"side": lambda: time.sleep(0.02)}, 1)["side"][clock.WHOLE]
    assert 0.02 <= found.median < 0.5


@pytest.mark.slow
def test_memory_grows_with_what_is_held():
    before = clock.peak_memory()
    assert before is not None
    held = np.ones(int(before / 8) + 10_000_000)
    assert clock.peak_memory() >= before + 40e6
    del held


@pytest.mark.parametrize(("score", "classes"), [("softmax", 21), ("sigmoid", 20), ("softmax", 2)])
def test_loads_have_the_candidates_they_promise(score, classes):
    for load, anchors, wanted in (("sparse", 1000, 300), ("sparse", 50, 50), ("dense", 70, 70 * 20)):
        outputs = synthetic_outputs(load, (3, anchors, classes), score, 0.01)
        assert outputs.offsets.shape == (3, anchors, 4)
        expected = wanted if load == "sparse" else anchors * (classes - (score == "softmax"))
        assert count_candidates(outputs, score, 0.01) == expected


def test_images(tmp_path):
    first, second = synthetic_images(2)
    assert first.shape == (375, 500, 3) and first.dtype == np.uint8
    assert (first != second).mean() > 0.5
    decoded = np.asarray(decode_image(as_jpeg(first), "memory"))
    assert np.abs(decoded.astype(int) - first).mean() < 5
    with pytest.raises(ImageError, match="no image in folder"):
        folder_images(tmp_path, 3)
    (tmp_path / "a.jpg").write_bytes(as_jpeg(first))
    (tmp_path / "b.jpg").write_bytes(as_jpeg(synthetic_images(1, Size(30, 40))[0]))
    assert [each.shape for each in folder_images(tmp_path, 3)] == [(375, 500, 3)] * 3


def test_partners():
    one = detections((0, 0, 10, 10, 0.5, 0), (20, 20, 40, 40, 0.3, 1))
    alike = agree("x", [one], [detections((20, 20, 40, 40, 0.3, 1), (0, 0, 10, 10, 0.5, 0))], EXACT)
    assert alike == (2, 1.0, 0.0, 1.0)
    shifted = detections((0, 0, 10, 9, 0.4, 0), (20, 20, 40, 40, 0.3, 1))
    assert agree("x", [one], [shifted], ROUNDED) == pytest.approx((2, 1.0, 0.2, 0.9), abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        detections((0, 0, 10, 10, 0.5, 1), (20, 20, 40, 40, 0.3, 1)),
        detections((0, 0, 10, 10, 0.51, 0), (20, 20, 40, 40, 0.3, 1)),
        detections((0, 0, 10, 9.9, 0.5, 0), (20, 20, 40, 40, 0.3, 1)),
        detections((0, 0, 10, 10, 0.5, 0)),
        detections((0, 0, 10, 10, 0.5, 0), (20, 20, 40, 40, 0.3, 1), (50, 50, 60, 60, 0.2, 0)),
        detections(),
    ],
)
def test_what_has_no_partner_is_refused(other):
    one = detections((0, 0, 10, 10, 0.5, 0), (20, 20, 40, 40, 0.3, 1))
    with pytest.raises(DisagreementError, match=r"^theirs and ours differ: \d of \d detections have a partner"):
        agree("theirs and ours", [one], [other], EXACT)


def test_nothing_found_is_no_agreement():
    with pytest.raises(DisagreementError, match="0 of 0 detections"):
        agree("x", [detections()], [detections()], EXACT)


@pytest.mark.slow
def test_torchvisions_twin_finds_the_same(lite):
    twin = torchvision_twin(lite)
    sides = [twin_subject(twin, lite, "float32"), eager_subject(lite, "float32"), eager_subject(lite, "bfloat16")]
    notes = compare(sides, SIZE)
    assert len(notes) == 2 and "100.0% of" in notes[0]
    for side in sides:
        parts = side.run(synthetic_images(2, Size(40, 50)))
        assert sum(parts[name] for name in PARTS) == pytest.approx(parts[clock.WHOLE])
        assert all(value > 0 for value in parts.values())
    for load in LOADS:
        outputs = synthetic_outputs(load, (2, *sides[0].outputs), "softmax", sides[0].threshold)
        theirs, ours = (side.post(outputs, Size(40, 50))() for side in sides[:2])
        assert agree(load, theirs, ours, EXACT).detections > 200


@pytest.mark.slow
def test_a_twin_with_other_weights_is_found_out(lite):
    twin = torchvision_twin(lite)
    with torch.no_grad():
        twin.head.classification_head.module_list[0][-1].bias[1:] += 1
    with pytest.raises(DisagreementError, match="no time is printed"):
        compare([twin_subject(twin, lite, "float32"), eager_subject(lite, "float32")], SIZE)


@pytest.mark.slow
def test_own_anchors_and_normalisation_go_to_the_twin(lite):
    changes = {"anchors.clip_shapes": False, "anchors.offset": 0.4, "model.mean": (100.0, 110.0, 120.0)}
    detector = api.create("ssdlite320-mobilenetv3", ["a", "b", "c"])
    detector.model.load_state_dict(lite.model.state_dict())
    detector.model.mean.copy_(torch.tensor(changes["model.mean"]).view(1, 3, 1, 1))
    detector.config = lite.config.updated(changes)
    twin = torchvision_twin(detector)
    compare([twin_subject(twin, detector, "float32"), eager_subject(detector, "float32")], SIZE)
    with pytest.raises(DisagreementError):
        compare([twin_subject(torchvision_twin(lite), lite, "float32"), eager_subject(detector, "float32")], SIZE)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("tinyssd", {}, "torchvision has no tinyssd; ssd300-vgg16 and ssdlite320-mobilenetv3 can be compared"),
        ("ssdlite320-mobilenetv3", {"model.score": "sigmoid"}, "needs a softmax .* this detector has sigmoid"),
    ],
)
def test_what_torchvision_does_not_have(preset, changes, message):
    detector = api.create(preset, ["a"])
    detector.config = detector.config.updated(changes)
    with pytest.raises(ConfigError, match=message):
        comparable(detector)


def test_a_variant_with_other_layers_is_refused():
    detector = api.create("ssdlite320-mobilenetv3", ["a"])
    detector.model.backbone.add_module("more", torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match=r"other layers .*: backbone\.more\.bias, backbone\.more\.weight; "):
        torchvision_twin(comparable(detector))


@pytest.mark.slow
def test_flops_and_ceiling(lite):
    side = eager_subject(lite, "float32")
    assert side.flops == 2 * measure(lite.config, 3).multiply_adds
    notes = measurement._limits(
        [side._replace(ceiling=lambda: 4e9, flops=10**6)], [measurement.Row("network", 2, (clock.Spread(1e-3, 0, 0),))]
    )
    assert notes[0].endswith("network, batch 2: 0.00 TFLOP/s, 50% of it")


def test_unknown_precisions_are_refused(lite):
    with pytest.raises(ConfigError, match="precision='half': expected float32 or bfloat16"):
        eager_subject(lite, "half")
