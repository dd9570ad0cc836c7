"""`multibox compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multibox.cli.options import (
    DataSets,
    Device,
    Format,
    MaxDetections,
    OnBad,
    Rename,
    SkipOrStop,
    own_files,
    read_rename,
    rename_files,
)

_MODEL = "coco, face, a .safetensors, .onnx or .xml file, or a run folder."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"What was before: {_MODEL}")],
    b: Annotated[str, typer.Argument(metavar="B", help=f"What is to be judged: {_MODEL}")],
    data: DataSets,
    split: Annotated[str | None, typer.Option(help="Split to compare on; needed where there are several.")] = None,
    margin: Annotated[float, typer.Option(min=0, max=1, help="AP that B may lose; more gives exit code 1.")] = 0.01,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images for 95 % intervals and p-values; 0 for none.")
    ] = 1000,
    speed: Annotated[int, typer.Option(min=0, help="Images on which both are timed in turn; 0 for none.")] = 20,
    rename: Rename = None,
    max_detections: MaxDetections = 100,
    format: Format = None,
    on_bad: SkipOrStop = OnBad.stop,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples; the same one gives the same numbers.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers here; - for standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --json; a file of DATA never.")] = False,
) -> None:
    """Tell whether detector B is worse than A on a split of DATA; exit 1 if it is, by more than --margin.

    B is worse if its COCO AP on these images is lower than A's by more than the margin. The 95 % interval does not
    decide: the verdict says whether other images might decide otherwise. Classes that both know are compared, by name.
    Example: multibox compare runs/cells cells-int8.xml data/cells --split test --margin 0.01
    """
    from multibox.analysis.comparison import compare as compare_models
    from multibox.cli.console import counting, write_json
    from multibox.files import check_outputs

    to_stdout = json_file == Path("-")
    inputs = [*data, *own_files(a), *own_files(b), *rename_files(rename)]
    check_outputs([] if json_file is None or to_stdout else [json_file], overwrite=overwrite, inputs=inputs)
    result = compare_models(
        a, b, data, split=split, margin=margin, bootstrap=bootstrap, speed=speed, rename=read_rename(rename),
        max_detections=max_detections, format=format, on_bad=on_bad.value, device=device, seed=seed,
        counting=counting,
    )  # fmt: skip
    write_json(json_file, result)
    print_comparison(result, stderr=to_stdout)
    if result["worse"]:
        raise typer.Exit(1)


def print_comparison(result: dict[str, Any], *, stderr: bool = False) -> None:
    """Print the verdict, then metrics per class, objects found by one alone, images that differ most, and speed."""
    from multibox.cli.console import print_rows

    def say(line: str = "") -> None:
        typer.echo(line, err=stderr)

    say(result["verdict"])
    say(f"A is {result['a']['model']} ({result['a']['engine']}), B is {result['b']['model']} ({result['b']['engine']})")
    for note in result["notes"]:
        say(note)
    say(f"{', '.join(result['data'])} ({result['split']}): {result['images']:,} images, {result['objects']:,} objects")
    say()
    rows = [(name, *_metric(values)) for name, values in result["metrics"].items()]
    for kind in ("AP", "AP50"):
        rows += [(f"{kind} of {name}", *_metric(values[kind])) for name, values in result["per_class"].items()]
    print_rows(("metric", ">A", ">B", ">B - A", ">95 %", ">p"), rows, stderr=stderr)
    say()
    found = result["detections"]
    counts = [("all", found), *found["per_class"].items()]
    rows = [
        (name, *(f"{one[key]:,}" for key in ("objects", "both", "only_a", "only_b", "neither")), f"{one['p']:.3f}")
        for name, one in counts
    ]
    heads = ("found from IoU 0.5", ">objects", ">by both", ">A only", ">B only", ">by none", ">p (McNemar)")
    print_rows(heads, rows, stderr=stderr)
    say(f"false detections: A {found['false_a']:,}, B {found['false_b']:,}; thresholds are the models' own")
    say()
    if result["differing"]:
        keys = ("objects", "found_a", "found_b", "only_a", "only_b", "false_a", "false_b")
        rows = [(one["file"], *(str(one[key]) for key in keys)) for one in result["differing"][:10]]
        heads = ("images that differ most", *(f">{key.replace('_a', ' by A').replace('_b', ' by B')}" for key in keys))
        print_rows(heads, rows, stderr=stderr)
        say()
    if (speed := result["speed"]) is not None:
        say(
            f"speed, median ms per image over {speed['images']} images in turn: A {speed['a_ms']:.1f} "
            f"({speed['a_engine']}), B {speed['b_ms']:.1f} ({speed['b_engine']}), {speed['ratio']:.2f} times A's"
        )


def _metric(values: dict[str, float | None]) -> tuple[str, ...]:
    from multibox.cli.console import metric_text

    difference, low, high, p = (values[key] for key in ("difference", "low", "high", "p"))
    return (
        metric_text(values["a"]),
        metric_text(values["b"]),
        "-" if difference is None else _signed(difference),
        "-" if low is None or high is None else f"{_signed(low)} to {_signed(high)}",
        metric_text(p),
    )


def _signed(value: float) -> str:
    # Adding 0 turns -0 into 0
    return f"{round(value, 3) + 0.0:+.3f}"
