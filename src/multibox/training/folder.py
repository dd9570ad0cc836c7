"""The folder of a run: made for a new one, found again for one that goes on, held by one process at a time."""

import contextlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multibox.analysis.ledger import FOLDER as LEDGER
from multibox.config import Config
from multibox.errors import ConfigError, MultiboxError, WeightsError
from multibox.files import write_bytes_whole
from multibox.training.journal import EVENTS, STATUS
from multibox.training.step import Stepper
from multibox.training.stopping import STOP

CONFIG, STATE, LOCK, LAUNCH = "config.toml", "state/state.safetensors", ".lock", "launch.json"
ASKED = "state/asked.toml"
"""The settings before the data was looked at: a run that is killed before its first state begins anew with them."""
WEIGHTS = ("best.safetensors", "last.safetensors")
OWN = (
    CONFIG,
    "state",
    LOCK,
    LAUNCH,
    "metrics.csv",
    EVENTS,
    STATUS,
    STOP,
    LEDGER,
    "images",
    "loggers.json",
    "wandb",
    "mlruns",
)
"""What a run leaves beside weights and TensorBoard's events."""
TENSORBOARD = "events.out.tfevents"
CACHE = ".multibox-cache"
"""Folder beside run folders for what is remembered of their data."""
CHEAP_BYTES = 1 << 24
"""A cache of less is made anew in seconds; it goes with the run that was refused."""
SCRATCH = f".*.{12 * '[0-9a-f]'}.part"
"""Files and folders that were being written when the process was killed."""
ABANDONED = 3600.0
"""Age in seconds from which one of them in a cache, which several runs share, is nobody's."""
STATE_VERSION = 1
"""Of the state's file; those written before there was a number have none, and are read as well."""


Packed = tuple[dict[str, Any], dict[str, Tensor]]
"""The notes of a state, and its tensors by name."""


def save_state(folder: Path, stepper: Stepper, notes: dict[str, Any], more: dict[str, Tensor]) -> None:
    """Write weights, average, optimiser moments, running means, `notes` (plain values) and `more`, whole."""
    notes, tensors = pack_state(stepper, notes, more)
    about = {"notes": json.dumps({**notes, "version": STATE_VERSION, "checksum": _checksum(tensors)})}
    write_bytes_whole(folder / STATE, save(tensors, about), durable=True)


def _checksum(tensors: dict[str, Tensor]) -> int:
    """Return a number that any other byte in the tensors would change."""
    total = 0
    for name in sorted(tensors):
        data: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data, total)
    return total


def pack_state(stepper: Stepper, notes: dict[str, Any], more: dict[str, Tensor]) -> Packed:
    """Return the notes and the tensors of a state, copied to the host."""
    tensors = {f"model.{name}": tensor for name, tensor in stepper.model.state_dict().items()}
    if stepper.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in stepper.average.module.state_dict().items()}
        notes = {**notes, "averaged": stepper.average.count}
    if stepper.guard.scaler.is_enabled():
        notes = {**notes, "scaler": stepper.guard.scaler.state_dict()}
    for index, moments in stepper.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {f"means.{name}": tensor for name, tensor in stepper.means.sums.items()}
    tensors |= {f"more.{name}": tensor for name, tensor in more.items()}
    # AdamW's step counters of one group may be one tensor, which safetensors refuses to store twice
    return notes, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def state_in(folder: Path) -> Path:
    """Return where a run keeps its state."""
    return folder / STATE


def check_state(folder: Path) -> None:
    """Refuse a state that this version cannot go on from; call it before any work. `load_state` refuses a missing one.

    Raises:
        ConfigError: the folder holds a step that was not finite, no run.
        WeightsError: the state is broken or of another version.
    """
    if folder.name.startswith("nan-") and (folder / "report.json").is_file():
        raise ConfigError(f"{folder} holds a step that was not finite, no run; repeat it by --replay {folder}")
    if (folder / STATE).is_file():
        _read_state(folder, notes_only=True)


def load_state(folder: Path, stepper: Stepper) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fill the stepper from what `save_state` wrote; return its notes and what it was given beside them.

    Raises:
        WeightsError: there is no state to resume from, or it is broken, of another version or of another network.
    """
    notes, tensors = _read_state(folder)
    try:
        return unpack_state(stepper, (notes, tensors))
    except RuntimeError:
        raise WeightsError(
            f"{folder / STATE} is of another network than {folder / CONFIG} says; {_instead(folder)}"
        ) from None


def unpack_state(stepper: Stepper, packed: Packed) -> Packed:
    """Fill the stepper from what `pack_state` gave; return its notes and what it was given beside them.

    Raises:
        RuntimeError: the state is of another network.
    """
    notes, tensors = packed
    stepper.model.load_state_dict(_below("model.", tensors))
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
    if "scaler" in notes:
        stepper.guard.scaler.load_state_dict(notes["scaler"])
    stepper.means.sums = {name: tensor.to(stepper.device) for name, tensor in _below("means.", tensors).items()}
    if "pace" not in notes:
        # Written before runs could be timed
        spent = sum(row.get("seconds") or 0.0 for row in notes["rows"])
        notes["pace"] = {"step": notes["step"], "position": 0.0, "spent": spent, "durations": []}
        notes["pace"] |= {"validation": 0.0, "saving": 0.0}
        notes["due"] = 0.0
    return notes, _below("more.", tensors)


def saved_weights(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the step of the state in a run folder, and its network's weights.

    Raises:
        WeightsError: there is no state that can be read.
    """
    notes, tensors = _read_state(folder)
    return int(notes["pace"]["step"]), _below("model.", tensors)


def _read_state(folder: Path, *, notes_only: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / STATE
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist, so there is nothing to resume; start the run anew, without --resume"
        )
    opener: Any = safe_open  # safetensors has no types
    tensors: dict[str, Tensor] = {}
    try:
        with opener(path, framework="pt") as file:
            metadata: dict[str, str] | None = file.metadata()
            notes: dict[str, Any] = json.loads((metadata or {})["notes"])
            # Before anything else is looked at, which may have another form there
            version = notes.get("version", STATE_VERSION)
            if version == STATE_VERSION and not notes_only:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is no state of a run that can be read ({error}); {_instead(folder)}") from None
    if tensors and notes.get("checksum", (found := _checksum(tensors))) != found:
        raise WeightsError(f"{path} was damaged after it was saved: its checksum is wrong; {_instead(folder)}")
    if version != STATE_VERSION:
        raise WeightsError(
            f"{path} has version {version}, this multibox reads version {STATE_VERSION}; resume with the multibox that "
            f"wrote it, or {_instead(folder)}"
        )
    return notes, tensors


def _instead(folder: Path) -> str:
    return f"start another run from its weights: --weights {folder / 'last.safetensors'} and another --out"


def _laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
    """Return the moment in its parameter's memory order, which the fused optimisers take for granted."""
    return torch.empty_like(parameter).copy_(moment) if moment.shape == parameter.shape else moment


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def new_folder(out: Path | None, preset: str) -> Generator[tuple[Path, "Hold"]]:
    """Yield the run's folder, `out` or runs/PRESET-N, held; if the block fails, all that was made here goes again.

    The folder of a run that ended before it saved any weights is emptied and used again.

    Raises:
        ConfigError: the folder holds something else, another process trains there, or it cannot be made.
    """
    folder, made = _make(out, preset)
    hold: Hold | None = None
    before: set[Path] | None = None
    try:
        # Held before anything is looked at: of two runs that start at once only one may clear or fill it
        hold = Hold(folder)
        _clear_failed_run(folder)
        before = set(folder.iterdir())
        yield folder, hold
    except BaseException:
        for path in set[Path]() if before is None else set(folder.iterdir()) - before:
            if _is_own(path):
                _remove(path)
        if hold is not None:
            hold.close()
        with contextlib.suppress(OSError):
            # Each is removed only if it is empty: the deepest one goes first
            for path in made:
                path.rmdir()
        raise


@contextmanager
def fresh_cache(cache: Path) -> Generator[Path]:
    """Yield a cache folder; if the block fails by a mistake, one that was made here and cost little goes again."""
    known = cache.exists()
    try:
        yield cache
    except MultiboxError:
        if not known and sum(path.stat().st_size for path in cache.glob("*")) < CHEAP_BYTES:
            shutil.rmtree(cache, ignore_errors=True)
        raise


def remove_scratch(folder: Path, age: float = 0.0) -> None:
    """Remove what a process that was killed left unfinished; call it with an age, or while the folder is held.

    Args:
        folder: Of a run, or a cache.
        age: Seconds since it was written to, at least.
    """
    for path in (*folder.glob(SCRATCH), *folder.glob(f"*/{SCRATCH}")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime >= age:
                _remove(path)


def read_config(folder: Path) -> Config:
    """Return the config of a run folder, which is all that the run was told.

    Raises:
        ConfigError: there is no run.
    """
    return _read_config(folder / CONFIG, folder)


def settings_to_resume(folder: Path) -> tuple[Config, bool]:
    """Return the settings of a run, and whether it has a state to go on from; without one, those it was asked for.

    Raises:
        ConfigError: there is no run.
    """
    begun = (folder / STATE).is_file() or not (folder / ASKED).is_file()
    return _read_config(folder / (CONFIG if begun else ASKED), folder), begun


def _read_config(path: Path, folder: Path) -> Config:
    if not path.is_file():
        hint = "" if folder.exists() else " (there is no such folder)"
        raise ConfigError(
            f"{folder} is no run to resume: it has no {CONFIG}{hint}; give a run folder, such as runs/NAME-1"
        )
    try:
        return Config.from_toml(path.read_text(encoding="utf-8"), str(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not text ({error}); put back the one that the run was started with") from None


class Hold:
    """Keeps other processes from training in a folder until it is closed, or the process ends however it ends.

    Raises:
        ConfigError: another process trains there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.file: int | None = None
        if sys.platform == "win32":
            return
        import fcntl

        while True:
            try:
                self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise ConfigError(
                    f"{folder} cannot be written to ({error.strerror}); mend its permissions, or give another --out"
                ) from None
            try:
                # A POSIX lock: worker processes do not inherit it, so it ends with this process even if it is killed
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self.file)
                self.file = None
                # Anything else is a file system without locks
                if isinstance(error, BlockingIOError | PermissionError):
                    raise ConfigError(
                        f"another process trains in {folder}; wait for it, or give another --out"
                    ) from None
                return
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.file), self.path.stat()):
                    return
            # Whoever held it removed the file after it was opened here; a third process may lock a new one
            os.close(self.file)
            self.file = None

    def close(self) -> None:
        """Let the folder go."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.file)
            self.file = None

    def __del__(self) -> None:
        self.close()


def _make(out: Path | None, preset: str) -> tuple[Path, list[Path]]:
    """Make the folder and return it with all folders that did not exist before, the deepest first."""
    number = 0
    while True:
        number += 1
        folder = out or Path("runs") / f"{preset}-{number}"
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder, made
        except FileExistsError as error:
            # Two runs that start at once look for the same number; the second takes the next one
            if out is None and folder.is_dir():
                continue
            raise ConfigError(f"{folder} is a file ({error.strerror}); give another --out") from None
        except OSError as error:
            raise ConfigError(
                f"the run folder {folder} cannot be made ({error.strerror}: {error.filename}); give another --out"
            ) from None


def _clear_failed_run(out: Path) -> None:
    """Remove what a run left that ended before it saved weights; refuse a folder that holds anything else."""
    entries = [path for path in out.iterdir() if path.name != LOCK]
    if any((out / name).exists() for name in WEIGHTS):
        raise ConfigError(f"{out} holds a run; go on with it by --resume {out}, or give another --out")
    strange = [path.name for path in entries if not _is_own(path)]
    if strange or not ((out / CONFIG).is_file() or all(map(_is_beginning, entries))):
        names = ", ".join(sorted(strange or [path.name for path in entries])[:3])
        raise ConfigError(f"{out} is not empty ({names} ...); give another --out")
    for path in entries:
        _remove(path)


def _is_beginning(path: Path) -> bool:
    """Return whether this is what a run leaves that is killed before it writes its config."""
    if path.name == Path(ASKED).parent.name and path.is_dir():
        return all(inner.name == Path(ASKED).name or fnmatch(inner.name, SCRATCH) for inner in path.iterdir())
    if path.name == LAUNCH or fnmatch(path.name, SCRATCH):
        return True
    try:
        return path.name == STATUS and json.loads(path.read_bytes())["state"] == "starting"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_own(path: Path) -> bool:
    return path.name in OWN or path.name.startswith(TENSORBOARD) or fnmatch(path.name, SCRATCH) or is_bad_step(path)


def is_bad_step(path: Path) -> bool:
    """Return whether a path in a run folder is that of a step that was not finite (`nan_report`)."""
    return fnmatch(path.name, "nan-*") and path.name[4:].isdigit()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
