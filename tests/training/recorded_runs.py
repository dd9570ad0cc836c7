"""Trains what it is asked for and keeps the loss of every step: a script for torchrun, and for a test in one process.

Batch norms are in evaluation mode where asked for: in training mode each process normalises by its own images.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from multibox.training import run as runs
from multibox.training import step, trainer
from multibox.training.reporter import Reporter
from multibox.training.run import RunOptions, prepare

SMALL = {
    "model.input_size": [64, 64], "train.batch_size": 5, "train.workers": 0, "train.precision": "float32",
    "train.steps": 20, "train.threads": 1, "train.optimizer": "sgd", "train.lr": 0.01,
}  # fmt: skip


def train_recorded(data: Path, out: Path, changes: dict, *, still: bool) -> list[float]:
    """Train in `out` and return the loss of every step; in float64 where the name of the folder says so."""
    own, build = trainer.train_mode, runs.build_model
    if still:
        trainer.train_mode = step.train_mode = quiet_norms
    if out.name.endswith("float64"):
        runs.build_model = lambda *given: build(*given).double()
    try:
        losses: list[float] = []
        options = RunOptions(preset="tinyssd", out=out, changes={**SMALL, **changes}, device="cpu")
        run = prepare(data, options, Reporter(lambda line: None))
        run.reporter.step = lambda _, parts: losses.append(parts.total.item())
        run.fit()
    finally:
        trainer.train_mode = step.train_mode = own
        runs.build_model = build
    return losses


def quiet_norms(model: torch.nn.Module) -> None:
    """Set training mode, but for batch norms."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


if __name__ == "__main__":
    data, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    for name, changes in cases.items():
        losses = train_recorded(data, out / name, changes, still="norms" not in name)
        if (out / name).is_dir():
            (out / name / f"losses-{distributed.get_rank()}.json").write_text(json.dumps(losses))
