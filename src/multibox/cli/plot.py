"""`multibox plot`."""

from pathlib import Path
from typing import Annotated

import typer

from multibox.cli.options import PLOTS, check_suffix, own_files


def plot(
    what: Annotated[str, typer.Argument(help="losses: both losses of the TinySSD tutorial; curves: a run's metrics.")],
    run: Annotated[Path | None, typer.Argument(help="Run folder, for curves.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG, SVG or PDF to write. Default: WHAT.png, or WHAT-2.png and so on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Draw the loss functions, or the metrics of a run over its epochs.

    Example: multibox plot curves runs/cells --out curves.png
    """
    from multibox.errors import ConfigError, did_you_mean
    from multibox.files import check_outputs, free_path

    plots = {"losses": _losses, "curves": _curves}
    if what not in plots:
        raise ConfigError(f"cannot plot {what!r}{did_you_mean(what, plots)}; known: {', '.join(plots)}")
    path = out or free_path(f"{what}.png")
    check_suffix(path, PLOTS)
    check_outputs([path], overwrite=overwrite, inputs=own_files(run) if run is not None else ())
    plots[what](path, run)
    typer.echo(f"wrote {path}")


def _losses(path: Path, _: Path | None) -> None:
    import torch

    from multibox.losses.elementwise import focal_loss, smooth_l1
    from multibox.plots.curves import plot_losses

    x = torch.linspace(-2, 2, 401)
    smooth = {sigma: (x.numpy(), smooth_l1(x, torch.zeros_like(x), sigma).numpy()) for sigma in (10.0, 1.0, 0.5)}
    p = torch.linspace(0.01, 0.99, 393)
    logits = torch.stack([torch.zeros_like(p), torch.logit(p)], -1)
    labels = torch.ones(len(p), dtype=torch.int64)
    focal = {gamma: (p.numpy(), focal_loss(logits, labels, 1.0, gamma).numpy()) for gamma in (0.0, 1.0, 5.0)}
    plot_losses(path, smooth, focal)


def _curves(path: Path, run: Path | None) -> None:
    import csv

    from multibox.errors import ConfigError
    from multibox.plots.curves import plot_training

    if run is None or not (run / "metrics.csv").is_file():
        raise ConfigError(f"plot curves needs a run folder with metrics.csv, got {run}")
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    plot_training(path, {name: [row[name] for row in rows] for name in (rows[0] if rows else {})})
