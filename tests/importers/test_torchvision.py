"""torchvision's two SSDs: the same weights on both sides give the same outputs and the same detections.

Fresh networks give nothing useful (SSDLite about 1e-14 everywhere, SSD300 no score that counts), so theirs get seeded
weights, batch norms that fit their inputs, and heads scaled to the spread of a trained network.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import SSD300_VGG16_Weights, ssd300_vgg16, ssdlite, ssdlite320_mobilenet_v3_large

from multibox.data.images import read_image, resize_image
from multibox.errors import WeightsError
from multibox.importers import import_file
from multibox.importers.pytorch_ssds import read_torchvision
from multibox.inference.detector import open_checkpoint
from multibox.models.anchor_layout import anchors_for, make_anchors
from multibox.postprocess import detect
from multibox.structures import Size
from multibox.tensors import HeadOutputs

MAKERS = {"ssd300": ssd300_vgg16, "ssdlite": ssdlite320_mobilenet_v3_large}
EVERY = pytest.mark.parametrize("case", MAKERS)
NAMES = ("a", "b", "c", "d", "e", "f")
PHOTOS = ("000001", "000004", "dog", "horses", "street")
SIZES = {"ssd300": 300, "ssdlite": 320}
SPREAD = {"ssd300": (1.0, 0.7), "ssdlite": (2.0, 0.7)}
"""Standard deviations of the logits and of the offsets that the heads are scaled to."""
BACKGROUND = {"ssd300": 8.5, "ssdlite": 12.0}
"""Added to the background's logits, as training would: most anchors see nothing."""
FREQUENT = 3.0
"""More of the first class, so that one class has more candidates than are looked at."""
INITIALISERS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_")


def make(case, classes):
    """Return torchvision's network without values: drawing those of VGG16's unused end takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name in INITIALISERS:
            patch.setattr(nn.init, name, lambda tensor, *args, **options: tensor)
        return MAKERS[case](weights=None, weights_backbone=None, num_classes=classes)


@torch.no_grad()
def train_quickly(case, model, seeded_weights):
    """Fill the network with what a trained one has: signals, statistics and outputs of healthy size."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("scale_weight"):
            seed = f"{name}.scale" if name.endswith(".weight") and value.ndim == 1 else name
            value.copy_(torch.from_numpy(seeded_weights(seed, tuple(value.shape))))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            # Nearer to linear: rounding errors must not grow from layer to layer
            module.bias += 1
    model.train()
    images = noise(1 if case == "ssd300" else 8, SIZES[case])
    batch, _ = model.transform(list(tensors(images) / 255))
    features = list(model.backbone(batch.tensors).values())
    model.head(features)
    model.eval()
    branches = (model.head.classification_head, model.head.regression_head)
    for branch, spread in zip(branches, SPREAD[case], strict=True):
        for module, level in zip(branch.module_list, features, strict=True):
            last = module if isinstance(module, nn.Conv2d) else module[-1]
            outputs = module(level)
            scale = spread / outputs.std()
            last.weight *= scale
            last.bias.copy_((last.bias - outputs.mean((0, 2, 3))) * scale)
            if branch is branches[0]:
                prior = last.bias.view(-1, len(NAMES) + 1)
                prior[:, 0] += BACKGROUND[case]
                prior[:, 1] += FREQUENT
    return model


def tensors(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def noise(count, size):
    """Return images with the spectrum of photographs: large blobs of colour, smaller ones, and grain."""
    rng = np.random.default_rng(3)

    def blobs(cells):
        image = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        return np.asarray(resize_image(image, Size(size, size)))

    return [
        (0.5 * blobs(4) + 0.3 * blobs(16) + 0.15 * blobs(64) + 0.05 * blobs(size)).astype(np.uint8)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def trained(made, tmp_path_factory, seeded_weights):
    """Return a function that gives (theirs, our detector) with the same weights."""

    def get(case):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            theirs = train_quickly(case, make(case, len(NAMES) + 1), seeded_weights)
            torch.save(theirs.state_dict(), folder / "net.pth")
            import_file("torchvision", folder / "net.pth", folder / "net.safetensors", list(NAMES))
            made[case] = theirs, open_checkpoint(folder / "net.safetensors")
        return made[case]

    return get


@torch.inference_mode()
def run_theirs(model, images):
    """Return raw outputs and anchors (pixels) of torchvision's network, and its detections."""
    kept = []
    parts = (model.head, model.anchor_generator)
    hooks = [part.register_forward_hook(lambda *seen: kept.append(seen[-1])) for part in parts]
    detections = model(list(images / 255))
    for hook in hooks:
        hook.remove()
    raw, (anchors, *_) = kept
    return raw, anchors, detections


def matched(theirs, ours, most):
    """Return for each of their detections, and for each of ours, whether the other side has it."""
    boxes, scores, labels = (theirs[name].numpy() for name in ("boxes", "scores", "labels"))
    # A box that clipping left without an area counts in their limit, and goes from our detections
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    last = scores[-1] if len(scores) == most else 0
    boxes, scores, labels = boxes[real], scores[real], labels[real] - 1
    same = (np.abs(boxes[:, None] - ours.boxes).max(2) < 1e-3) & (np.abs(scores[:, None] - ours.scores) < 1e-5)
    same &= labels[:, None] == ours.labels
    # Of equal scores at the limit either side may take another one
    return (same.sum(1) == 1) | (scores < last + 1e-5), (same.sum(0) == 1) | (ours.scores < last + 1e-5)


def check(trained, case, images):
    theirs, ours = trained(case)
    batch, size, post = tensors(images), SIZES[case], ours.config.post
    assert (theirs.score_thresh, theirs.nms_thresh) == (post.score_threshold, post.nms_threshold)
    assert (theirs.topk_candidates, theirs.detections_per_img) == (post.pre_nms_topk, post.max_detections)
    raw, anchors, wanted = run_theirs(theirs, batch)
    with torch.inference_mode():
        outputs = ours.model(batch)
    torch.testing.assert_close(outputs.logits, raw["cls_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.offsets, raw["bbox_regression"], rtol=0, atol=1e-4)
    own_anchors = make_anchors(ours.config.anchors, outputs.feature_shapes, (size, size)) * size
    torch.testing.assert_close(own_anchors, anchors, rtol=0, atol=1e-4)

    scores = raw["cls_logits"].softmax(2)[..., 1:]
    candidates = (scores > post.score_threshold).sum((1, 2)).tolist()
    equal_input = HeadOutputs(raw["cls_logits"], raw["bbox_regression"], outputs.feature_shapes)
    found, end_to_end = (
        detect(each, anchors_for(each, ours.config), [Size(size, size)] * len(images), ours.config, ours.names)
        for each in (equal_input, outputs)
    )
    for one, other, whole, count in zip(wanted, found, end_to_end, candidates, strict=True):
        assert len(one["scores"]) > 50
        assert count > 1.5 * len(one["scores"]) or len(one["scores"]) == post.max_detections
        for sides in matched(one, other, post.max_detections):
            assert sides.all()
        # Rounding may turn an overlap that lies on the threshold
        for sides in matched(one, whole, post.max_detections):
            assert sides.mean() > 0.99


@pytest.mark.parametrize("case", [pytest.param("ssd300", marks=pytest.mark.slow), "ssdlite"])
def test_outputs_and_detections_on_photographs(trained, shared, case):
    size = Size(SIZES[case], SIZES[case])
    photos = [resize_image(read_image(shared / f"data/photos/{name}.jpg"), size) for name in PHOTOS]
    check(trained, case, [np.asarray(photo) for photo in photos])


@pytest.mark.parametrize("case", [pytest.param("ssd300", marks=pytest.mark.slow), "ssdlite"])
def test_outputs_and_detections_on_noise(trained, case):
    check(trained, case, noise(3 if case == "ssdlite" else 2, SIZES[case]))


@pytest.fixture
def blank(tmp_path):
    """Return a function that saves zeros, one number in memory, for every tensor of a case, with changes."""

    def write(case, classes=91, **changes):
        state = {name: torch.zeros(()).expand(value.shape) for name, value in make(case, classes).state_dict().items()}
        torch.save(state | changes, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    return write


@pytest.mark.slow
@EVERY
def test_91_logits_are_coco(blank, case):
    found = read_torchvision(blank(case), [])
    listed = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    assert len(found.class_names) == len(set(found.class_names)) == 90
    for index, name in enumerate(found.class_names, 1):
        assert name == (listed[index] if listed[index] != "N/A" else f"unused {index}")
    assert [found.class_names[index] for index in (0, 16, 89)] == ["person", "cat", "toothbrush"]


@pytest.mark.slow
@EVERY
def test_names_that_are_given_count(blank, case):
    file = blank(case, 4)
    assert read_torchvision(file, []).class_names == ("class0", "class1", "class2")
    assert read_torchvision(file, ["cat", "dog", "owl"]).class_names == ("cat", "dog", "owl")
    with pytest.raises(WeightsError, match=r"net\.pth was trained for 3 classes, but --names gives 1: cat$"):
        read_torchvision(file, ["cat"])


def test_a_network_that_was_fine_tuned_from_imagenet_has_the_full_tail(tmp_path, monkeypatch):
    # torchvision asks for the reduced tail wherever no ImageNet weights are downloaded
    maker = ssdlite.mobilenet_v3_large
    monkeypatch.setattr(ssdlite, "mobilenet_v3_large", lambda **options: maker(**options | {"reduced_tail": False}))
    torch.save(make("ssdlite", 3).state_dict(), tmp_path / "net.pth")
    found = read_torchvision(tmp_path / "net.pth", [])
    assert found.config.model.backbone == "mobilenetv3-full"
    assert found.state["backbone.features.16.0.weight"].shape == (960, 160, 1, 1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"vgg.0.weight": torch.zeros(1)}, r"is not a torchvision SSD300 or SSDLite320: .*, found vgg\.0\.weight$"),
        (
            {"backbone.scale_weight": torch.zeros(512)},
            r"is not torchvision's SSD300: .*, found backbone\.scale_weight$",
        ),
        ([torch.zeros(1)], "holds a list, expected tensors by name"),
    ],
)
def test_other_files_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=rf"net\.pth {message}"):
        read_torchvision(tmp_path / "net.pth", [])


@pytest.mark.parametrize("length", [0, 9, 4000])
def test_broken_files_are_refused(blank, length):
    file = blank("ssdlite")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"net\.pth is not readable as weights"):
        read_torchvision(file, [])
