"""Weights of other code bases, read without them."""

import dataclasses
from pathlib import Path

from multibox.errors import ConfigError, WeightsError, did_you_mean
from multibox.importers import hikapok, mxnet_params, pytorch_ssds, tflite
from multibox.importers.common import Importer
from multibox.models.checkpoint import save_checkpoint

IMPORTERS: dict[str, Importer] = {
    "torchvision": Importer(
        pytorch_ssds.read_torchvision,
        "ssd300_vgg16 and ssdlite320_mobilenet_v3_large, .pth",
        "torchvision, same weights",
    ),
    "ssd-pytorch": Importer(
        pytorch_ssds.read_ssd_pytorch, "amdegroot's ssd.pytorch SSD300, .pth", "its network and priors"
    ),
    "lufficc": Importer(
        pytorch_ssds.read_lufficc, "lufficc's SSD300 and SSD512 over VGG16, .pth", "its network and priors"
    ),
    "qfgaohao": Importer(
        pytorch_ssds.read_qfgaohao, "mb1-ssd of pytorch-ssd (qfgaohao, dusty-nv), .pth", "its network and priors"
    ),
    "mxnet": Importer(
        mxnet_params.read,
        "TinySSD of d2l and its focal-loss variant, GluonCV's SSD300 and SSD512 over VGG16, .params of any name scheme",
        "MXNet 1.9.1 and GluonCV",
    ),
    "hikapok": Importer(
        hikapok.read, "SSD.TensorFlow's SSD300, TensorFlow 1 checkpoint (needs tensorflow)", "its network in TensorFlow"
    ),
    "tflite": Importer(
        tflite.read, "SSD MobileNetV1 of TensorFlow's object detection, 8-bit or float .tflite", "its 8-bit outputs"
    ),
    "linzaer": Importer(pytorch_ssds.read_linzaer, "RFB-320 face detector, .pth", "its ONNX file in onnxruntime"),
}
"""To add one: a file with a reader, and a line here."""


def import_file(kind: str, file: Path, out: Path, class_names: list[str], license: str = "") -> str:
    """Convert `file` and write the checkpoint `out`; return a sentence about what was written.

    Raises:
        ConfigError: an unknown kind, or an `out` that does not end in .safetensors.
        WeightsError: a file that is not of that kind, or class names that do not fit it.
    """
    if kind not in IMPORTERS:
        raise ConfigError(f"unknown kind {kind!r}{did_you_mean(kind, IMPORTERS)}; known: {', '.join(IMPORTERS)}")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: a checkpoint's name ends in .safetensors")
    if not file.exists() and not file.with_name(file.name + ".index").exists():
        raise WeightsError(f"{file} does not exist; give the {kind} weights file")
    checkpoint = IMPORTERS[kind].read(file, class_names)
    save_checkpoint(out, dataclasses.replace(checkpoint, license=license or checkpoint.license))
    count = len(checkpoint.class_names)
    classes = ", ".join(checkpoint.class_names[:8]) + (f" ... ({count} classes)" if count > 8 else "")
    return f"{out}: {checkpoint.config.preset} for {classes}, from {file}"
