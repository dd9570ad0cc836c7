"""Run folders below a folder, and how each run is: its state, step, time left, metrics; read, never written."""

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from multibox.errors import one_line

STATUS, EVENTS, TABLE, CONFIG, LOCK, STOP = (
    "status.json",
    "metrics.jsonl",
    "metrics.csv",
    "config.toml",
    ".lock",
    "stop",
)
"""Files of a run folder."""
FORMAT = 1
"""Newest version of status.json that is understood."""
ACTIVE = ("starting", "training", "validating")
STOPPABLE = ("training", "validating")
"""A run that starts takes away a request that an earlier process left."""
STATES = (*ACTIVE, "finished", "stopped", "failed")
DEPTH = 3
"""Levels below the folder: runs/ABLATION/CELL/seed-0 is the deepest."""
MOST_FOLDERS, MOST_RUNS = 20_000, 2_000
MOST_BYTES = 1 << 20
"""Of a status.json or config.toml; ours have a few thousand."""
SILENT, UNSURE, LOST = 15.0, 60.0, 600.0
"""Seconds without a word after which a run is lost: its process is gone; cannot be looked at; seems to be there."""
SAMPLE = re.compile(r"step-\d{1,12}\.jpg")
"""Names of sample predictions in `images/`."""
MOST_LETTERS = 300


@dataclass(frozen=True)
class RunFolder:
    """One run: where it is and what it is called."""

    folder: Path
    name: str
    """Path below the folder that was looked through."""
    id: str
    """Names the run in addresses: letters of a hash, whatever its name has in it."""


def find_runs(root: Path) -> list[RunFolder]:
    """Return all run folders: `root` itself, or those at most `DEPTH` levels below it, by name.

    Hidden folders are left out. A huge tree is looked through in part: `MOST_FOLDERS` folders.
    """
    if _is_run(root):
        return [_named(root, root.absolute().name)]
    found = [_named(folder, folder.relative_to(root).as_posix()) for folder in _below(root)]
    return sorted(found, key=lambda run: run.name)


def _below(root: Path) -> Iterator[Path]:
    level, looked, runs = [root], 0, 0
    for _ in range(DEPTH):
        following: list[Path] = []
        for folder in level:
            for path in _folders(folder):
                looked += 1
                if looked > MOST_FOLDERS or runs >= MOST_RUNS:
                    return
                if _is_run(path):
                    runs += 1
                    yield path
                else:
                    following.append(path)
        level = following


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def _is_run(folder: Path) -> bool:
    def has(name: str) -> bool:
        return (folder / name).is_file()

    with contextlib.suppress(OSError):
        return has(STATUS) or has(EVENTS) or (has(CONFIG) and (has(TABLE) or has(LOCK)))
    return False


def _named(folder: Path, name: str) -> RunFolder:
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:12]
    return RunFolder(folder, text(os.fsencode(name).decode("utf-8", "replace")) or "?", key)


def read_state(run: RunFolder, now: float | None = None) -> dict[str, Any]:
    """Return what status.json says, each value of the type it should have, None where there is none.

    `state` is one of `STATES`, "lost" (it should be at work, but gives no sign of life since `updated`), "unknown" (a
    run of an older version, which wrote no status.json) or "newer". `stopping` says whether it was asked to end.
    """
    now = time.time() if now is None else now
    status = _read_json(run.folder / STATUS)
    if newer := (number(status.get("format")) or 0) > FORMAT:
        status = {"error": f"{STATUS} was written by a newer version of multibox; update this one to see more"}
    entry: dict[str, Any] = {"id": run.id, "name": run.name}
    for key in ("step", "steps", "epoch", "seconds", "seconds_left", "updated", "started", "best", "last", "loss"):
        entry[key] = number(status.get(key))
    entry["images_per_second"] = number(status.get("images_per_second"))
    for key in ("host", "device", "preset", "error", "command"):
        entry[key] = text(status.get(key))
    hardware = status.get("hardware")
    values: dict[str, Any] = cast(dict[str, Any], hardware) if isinstance(hardware, dict) else {}
    entry["hardware"] = {
        key: value
        for key in ("cpu_percent", "memory_gb", "gpu_percent", "gpu_memory_gb")
        if (value := number(values.get(key))) is not None
    }
    state = status.get("state")
    entry["state"] = "newer" if newer else state if state in STATES else "unknown"
    if entry["state"] in ACTIVE:
        entry["updated"] = entry["updated"] or modified(run.folder / STATUS)
        if now - (entry["updated"] or 0.0) > _patience(entry["host"], status.get("pid")):
            entry["state"] = "lost"
    entry["stopping"] = entry["state"] in ACTIVE and os.path.lexists(run.folder / STOP)
    return entry


def _patience(host: str | None, pid: object) -> float:
    if host != socket.gethostname() or sys.platform == "win32" or not isinstance(pid, int):
        return UNSURE
    try:
        os.kill(pid, 0)  # asks only; on Windows it would end the process
    except ProcessLookupError:
        return SILENT
    except (OSError, OverflowError):
        return LOST
    return LOST


def ask_to_stop(run: RunFolder) -> bool:
    """Make RUN/stop, which asks the run to save and end; return False if it was asked before.

    Raises:
        OSError: it cannot be made.
    """
    try:
        # O_EXCL does not follow a link that lies there
        os.close(os.open(run.folder / STOP, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def sample_bytes(run: RunFolder, name: str) -> bytes | None:
    """Return the JPEG of a validation's sample predictions; None if there is none of that name."""
    if not SAMPLE.fullmatch(name):
        return None
    path = run.folder / "images" / name
    try:
        # A run folder from elsewhere may hold links that lead out of it
        if path.resolve().parent != run.folder.resolve() / "images" or path.stat().st_size > 32 * MOST_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(b"\xff\xd8") else None


def compare_settings(runs: list[RunFolder]) -> dict[str, Any]:
    """Return the settings of config.toml in which runs differ: {"runs": [id], "rows": [{"key", "values"}], "same"}.

    A value is written as in TOML; None where a run does not have the setting, and for all where its file is unreadable.
    """
    settings = [_settings(run.folder) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = [{"key": text(key), "values": [each.get(key) for each in settings]} for key in keys]
    different = [row for row in rows if len(set(cast(list[Any], row["values"]))) > 1]
    return {"runs": [run.id for run in runs], "rows": different, "same": len(rows) - len(different)}


def _settings(folder: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(_read(folder / CONFIG).decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return dict(_flat(values, ""))


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{above}{key}.")
        else:
            yield above + key, text(json.dumps(value, ensure_ascii=False, default=str)) or ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _read(path: Path) -> bytes:
    """Return a file's bytes, at most `MOST_BYTES`; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError:
        return b""


def modified(path: Path) -> float | None:
    """Return when a file changed last, in seconds; None where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def number(value: object) -> float | int | None:
    """Return a finite number to six digits; None for anything else, as a file written by others may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15 or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}") if abs(value) < 1e6 else round(value, 1)


def text(value: object, most: int = MOST_LETTERS) -> str | None:
    """Return one line of at most `most` letters; None for anything but a text."""
    if not isinstance(value, str) or not value:
        return None
    line = one_line(value.encode("utf-8", "replace").decode("utf-8"))
    return line if len(line) <= most else line[: most - 4] + " ..."
