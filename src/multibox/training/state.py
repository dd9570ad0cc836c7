"""Everything a run needs to go on as if it had never stopped, as safetensors and JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multibox.errors import WeightsError
from multibox.files import write_bytes_whole
from multibox.training.step import Stepper

FILE = "state.safetensors"


def save_state(folder: Path, stepper: Stepper, notes: dict[str, Any]) -> None:
    """Write weights, average, optimiser moments, running means and `notes` (plain values) as one file, whole."""
    tensors = {f"model.{name}": tensor for name, tensor in stepper.model.state_dict().items()}
    if stepper.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in stepper.average.module.state_dict().items()}
        notes = {**notes, "averaged": stepper.average.count}
    for index, moments in stepper.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {f"means.{name}": tensor for name, tensor in stepper.means.sums.items()}
    # AdamW's step counters of one group may be one tensor, which safetensors refuses to store twice
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes_whole(folder / "state" / FILE, save(tensors, {"notes": json.dumps(notes)}))


def load_state(folder: Path, stepper: Stepper) -> dict[str, Any]:
    """Fill the stepper from what `save_state` wrote and return its notes.

    Raises:
        WeightsError: there is no state to resume from, or it is broken or of another network.
    """
    path = folder / "state" / FILE
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist, so there is nothing to resume; start the run anew, without --resume"
        )
    instead = f"start another run from its weights: --weights {folder / 'last.safetensors'} and another --out"
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError) as error:
        raise WeightsError(f"{path} is no state of a run that can be read ({error}); {instead}") from None
    try:
        stepper.model.load_state_dict(_below("model.", tensors))
    except RuntimeError:
        raise WeightsError(f"{path} is of another network than {folder / 'config.toml'} says; {instead}") from None
    if stepper.average is not None:
        stepper.average.module.load_state_dict(_below("average.", tensors))
        stepper.average.count = notes["averaged"]
    parameters = [p for group in stepper.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = _laid_out_like(parameters[int(index)], tensor)
    groups = stepper.optimizer.state_dict()["param_groups"]
    stepper.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    stepper.means.sums = {name: tensor.to(stepper.device) for name, tensor in _below("means.", tensors).items()}
    return _in_todays_words(notes)


def _in_todays_words(notes: dict[str, Any]) -> dict[str, Any]:
    """Return the notes of a state that was written before runs could be timed as they are written now."""
    if "pace" not in notes:
        spent = sum(row.get("seconds") or 0.0 for row in notes["rows"])
        notes["pace"] = {"step": notes["step"], "position": 0.0, "spent": spent, "durations": []}
        notes["pace"] |= {"validation": 0.0, "saving": 0.0}
        notes["due"] = 0.0
    return notes


def _laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
    """Return the moment in its parameter's memory order, which the fused optimisers take for granted."""
    return torch.empty_like(parameter).copy_(moment) if moment.shape == parameter.shape else moment


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
