"""Everything a run needs to go on as if it had never stopped, as safetensors and JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from multibox.errors import WeightsError
from multibox.files import write_bytes_whole

FILE = "state.safetensors"


def save_state(
    folder: Path,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    notes: dict[str, Any],
) -> None:
    """Write weights, their average, the optimiser's moments and `notes` (plain values) as one file, whole."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes_whole(folder / "state" / FILE, save(tensors, {"notes": json.dumps(notes)}))


def load_state(
    folder: Path, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Fill the parts from what `save_state` wrote and return its notes.

    Raises:
        WeightsError: there is no state to resume from.
    """
    path = folder / "state" / FILE
    if not path.is_file():
        raise WeightsError(f"{path} does not exist, so there is nothing to resume; start the run without --resume")
    data = path.read_bytes()
    tensors = load(data)
    model.load_state_dict(_below("model.", tensors))
    if average is not None:
        average.load_state_dict(_below("average.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["notes"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
