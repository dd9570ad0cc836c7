"""Write a detector as one file that runs without PyTorch, after verification."""
# pyright: reportUnknownMemberType=false

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multibox.data.formats import find_splits, open_dataset, split_for
from multibox.data.image_listing import list_images
from multibox.data.images import load_image, read_image
from multibox.data.pixels import Colour
from multibox.errors import ConfigError, DataError
from multibox.exporting.graph import Dialect, as_text, build_onnx, describe
from multibox.exporting.network import OPSET
from multibox.exporting.openvino_ir import (
    as_stored,
    measure_agreement,
    measure_loss,
    quantize,
    save_openvino,
    to_openvino,
)
from multibox.exporting.verify import Pixels, Report, VerificationError, run_onnx, run_openvino, sample_images, verify
from multibox.files import write_bytes_whole
from multibox.inference.detector import Detector
from multibox.inference.engines import KEY
from multibox.structures import Dataset, Sample

IMAGES, CALIBRATION_IMAGES, AGREEMENT_IMAGES = 8, 300, 64
"""Images taken of the data given, evenly spread: to verify on, to calibrate INT8 on, and to verify INT8 on."""
LOW_SCORE = 1e-5
"""Score threshold at which a file with fixed thresholds is verified."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write."""

    dialect: Dialect = "plain"
    """Inputs and outputs of the file; see `graph.build_onnx`."""
    half: bool = False
    """OpenVINO: weights as float16; the file is half as large."""
    int8: bool = False
    """OpenVINO: the network in INT8, calibrated on `calibrate`."""
    calibrate: Path | None = None
    """Data set or folder of images like those that the detector will see; of a data set, its split train if any."""
    data: Path | None = None
    """Data set or folder of images to verify on; None takes synthetic ones."""
    split: str | None = None
    """Split of `data`."""
    opset: int | None = None
    """ONNX: the version of the operators; None takes an old one that most runtimes read, see `network.DEFAULT`."""
    license: str = ""
    """Licence of the weights; kept in the metadata, as is the source."""
    source: str = ""


def export(detector: Detector, out: Path, options: ExportOptions | None = None) -> dict[str, Any]:
    """Write the detector to `out` (.onnx, or .xml with a .bin beside it) and return the verification's report.

    Nothing is written unless the file, run by its own runtime, computes what the detector computes.

    Raises:
        ConfigError: options that do not go together.
        DataError: images that cannot be read.
        VerificationError: the file computes something else.
    """
    options = options or ExportOptions()
    _check(detector, out, options)
    images = _images_to_verify(options, detector.background)
    if options.int8 and options.calibrate is not None:
        _training_split(options.calibrate)  # before the long part: the images can be found
    precision = "int8" if options.int8 else "fp16" if options.half else "fp32"
    about = describe(detector, options.dialect, license=options.license, source=options.source, precision=precision)
    write = _onnx if out.suffix == ".onnx" else _openvino
    return write(detector, out, options, images, about)


def _check(detector: Detector, out: Path, options: ExportOptions) -> None:
    onnx = out.suffix == ".onnx"
    if detector.config.post.flip:
        raise ConfigError("a detector that averages over mirror images (post.flip) is not exported; load it without")
    if out.suffix not in (".onnx", ".xml"):
        raise ConfigError(f"{out}: expected a file name that ends in .onnx or .xml (OpenVINO)")
    if onnx and (options.int8 or options.half):
        raise ConfigError(f"{out}: FP16 and INT8 are written for OpenVINO; give a name that ends in .xml")
    if options.int8 and options.calibrate is None:
        raise ConfigError("INT8 needs images to measure the network's numbers on: give --calibrate DATA")
    if not onnx and options.opset is not None:
        raise ConfigError(f"{out}: an opset is ONNX's; leave it out, or give a name that ends in .onnx")
    if options.int8 and options.dialect != "plain":
        raise ConfigError(f"INT8 is written in the dialect plain, got {options.dialect}")


def _onnx(
    detector: Detector, out: Path, options: ExportOptions, images: list[Pixels], about: dict[str, Any]
) -> dict[str, Any]:
    import onnx_ir as ir

    model = build_onnx(detector, options.dialect, options.opset)
    data = _checked(ir.to_proto(model))
    if options.dialect == "ultralytics":
        _verify_at_low_score(data, detector, images)
    report = verify(run_onnx(data, options.dialect != "jetson"), detector, options.dialect, images)
    about["verification"] = _written(report, "onnxruntime", options)
    model.metadata_props[KEY] = as_text(about)
    write_bytes_whole(out, ir.to_proto(model).SerializeToString())
    return about["verification"]


def _checked(proto: Any) -> bytes:
    """Return the bytes of a model that obeys ONNX's own rules for its opset.

    Raises:
        VerificationError: it does not.
    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the graph is no valid ONNX of its opset ({error})") from None
    return proto.SerializeToString()


def _verify_at_low_score(data: bytes, detector: Detector, images: list[Pixels]) -> None:
    """Verify a file with fixed thresholds at a score threshold near 0, above which there is something to compare."""
    import onnx

    proto = onnx.load_from_string(data)
    constant = next(node for node in proto.graph.node if "score_threshold" in node.output)
    constant.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(LOW_SCORE, np.float32)))
    config = detector.config.updated({"post.score_threshold": LOW_SCORE})
    lowered = Detector(copy.deepcopy(detector.model), config, detector.names)
    verify(run_onnx(proto.SerializeToString(), stages=True), lowered, "ultralytics", images)


def _openvino(
    detector: Detector, out: Path, options: ExportOptions, images: list[Pixels], about: dict[str, Any]
) -> dict[str, Any]:
    converted = to_openvino(build_onnx(detector, options.dialect, OPSET))
    half = options.half and not options.int8
    run = run_openvino(as_stored(converted, half), options.dialect != "jetson")
    report = verify(run, detector, options.dialect, images, half)
    about["verification"] = _written(report, "openvino", options)
    if options.calibrate is not None and options.int8:
        split = _training_split(options.calibrate)
        seen = _spread(options.calibrate, split, CALIBRATION_IMAGES, detector.background)
        converted = quantize(converted, seen, detector.config.model.input_size)
        small = run_openvino(as_stored(converted, True))
        again = _spread(options.calibrate, split, AGREEMENT_IMAGES, detector.background)
        about["verification"]["int8"] = measure_agreement(small, run, detector, again)
        if options.data is not None and _is_labelled(options.data):
            data = open_dataset(options.data, options.split, class_names=detector.names)
            about["verification"]["int8"] |= measure_loss(small, detector, data)
    save_openvino(converted, out, as_text(about), options.half or options.int8)
    return about["verification"]


def _written(report: Report, runtime: str, options: ExportOptions) -> dict[str, Any]:
    # Without its folder: the file goes to others
    where = options.data.resolve().name if options.data is not None else "synthetic"
    return {"runtime": f"{runtime} {version(runtime)}", "data": where, **report._asdict()}


def _images_to_verify(options: ExportOptions, background: Colour) -> list[Pixels]:
    if options.data is None:
        return sample_images()
    return [np.asarray(image) for image in _spread(options.data, options.split, IMAGES, background)]


def _spread(data: Path, split: str | None, most: int, background: Colour) -> Iterator[Image.Image]:
    """Return up to `most` images, evenly spread over a split or a folder, each decoded when it is needed.

    Raises:
        DataError: there are none, or several splits and none was named.
    """
    all_of_it: Dataset | Sequence[Path] = open_dataset(data, split) if _is_labelled(data) else list_images(data)
    entries = (all_of_it[index] for index in range(0, len(all_of_it), -(-len(all_of_it) // most)))
    return (
        load_image(entry, background) if isinstance(entry, Sample) else read_image(entry, background)
        for entry in entries
    )


def _training_split(data: Path) -> str | None:
    """Return the split to train on if a data set has one of that name."""
    return split_for(find_splits(data), "train") if _is_labelled(data) else None


def _is_labelled(data: Path) -> bool:
    """Return True for a data set, False for a folder of images without labels.

    Raises:
        DataError: it is neither; the message is that of the data set's reader.
    """
    try:
        find_splits(data)
    except DataError:
        if data.is_dir() and _holds_images(data):
            return False
        raise
    return True


def _holds_images(folder: Path) -> bool:
    try:
        return bool(list_images(folder))
    except DataError:
        return False
