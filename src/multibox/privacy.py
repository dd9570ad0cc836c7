"""Nothing that multibox imports reports to anyone: what other packages would send is switched off in this one place.

Known to report, found by running every command with refused and counted connections (`tests/test_privacy.py`):

* `openvino_telemetry`, which NNCF and OpenVINO's model converter import. It sends events to an analytics host and keeps
  a client id in the home folder. Both packages work without it.
* onnxruntime: from 1.32 on it keeps a device id and a store of events in the cache folder, on Linux too; its builds for
  Windows write usage events for the system's diagnostics.
* Hugging Face's hub client and Ray's usage statistics, which come with extras. They read environment variables.
"""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

TELEMETRY = "openvino_telemetry"
SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
}
"""Environment variables that switch reports off; one that the user has set stays as it is."""


def block_reports() -> None:
    """Keep packages that are imported from now on from reporting, in this process and in those it starts.

    `import multibox` calls it. A package that was imported before is silenced as well.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    loaded = sys.modules.get(TELEMETRY)
    if loaded is not None:
        _silence(loaded)
    elif importlib.util.find_spec(TELEMETRY) is not None:
        # None makes every import of it fail as if the package were missing
        sys.modules[TELEMETRY] = None  # pyright: ignore[reportArgumentType]


def _silence(telemetry: ModuleType) -> None:
    """Make every method by which `openvino_telemetry` sends do nothing."""
    for name in ("send_event", "start_session", "end_session", "send_error", "send_stack_trace", "init"):
        if hasattr(telemetry.Telemetry, name):
            setattr(telemetry.Telemetry, name, _nothing)


def _nothing(*_: Any, **__: Any) -> None:
    """Take what would have been sent."""


def import_onnxruntime() -> Any:
    """Return onnxruntime with its usage events off."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
