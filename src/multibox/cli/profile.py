"""`multibox profile`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from multibox.cli.options import Background, Classes, Device, Format, Merge, class_list
from multibox.cli.train_options import (
    CacheDir,
    CacheGb,
    ConfigFile,
    DataSets,
    Epochs,
    Minutes,
    OnBadFile,
    Preset,
    Recipe,
    Settings,
    TrainSplit,
    ValSplit,
    Weights,
)

if TYPE_CHECKING:
    from multibox.profiling.measuring import Profile

_MEANING = {
    "read": "reading image files",
    "decode": "decoding them, in the first epoch where they are kept",
    "augment": "augmenting, and waiting for it",
    "copy": "to the device",
    "forward": "the network",
    "targets": "matching anchors and objects",
    "loss": "with hard negatives",
    "backward": "gradients",
    "optimizer": "update of the weights, their average",
    "other": "sums for the metrics and the ledger",
    "validation": "all of the run's, spread over its steps",
    "saving": "checkpoints and state, likewise",
}


def profile(
    data: DataSets = None,
    preset: Preset = None,
    recipe: Recipe = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    weights: Weights = None,
    train_split: TrainSplit = None,
    val_split: ValSplit = None,
    format: Format = None,
    on_bad: OnBadFile = None,
    classes: Classes = None,
    merge: Merge = None,
    background: Background = None,
    cache_gb: CacheGb = None,
    cache_dir: CacheDir = None,
    config: ConfigFile = None,
    set_: Settings = None,
    device: Device = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
) -> None:
    """Measure where the time of training on DATA would go, and say what to change; nothing is kept.

    It takes the options of `multibox train` and does some of that run's steps, a validation and a save.
    Example: multibox profile photos --minutes 10
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from multibox.cli.console import table_console
    from multibox.errors import ConfigError
    from multibox.profiling.measuring import profile_run
    from multibox.profiling.verdict import advise
    from multibox.settings import parse_assignments
    from multibox.training.distributed import refuse_several
    from multibox.training.reporter import Reporter
    from multibox.training.run import RunOptions

    refuse_several("profile measures a run")
    if not data:
        raise ConfigError("profile needs DATA, a data set's folder or file")
    options = RunOptions(
        preset=preset,
        recipe=recipe,
        minutes=minutes,
        epochs=epochs,
        weights=weights,
        train_split=train_split,
        val_split=val_split,
        format=format,
        on_bad=on_bad.value if on_bad else None,
        classes=class_list(classes),
        merge=None if merge is None else tuple(merge),
        background=background,
        cache_gb=cache_gb,
        cache_dir=cache_dir,
        config=config,
        changes=dict(parse_assignments(set_ or [])),
        device=device,
    )
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=table_console(stderr=True)) as bar:
        task = bar.add_task("reading the data")
        said = Reporter(lambda line: None)
        found = profile_run(data, options, reporter=said, tick=lambda what: bar.update(task, description=what))
    if json_:
        typer.echo(_as_json(found, advise(found)))
    else:
        _print_table(found, advise(found))


def _as_json(found: "Profile", advice: str) -> str:
    import dataclasses
    import json

    values: dict[str, Any] = dataclasses.asdict(found)
    values |= {"parts": found.parts(), "total": found.total, "idle": found.idle, "advice": advice}
    return json.dumps(values, indent=1)


def _print_table(found: "Profile", advice: str) -> None:
    from multibox.cli.console import print_rows

    parts = found.parts()
    rows = [
        (name, f"{1000 * seconds:.1f}", f"{100 * seconds / found.total:.1f} %", _MEANING[name])
        for name, seconds in parts.items()
    ]
    rows.append(("total", f"{1000 * found.total:.1f}", "100.0 %", f"{found.batch_size / found.total:.1f} images/s"))
    title = (
        f"{found.preset}, {found.batch_size} images of {found.input_size.width}x{found.input_size.height} per step, "
        f"{found.device} in {found.precision}; {found.steps} steps measured"
    )
    print_rows(["part", ">ms per step", ">share", "what it is"], rows, _notes(found), title)
    typer.echo(f"what to change: {advice}")


def _notes(found: "Profile") -> str:
    machine, image = found.machine, found.image
    lines = [
        f"run: {found.planned_steps:,} steps, {found.epochs:.1f} epochs of {found.images:,} images, "
        f"{found.validations} validations of {found.validation:.2f} s, {found.saves} saves of {found.saving:.2f} s",
        f"one image on one core: read {1000 * image.read:.2f} ms, decode {1000 * image.decode:.2f} ms, augment "
        f"{1000 * image.augment:.2f} ms; {100 * found.kept:.0f} % of the images are kept decoded",
        f"machine: {machine.own:.1f} of {machine.cores} cores used by this run"
        + (f", {machine.others:.1f} by other programs" if machine.others is not None else "")
        + (f"; a quota stopped it in {100 * machine.throttled:.0f} % of the periods" if machine.throttled else ""),
        f"memory: {found.memory / 1e9:.2f} GB"
        + (f" of {found.whole_memory / 1e9:.1f}" if found.whole_memory else "")
        + (f"; the GPU is idle for {100 * found.idle:.1f} % of a step" if found.idle is not None else ""),
    ]
    return "\n".join(lines)
