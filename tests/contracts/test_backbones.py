"""What every backbone must do; a new entry of the tables is tested by being there."""

import pytest
import torch

from multibox.errors import ConfigError
from multibox.models.backbones import BACKBONES, WITH_WIDTH, make_backbone
from multibox.models.backbones.layers import RoomyConv2d, SameConv2d
from multibox.models.build import build_model
from multibox.models.weights import load_weights
from multibox.presets import resolve
from multibox.tensors import HeadOutputs

SIZES = [(128, 128), (96, 160), (64, 72)]
QUICK = ("tinyssd", "regnetx400-pyramid", "resnet50-300", "rfb320", "mobilenetv1-fine", "mobilenetv3")
SOME = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BACKBONES]
"""One of each family; the others are slow."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_channels_promised_and_shrink(name):
    with torch.device("meta"):  # shapes are all that is asked for
        backbone = make_backbone(name, 1.0, 6).eval()
        outputs = {size: backbone(torch.zeros(2, 3, *size)) for size in SIZES}
    for size, maps in outputs.items():
        assert tuple(features.shape[1] for features in maps) == tuple(backbone.channels), size
        assert all(features.shape[0] == 2 for features in maps), size
        cells = [features.shape[2] * features.shape[3] for features in maps]
        # The finer map that was added to the COCO SSD stands last
        coarser = cells[:-1] if name == "mobilenetv1-fine" else cells
        assert coarser == sorted(coarser, reverse=True), size
        assert cells[-1] >= 1, size


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_gradients_are_finite_in_bfloat16_on_the_smallest_maps(name):
    # oneDNN leaves gradients of taps that see padding alone unwritten: see RoomyConv2d
    backbone = make_backbone(name, 1.0, 6)
    for _ in range(3):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            maps = backbone(torch.rand(4, 3, 64, 64))
        sum(features.float().square().mean() for features in maps).backward()
        for name_, parameter in backbone.named_parameters():
            assert parameter.grad is not None, name_
            assert parameter.grad.abs().max() < 1e6, name_


@pytest.mark.parametrize("conv", [SameConv2d, RoomyConv2d])
def test_strided_depthwise_convolutions_train_as_in_float32(conv):
    # In bfloat16 they take float32's road (see `_convolve`): same result, gradients rounded once
    layer = conv(16, 16, 3, 2, groups=16, bias=False)
    image = torch.rand(2, 16, 21, 21).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(image)
    found.square().sum().backward()
    assert found.dtype == torch.bfloat16
    exact = image.detach().float().requires_grad_()
    gradient, layer.weight.grad = layer.weight.grad, None
    expected = layer(exact)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-3)
    expected.backward(2 * found.detach().float())
    torch.testing.assert_close(gradient, layer.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(image.grad.float(), exact.grad, rtol=2**-8, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv1-tf", "mobilenetv2", "mobilenetv3", "timm:mobilenetv3_small_050"])
def test_no_strided_depthwise_convolution_is_left_to_bfloat16(name):
    strided = [
        module
        for module in make_backbone(name, 1.0, 6).modules()
        if isinstance(module, torch.nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.stride) > 1
    ]
    assert strided
    assert all(isinstance(module, RoomyConv2d | SameConv2d) for module in strided)


@pytest.mark.parametrize("name", WITH_WIDTH)
def test_a_width_scales_the_channels(name):
    with torch.device("meta"):
        half, full = (make_backbone(name, width, 6) for width in (0.5, 1.0))
    assert sum(p.numel() for p in half.parameters()) < 0.6 * sum(p.numel() for p in full.parameters())


def test_a_width_needs_a_backbone_that_has_one():
    with pytest.raises(ConfigError, match=r"model.width=0.5: backbone tinyssd has one width"):
        make_backbone("tinyssd", 0.5, 5)


def test_an_unknown_backbone_names_its_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'mobilenetv2'"):
        make_backbone("mobilenet2", 1.0, 6)


@pytest.mark.parametrize("model", ["resnet18", "regnetx_004", "mobilenetv3_small_050"])
def test_backbones_of_timm_grow_as_many_maps_as_the_anchors_describe(model):
    for preset in ("tinyssd", "ssdlite320-mobilenetv3"):
        config = resolve(preset, changes={"model.backbone": f"timm:{model}", "anchors.fit": "none"})
        with torch.inference_mode():
            outputs = build_model(config, 2).eval()(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
        assert isinstance(outputs, HeadOutputs)
        assert outputs.logits.shape[1] == outputs.offsets.shape[1]
        assert outputs.feature_shapes[0] == (16, 16)
        assert len(outputs.feature_shapes) == len(config.anchors.sizes)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "regnetx_004", "mobilenetv3_small_050", "efficientnet_lite0"])
def test_weights_of_timm_fit_backbones_of_timm(model, tmp_path):
    import timm

    config = resolve("tinyssd", changes={"model.backbone": f"timm:{model}", "anchors.fit": "none"})
    network = build_model(config, 1)
    torch.save(timm.create_model(model, pretrained=False).state_dict(), tmp_path / "timm.pth")
    line = load_weights(network, tmp_path / "timm.pth", ("cat",)).note
    assert line.endswith(("fresh parts: extras", "fresh parts: none")), line


def test_unknown_and_unfit_models_of_timm_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        make_backbone("timm:resnet-18", 1.0, 6)
