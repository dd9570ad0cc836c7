"""MXNet's parameter files: every format on disk, every kind of damage, and the tutorial's TinySSD in both namings."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.errors import WeightsError
from multibox.importers.mxnet_params import convert, read, read_params

GOLDEN = Path(__file__).parents[1] / "golden" / "mxnet_tinyssd"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "mxnet_tinyssd"
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6, "bool": 7}


def packed(array, magic=V2, storage=0, flag=None):
    """Return an array as MXNet writes it; magic None is the oldest format."""
    head = b"" if magic is None else struct.pack("<I", magic)
    head += struct.pack("<i", storage) if magic in (V2, V3) else b""
    axes = struct.pack("<I", array.ndim)
    axes += struct.pack(f"<{array.ndim}{'I' if magic is None else 'q'}", *array.shape)
    flag = FLAGS[str(array.dtype)] if flag is None else flag
    return head + axes + struct.pack("<iii", 1, 0, flag) + array.tobytes()


def file(tmp_path, arrays, names):
    data = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names))
    data += b"".join(struct.pack("<Q", len(name)) + name for name in names)
    path = tmp_path / "net.params"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("magic", [V1, V2, V3, None])
@pytest.mark.parametrize("dtype", FLAGS)
def test_every_format_and_type(tmp_path, magic, dtype):
    arrays = [np.arange(24).reshape(2, 3, 4).astype(dtype), np.ones(5, dtype), np.zeros((0, 3), dtype)]
    path = file(tmp_path, [packed(array, magic) for array in arrays], [b"b", b"arg:a", b"aux:c"])
    params = read_params(path)
    assert list(params) == ["b", "a", "c"]
    for got, array in zip(params.values(), arrays, strict=True):
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
        assert got.flags.writeable


def test_a_scalar_exists_only_with_numpy_shapes(tmp_path):
    scalar = np.array(3.0, np.float32)
    assert read_params(file(tmp_path, [packed(scalar, V3)], [b"s"]))["s"].shape == ()
    with pytest.raises(WeightsError, match="before its first run"):
        read_params(file(tmp_path, [packed(scalar, V2)], [b"s"]))


ONE = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("arrays", "names", "message"),
    [
        ([packed(ONE, storage=1)], [b"a"], r"array 0 in storage type 1 \(sparse\)"),
        ([packed(ONE), packed(ONE, flag=12)], [b"a", b"b"], "array 1 of MXNet's type 12"),
        ([struct.pack("<I", 0x12345678) + bytes(40)], [b"a"], "unknown format"),
        ([packed(ONE), packed(ONE)], [b"a"], "names 1 of its 2 arrays"),
        ([packed(ONE), packed(ONE)], [b"a", b"a"], "names 1 of its 2 arrays"),
        ([packed(ONE)], [], "names 0 of its 1 arrays"),
        ([packed(ONE)], [b"\xff\xfe"], "no text"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, arrays, names, message):
    with pytest.raises(WeightsError, match=message):
        read_params(file(tmp_path, arrays, names))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = file(tmp_path, [packed(ONE), packed(ONE)], [b"a", b"b"])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"net\.params"):
            read_params(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(WeightsError, match="1 bytes after its last name"):
        read_params(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 numpy archive", b"\x80\x02}q\x00.", b"hello, world"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.params"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"weights\.params is no parameter file of MXNet 1"):
        read_params(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        read_params(tmp_path / "nothing.params")


BLOCKS = [("blk_0.0", 3, 16), ("blk_0.1", 16, 32), ("blk_0.2", 32, 64), None]
BLOCKS += [("blk_1", 64, 128), None, ("blk_2", 128, 128), None, ("blk_3", 128, 128), None, None]


def fresh(classes=2, anchors=(4,) * 5):
    """Return random parameters in both namings, layers in order of creation."""
    random = np.random.default_rng(0)
    structural, numbered, level = {}, {}, 0
    counts = {"conv": 7, "batchnorm": 3}

    def add(name, kind, **shapes):
        for field, shape in shapes.items():
            values = random.random(shape, np.float32)
            structural[f"{name}.{field}"] = numbered[f"tinyssd0_{kind}{counts[kind]}_{field}"] = values
        counts[kind] += 1

    for block in BLOCKS:
        if block is None:
            width = (64, 128, 128, 128, 128)[level]
            for head, outputs in (("cls", anchors[level] * (classes + 1)), ("bbox", anchors[level] * 4)):
                add(f"{head}_{level}", "conv", weight=(outputs, width, 3, 3), bias=(outputs,))
            level += 1
            continue
        name, before, after = block
        for place, source in ((0, before), (3, after)):
            add(f"{name}.{place}", "conv", weight=(after, source, 3, 3), bias=(after,))
            fields = ("gamma", "beta", "running_mean", "running_var")
            add(f"{name}.{place + 1}", "batchnorm", **{field: (after,) for field in fields})
    return structural, numbered


FILE = Path("net.params")


def assert_same_state(left, right):
    assert left.state.keys() == right.state.keys()
    assert all(torch.equal(left.state[name], right.state[name]) for name in left.state)


@pytest.mark.parametrize("classes", [1, 20])
def test_both_namings_give_the_same_weights(classes):
    structural, numbered = fresh(classes)
    found = convert(FILE, structural, [])
    assert_same_state(found, convert(FILE, numbered, []))
    assert found.class_names == tuple(f"class{index}" for index in range(classes))
    state = {name: value.numpy() for name, value in found.state.items()}
    np.testing.assert_array_equal(state["backbone.stages.0.2.norm2.running_var"], structural["blk_0.2.4.running_var"])
    np.testing.assert_array_equal(state["backbone.stages.3.0.conv2.weight"], structural["blk_3.3.weight"])
    np.testing.assert_array_equal(state["heads.localization.4.bias"], structural["bbox_4.bias"])
    assert {array.dtype for name, array in state.items() if "tracked" not in name} == {np.dtype(np.float32)}


LEVEL_3 = {"cls_3.weight": np.ones((8, 128, 3, 3)), "cls_3.bias": np.ones(8)}


@pytest.mark.parametrize(
    ("naming", "change", "message"),
    [
        (0, lambda p: p.pop("blk_2.3.weight"), r"lacks 1 tensors of tinyssd \(backbone\.stages\.2\.0\.conv2\.weight\)"),
        (0, lambda p: p.update({"blk_4.0.weight": ONE}), r"has 1 that it does not know \(blk_4\.0\.weight\)"),
        (0, lambda p: p.update({"blk_1.0.weight": ONE}), r"stages\.1\.0\.conv1\.weight has shape \[2, 2\], expected"),
        (0, lambda p: p.update(LEVEL_3), r"heads\.classification\.3\.\w+ has shape \[8.*\], expected \[12.* 2 classes"),
        (0, lambda p: p.clear(), "has 0 conv layers, TinySSD has 22"),
        (0, lambda p: [p.pop(f"cls_0.{field}") for field in ("weight", "bias")], "is not a TinySSD"),
        (
            1,
            lambda p: [p.pop(f"tinyssd0_conv12_{field}") for field in ("weight", "bias")],
            "21 conv layers.*conv12 is missing",
        ),
        (1, lambda p: p.update({"dense0_weight": ONE}), r"has 1 that it does not know \(dense0_weight\)"),
        (1, lambda p: p.pop("tinyssd0_batchnorm5_gamma"), r"lacks 1 .*\(backbone\.stages\.0\.1\.norm1\.weight\)"),
    ],
)
def test_the_layer_that_does_not_fit_is_named(naming, change, message):
    params = fresh()[naming]
    change(params)
    with pytest.raises(WeightsError, match=rf"^net\.params.*{message}"):
        convert(FILE, params, [])


def test_an_ssd_of_gluoncv_is_told_by_its_names():
    with pytest.raises(WeightsError, match=r"net\.params is not GluonCV's SSD over VGG16"):
        convert(FILE, {"class_predictors.0.predictor.weight": ONE}, [])


def test_other_anchors_are_refused():
    with pytest.raises(WeightsError, match=r"classification\.1\.weight has shape \[18, .*\], expected \[12, "):
        convert(FILE, fresh(2, (4, 6, 6, 4, 4))[0], [])


def test_a_file_of_mxnet_itself():
    params = read_params(GOLDEN / "ssd.params")
    assert next(iter(params)) == "conv0_weight"
    found = read(GOLDEN / "ssd.params", ["cat", "dog"])
    assert found.class_names == ("cat", "dog")
    learned = [value.numel() for name, value in found.state.items() if "running" not in name and "tracked" not in name]
    assert sum(learned) == 1_031_132


def test_both_files_of_mxnet_hold_the_same_network():
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    structural = SHARED / "ssd_structural.params"
    assert next(iter(read_params(structural))) == "blk_0.0.0.weight"
    assert_same_state(read(structural, []), read(GOLDEN / "ssd.params", []))
