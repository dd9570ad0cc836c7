"""A bad step of a run, made again from its folder alone: without the data and without the run's other files."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from multibox.inference.load import choose_device
from multibox.limits import keep_freed_memory
from multibox.models.build import build_model
from multibox.training.folder import load_state, read_config
from multibox.training.nan_causes import class_cause, find_cause, odd_classes
from multibox.training.nan_measures import measure
from multibox.training.nan_report import Report, read_report
from multibox.training.norms import train_mode
from multibox.training.step import Stepper


@dataclass(frozen=True)
class Replay:
    """What came of a step that was made again."""

    recorded: Report
    """By the run."""
    again: Report
    """Now."""

    @property
    def equal(self) -> bool:
        """Whether every number is the run's, to the last bit."""
        return self.recorded.measured == self.again.measured

    @property
    def comparison(self) -> str:
        """One sentence: whether the step is the run's."""
        if self.equal:
            return "every number equals the run's, to the last bit"
        here = f"{torch.get_num_threads()} threads of {self.again.device}"
        there = f"{self.recorded.threads} threads of {self.recorded.device}"
        return f"the numbers differ from the run's in their last digits or more ({here}, the run had {there})"


def replay(folder: Path, device: str = "auto") -> Replay:
    """Repeat the step of a folder `nan-STEP`: forward pass, loss, gradients, and the search for the cause.

    Args:
        folder: Written by a run.
        device: Where to compute; auto takes the run's kind of device if it is here.

    Raises:
        WeightsError: The folder is none, broken, or of a newer version.
        ConfigError: Its settings cannot be read.
    """
    recorded, batches = read_report(folder)
    wanted = recorded.device if device == "auto" else device
    device = "cpu" if device == "auto" and wanted != "cpu" and not torch.cuda.is_available() else choose_device(wanted)
    if device == "cpu":
        keep_freed_memory()
        torch.set_num_threads(min(recorded.threads, torch.get_num_threads()))
    config = read_config(folder)
    model = build_model(config, len(recorded.class_names), config.train.seed)
    stepper = Stepper(model, config, device=device, precision=recorded.precision)
    train_mode(stepper.model)
    notes, _ = load_state(folder, stepper)
    if notes["thawed"]:
        stepper.thaw()
    batches = [batch.to(device) for batch in batches]
    again = msgspec.structs.replace(recorded, device=device, threads=torch.get_num_threads())
    if odd := odd_classes(batches, len(recorded.class_names)):
        return Replay(recorded, msgspec.structs.replace(again, cause=class_cause(odd)))
    measured = measure(stepper, batches)
    cause = find_cause(stepper, batches, measured, recorded.evidence)
    return Replay(recorded, msgspec.structs.replace(again, measured=measured, cause=cause))
