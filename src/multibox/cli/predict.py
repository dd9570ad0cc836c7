"""`multibox predict`."""

from pathlib import Path
from typing import Annotated

import typer

from multibox.cli.devices import checked_device


def predict(
    model: Annotated[str, typer.Argument(help="coco, face, a .safetensors, .onnx or .xml file, or a run folder.")],
    sources: Annotated[list[str], typer.Argument(help="Picture files, folders or glob patterns.")],
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest score to report. Default: the model's for each class, or 0.3."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures with boxes.")] = Path("predictions"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all detections here.")] = None,
    coco: Annotated[Path | None, typer.Option(help="Write COCO's results JSON here.")] = None,
    yolo: Annotated[Path | None, typer.Option(help="Folder for YOLO text files with scores.")] = None,
    voc: Annotated[Path | None, typer.Option(help="Folder for VOC's comp4_det_test_CLASS.txt files.")] = None,
    on_bad: Annotated[str, typer.Option(help="A picture that cannot be read: stop or skip.")] = "stop",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    flip: Annotated[bool, typer.Option("--flip", help="Average over mirror images too; takes twice as long.")] = False,
) -> None:
    """Find objects in pictures; draws them and, where asked, writes result files in pixels of the originals."""
    from multibox.data.pictures import list_pictures, read_picture
    from multibox.errors import ConfigError, PictureError
    from multibox.inference.loading import load
    from multibox.inference.results import PictureResult, distinct_names, write_results
    from multibox.plots.detections import draw_detections

    if on_bad not in ("stop", "skip"):
        raise ConfigError(f"--on-bad {on_bad}: expected stop or skip")
    paths = list(dict.fromkeys(path for source in sources for path in list_pictures(source)))
    detector = load(model, device=checked_device(device), flip=flip)
    typer.echo(describe_thresholds(detector.thresholds, detector.names, threshold))
    out.mkdir(parents=True, exist_ok=True)
    names = distinct_names(path.stem for path in paths)
    rows: list[PictureResult] = []
    for path, name in zip(paths, names, strict=True):
        try:
            picture = read_picture(path)
        except PictureError as error:
            if on_bad == "stop":
                raise
            typer.echo(f"skipped: {error}", err=True)
            continue
        found = detector.predict(picture, threshold)
        draw_detections(picture, found).save(out / f"{name}.png")
        rows.append(PictureResult(str(path), picture.width, picture.height, found))
        pairs = zip(found.labels, found.scores, strict=True)
        kinds = ", ".join(f"{detector.names[label]} {score:.2f}" for label, score in pairs)
        typer.echo(f"{path}: {kinds or 'nothing'}")
    write_results(rows, json_file=json_file, coco=coco, yolo=yolo, voc=voc)
    typer.echo(f"{len(rows)} pictures with boxes are in {out}")


def describe_thresholds(own: tuple[float, ...], names: tuple[str, ...], threshold: float | None) -> str:
    """Return a line that says which scores are reported."""
    from multibox.inference.thresholds import class_thresholds

    if threshold is not None:
        return f"scores above {threshold:g} are reported"
    found = class_thresholds(own, names)
    if not own:
        return f"scores from {found[0]:g} are reported; the model has no thresholds of its own"
    each = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, found, strict=True))
    return f"scores from the model's thresholds are reported: {each}"
