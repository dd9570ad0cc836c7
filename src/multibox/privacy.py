"""Telemetry switched off: the one place where multibox changes what another package does.

Packages that report, found by running every command with connections refused and counted (`tests/test_privacy.py`):

* `openvino_telemetry`, which NNCF and OpenVINO's model converter import. It sends events to an analytics host and keeps
  a client id in the home folder. Both packages work without it.
* onnxruntime: from 1.32 on it keeps a device id and a store of events in the cache folder, on Linux too; its builds for
  Windows write usage events for the system's diagnostics.
* Hugging Face's hub client and Ray's usage statistics, which come with extras. They read environment variables.
* W&B reports its own errors and MLflow the calls that are made, unless environment variables say no. trackio asks
  Hugging Face for the name of whoever is logged in there, even where it only writes a local file.
* Ray 2.60 with its statistics off: a cluster's dashboard process still asks the metadata services of clouds where it
  runs, and where `ray start` began the cluster, tells the collector that statistics are off.
"""

import importlib
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
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment variables that switch reports off; one that the user has set stays as it is."""
LIGHT_OPENVINO = "MULTIBOX_LIGHT_OPENVINO"
"""Environment variable: 1 imports OpenVINO without its converter. The command line sets it unless it is set."""


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
        _hide(TELEMETRY)


def _silence(telemetry: ModuleType) -> None:
    """Make every method by which `openvino_telemetry` sends do nothing."""
    for name in ("send_event", "start_session", "end_session", "send_error", "send_stack_trace", "init"):
        if hasattr(telemetry.Telemetry, name):
            setattr(telemetry.Telemetry, name, _nothing)


def _nothing(*_: Any, **__: Any) -> None:
    """Take what would have been sent."""


def _hide(module: str) -> None:
    """Make every import of a module fail as if the package were missing."""
    sys.modules[module] = None  # pyright: ignore[reportArgumentType]


def import_onnxruntime() -> Any:
    """Return onnxruntime with its usage events off."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def without_ray_dashboard() -> None:
    """Let Ray clusters that this process starts do without the dashboard's process, which asks clouds where it runs.

    `include_dashboard=False` leaves out its pages only.
    """
    services: Any = importlib.import_module("ray._private.services")
    services.start_api_server = _no_dashboard


def _no_dashboard(*_: Any, **__: Any) -> tuple[str, None]:
    """Return the dashboard's address and process: none."""
    return "", None


def import_trackio() -> Any:
    """Return trackio; if it logs to this machine only, it asks Hugging Face for nobody's name."""
    trackio: Any = importlib.import_module("trackio")
    if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
        importlib.import_module("trackio.run").Run._get_username = _nothing
    return trackio


def import_openvino() -> Any:
    """Return OpenVINO; if `LIGHT_OPENVINO` is 1, without its converter, which takes most of the import (0.1 s).

    `openvino.convert_model` is missing then, so a script's own process gets the whole package.
    """
    converter = "openvino.tools.ovc"
    light = os.environ.get(LIGHT_OPENVINO) == "1" and "openvino" not in sys.modules and converter not in sys.modules
    if light:
        _hide(converter)
    try:
        return importlib.import_module("openvino")
    finally:
        if light:
            del sys.modules[converter]
