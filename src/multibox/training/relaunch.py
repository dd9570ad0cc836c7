"""Which run a command goes on with that torchrun starts again: after a killed worker, on fewer machines, after a night.

torchrun repeats the very command, which names no run to resume. So a run folder keeps the command, and what is the same
in all its repetitions: the job's id (--rdzv-id), or torchrun's own process where nobody gave one.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from multibox.errors import ConfigError
from multibox.files import write_text_whole
from multibox.limits import PROC
from multibox.training.folder import LAUNCH, Hold, state_in
from multibox.training.journal import STATUS

NO_ID = "none"
"""What torchrun calls a job without --rdzv-id."""
LAST_WORKERS = 30.0
"""Seconds that the workers before may take to let the folder go."""


def note_launch(folder: Path) -> None:
    """Write down the command and torchrun's job; nothing where torchrun did not start this process."""
    if (job := _job()) is not None:
        write_text_whole(folder / LAUNCH, json.dumps({"job": job, **_command()}, indent=1) + "\n", durable=True)


def begun_before(out: Path | None) -> Path | None:
    """Return the folder of the unfinished run that this very command began; None if there is none.

    Without `out` the job must be the same as well, since a second run of the same command is a run of its own.

    Raises:
        SystemExit: torchrun started the command again, and its run is finished: nothing is left to do.
    """
    job = _job()
    if job is None:
        return None
    for path in [out / LAUNCH] if out is not None else sorted(Path("runs").glob(f"*/{LAUNCH}")):
        said = _read(path)
        same = {name: said.get(name) for name in ("arguments", "where")} == _command()
        if not same or (out is None and said.get("job") != job):
            continue
        if _read(path.parent / STATUS).get("state") != "finished":
            return path.parent
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            raise SystemExit(0)
    return None


def can_go_on(folder: Path) -> bool:
    """Return whether the run came far enough to have a state."""
    return state_in(folder).is_file()


def patient_hold(folder: Path) -> Hold:
    """Take the folder, for which workers that are about to end may have to be waited for.

    Raises:
        ConfigError: another process trains there.
    """
    deadline = time.monotonic() + (LAST_WORKERS if _job() is not None else 0.0)
    while True:
        try:
            return Hold(folder)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _command() -> dict[str, Any]:
    return {"arguments": sys.argv[1:], "where": str(Path.cwd())}


def _job() -> str | None:
    """Return what names this job in all its restarts; None where torchrun did not start this process."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job != NO_ID:
        return job
    parent = os.getppid()
    # A number is used again, but not with the same start
    began = ""
    with contextlib.suppress(OSError, IndexError):
        began = (PROC / str(parent) / "stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {parent} {began}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
