"""Starting from other weights: detectors by class name, backbones by layout, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from multibox.api import create
from multibox.errors import WeightsError
from multibox.inference.detector import open_checkpoint
from multibox.models.checkpoint import Checkpoint, load_config, save_checkpoint
from multibox.models.weights import CAFFE_CONVS, VGG_CONVS, choose_network, load_weights, plain_name


def saved(detector, path):
    save_checkpoint(path, Checkpoint(detector.model.state_dict(), detector.config, detector.names))
    return path


def class_bias(detector, level=0):
    layer = dict(detector.model.heads.class_layers())[next(iter(dict(detector.model.heads.class_layers())))]
    return layer.bias.detach().view(-1, detector.model.heads.logits)


@pytest.mark.parametrize("preset", ["tinyssd", "ssd300-mobilenetv1", "rfb320-face"])
def test_class_rows_are_kept_by_name(preset, tmp_path):
    old = create(preset, ["cat", "dog", "horse"], seed=1)
    for _, layer in old.model.heads.class_layers():
        torch.nn.init.normal_(layer.bias)
    new = create(preset, ["zebra", "dog", "cat"], seed=2)
    fresh = class_bias(new).clone()
    line = load_weights(new.model, saved(old, tmp_path / "old.safetensors"), new.names).note
    assert "class rows kept: dog, cat" in line or "class rows kept: cat, dog" in line
    assert "fresh: zebra" in line
    background = int(new.config.model.score == "softmax")
    for mine, theirs in ((1, 1), (2, 0)):
        torch.testing.assert_close(class_bias(new)[:, mine + background], class_bias(old)[:, theirs + background])
    torch.testing.assert_close(class_bias(new)[:, background], fresh[:, background])  # zebra's prior
    if background:
        torch.testing.assert_close(class_bias(new)[:, 0], class_bias(old)[:, 0])
    ours, theirs = new.model.backbone.state_dict(), old.model.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_detector_brings_its_network_and_says_so(tmp_path):
    changes = {"model.width": 0.5, "model.input_size": [128, 128], "post.nms_threshold": 0.6}
    old = create("ssd300-mobilenetv1", ["cat"])
    old.config = old.config.updated(changes)
    from multibox.models.build import build_model

    old.model = build_model(old.config, 1)
    path = saved(old, tmp_path / "old.safetensors")
    preset, settings = choose_network(path, None)
    assert preset == "ssd300-mobilenetv1"
    assert settings["model.width"] == 0.5
    assert choose_network(path, "tinyssd") == ("tinyssd", {})
    new = create("ssd300-mobilenetv1", ["cat", "dog"], weights=path)
    assert new.config.model == old.config.model
    assert new.config.post == old.config.post


def test_the_loss_is_the_recipe_s_unless_it_does_not_fit_the_scores(tmp_path):
    path = saved(create("tinyssd", ["cat"], recipe="d2l"), tmp_path / "softmax.safetensors")
    assert create("tinyssd", ["cat"], recipe="d2l-focal", weights=path).config.loss.classification == "focal"
    old = create("tinyssd", ["cat"])
    sigmoid = {"model.score": "sigmoid", "loss.classification": "varifocal"}
    old.config = old.config.updated(sigmoid)
    from multibox.models.build import build_model

    old.model = build_model(old.config, 1)
    path = saved(old, tmp_path / "sigmoid.safetensors")
    new = create("tinyssd", ["cat"], weights=path).config
    assert (new.model.score, new.loss.classification) == ("sigmoid", "varifocal")


def test_thresholds_stay_with_their_weights(tmp_path):
    old = create("tinyssd", ["cat", "dog"])
    old.config = old.config.updated({"post.thresholds": [0.4, 0.6], "post.nms_threshold": 0.6})
    path = saved(old, tmp_path / "old.safetensors")
    assert load_config(path).post.thresholds == (0.4, 0.6)
    new = create("tinyssd", ["bird"], weights=path)
    assert (new.config.post.thresholds, new.config.post.nms_threshold) == ((), 0.6)


@pytest.mark.slow
def test_vgg16_of_torchvision_is_thinned_out(tmp_path):
    gen = torch.Generator().manual_seed(0)
    state = {}
    for index, channels in zip(
        VGG_CONVS,
        [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), *[(256, 256)] * 2, (512, 256), *[(512, 512)] * 5],
        strict=True,
    ):
        state[f"features.{index}.weight"] = torch.randn(*channels, 3, 3, generator=gen)
        state[f"features.{index}.bias"] = torch.randn(channels[0], generator=gen)
    # Rows that overlap in memory: numbers of their own would make a file of 400 MB
    state["classifier.0.weight"] = torch.randn(4096 * 7 + 25088, generator=gen).as_strided((4096, 25088), (7, 1))
    state["classifier.3.weight"] = torch.randn(4096, 4096, generator=gen)
    state |= {f"classifier.{i}.bias": torch.randn(4096, generator=gen) for i in (0, 3)}
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    detector = create("ssd300-vgg16", ["cat"])
    line = load_weights(detector.model, path, detector.names).note
    assert "30 of the backbone's" in line
    assert "fresh parts: extras, norm" in line
    backbone = detector.model.backbone
    # Output 7 is the original's 28th; tap (1, 2) of the 3x3 is tap (3, 6) of the 7x7
    wanted = state["classifier.0.weight"].view(4096, 512, 7, 7)[28, 5, 3, 6]
    assert backbone.fc6.weight[7, 5, 1, 2] == wanted
    assert backbone.fc7.weight[3, 9, 0, 0] == state["classifier.3.weight"][12, 36]
    assert backbone.fc7.bias[2] == state["classifier.3.bias"][8]
    assert torch.equal(backbone.features[28].weight, state["features.28.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["numbers", "caffe"])
def test_the_reduced_vgg16_fits_under_both_namings(naming, tmp_path):
    detector, other = create("ssd300-vgg16", ["cat"], seed=1), create("ssd300-vgg16", ["cat"], seed=2)
    own = other.model.backbone.state_dict()
    layers = {
        f"features.{i}": (str(i) if naming == "numbers" else name)
        for i, name in zip(VGG_CONVS, CAFFE_CONVS, strict=True)
    }
    layers |= {"fc6": "31", "fc7": "33"} if naming == "numbers" else {"fc6": "fc6", "fc7": "fc7"}
    state = {
        f"{theirs}.{kind}": own[f"{ours}.{kind}"] for ours, theirs in layers.items() for kind in ("weight", "bias")
    }
    torch.save(state, tmp_path / "vgg16_reducedfc.pth")
    assert "30 of the backbone's" in load_weights(detector.model, tmp_path / "vgg16_reducedfc.pth", detector.names).note
    assert torch.equal(detector.model.backbone.fc6.weight, own["fc6.weight"])
    assert torch.equal(detector.model.backbone.features[5].weight, own["features.5.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "make", "taken"),
    [
        ("ssd300-resnet50", torchvision.models.resnet50, 258),
        ("ssdlite320-mobilenetv2", torchvision.models.mobilenet_v2, 312),
        ("multibox-s", torchvision.models.regnet_x_400mf, 426),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_classifiers_of_torchvision_fit_in_every_file_format(preset, make, taken, suffix, tmp_path):
    state = make(weights=None).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        save_file(state, path)
    detector = create(preset, ["cat"])
    assert f"{taken} of the backbone's" in load_weights(detector.model, path, detector.names).note


def test_weights_from_elsewhere_are_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file was executed",))

    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    detector = create("tinyssd", ["cat"])
    with pytest.raises(WeightsError, match="not readable as weights"):
        load_weights(detector.model, path, detector.names)


def test_damaged_weights_are_refused_by_name(tmp_path):
    old = create("tinyssd", ["cat"], seed=1)
    with torch.no_grad():
        old.model.backbone.stages[0][0].conv2.weight[0, 0, 0] = float("nan")
    path = saved(old, tmp_path / "old.safetensors")
    with pytest.raises(WeightsError, match=r"old.safetensors is damaged: 3 values of backbone\S*conv2.weight are not"):
        load_weights(create("tinyssd", ["cat"], seed=2).model, path, ("cat",))


def test_weights_that_do_not_fit_say_what_was_expected_and_found(tmp_path):
    detector = create("tinyssd", ["cat"])
    save_file({"blocks.0.w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"expected tensors such as backbone\..*found blocks\.0\.w"):
        load_weights(detector.model, tmp_path / "other.safetensors", detector.names)
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(detector.model, tmp_path / "none.safetensors", detector.names)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        load_weights(detector.model, tmp_path / "list.pth", detector.names)


def test_the_mobilenet_in_shared_fits(shared):
    detector = create("ssdlite320-mobilenetv2", ["cat"])
    path = shared / "weights/mobilenet_v2_imagenet/weights.npz"
    line = load_weights(detector.model, path, ("cat",)).note
    assert "312 of the backbone's 384 tensors taken over; fresh parts: extras" in line


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Dining Table", "diningtable"),
        ("dining_table", "diningtable"),
        ("aeroplane", "airplane"),
        ("安全帽", "安全帽"),
        ("+", "+"),
    ],
)
def test_class_names_are_compared_without_case_blanks_and_signs(name, plain):
    assert plain_name(name) == plain


@pytest.mark.slow
def test_the_default_preset_keeps_all_that_coco_knows():
    names = ["Person", "unicorn", "sofa"]
    fresh, started = (create("multibox-fine", names, weights=weights) for weights in ("none", "coco"))
    coco = open_checkpoint("coco")
    mine, theirs = started.model.state_dict(), coco.model.state_dict()
    shared = [key for key in theirs if not key.startswith("heads.classification")]
    assert all(torch.equal(mine[key], theirs[key]) for key in shared)
    assert any(not torch.equal(mine[key], fresh.model.state_dict()[key]) for key in shared)
    head = started.model.heads.classification[0].weight.view(-1, 3, 384)
    theirs = coco.model.heads.classification[0].weight.view(-1, 90, 384)
    assert torch.equal(head[:, 0], theirs[:, coco.names.index("person")])
    assert torch.equal(head[:, 2], theirs[:, coco.names.index("couch")])
    assert not any(torch.equal(head[:, 1], theirs[:, row]) for row in range(90))
