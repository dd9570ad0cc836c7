"""The services that `train.loggers` names, each behind three calls: points, image, end.

Nothing goes over a network unless the user has set up a server: W&B is offline unless one is logged in or sets
WANDB_MODE, MLflow writes into the run folder unless MLFLOW_TRACKING_URI is set, trackio into its own local database
unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set. Reports of the packages themselves are off (`privacy.py`).
"""

import html
import importlib
import importlib.util
import netrc
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from multibox.errors import MissingExtraError
from multibox.privacy import import_trackio

PROJECT = "multibox"
"""Project (W&B, trackio) or experiment (MLflow) of all runs, unless the service's own variable says another one."""
OPENING, CLOSING = 30.0, 60.0
"""Most seconds that a run waits for a service before its first step, and after its last."""
MOST_LETTERS = 6000
"""Of a setting's value in MLflow."""
SAMPLES, REPORT = "samples", "report"
EXITS = {"finished": 0, "stopped": 255, "failed": 1}
"""Exit code that W&B is told; 255 is its own for Ctrl-C."""
ENDS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""How MLflow calls the ends."""
WANDB_HOST = "api.wandb.ai"
"""Host under which `wandb login` keeps the key of the public server."""


class Point(NamedTuple):
    """Metrics of one step."""

    step: int
    time: float
    """Unix seconds."""
    values: dict[str, float]


@dataclass(frozen=True)
class Start:
    """What a service is told when a run starts or goes on."""

    folder: Path
    config: Mapping[str, Any]
    """Every setting by its dotted key."""
    known: str | None
    """Name under which the service knows the run that goes on; None for a new one."""


@dataclass(frozen=True)
class End:
    """What a service is told when the run ends."""

    state: str
    """finished, stopped or failed."""
    step: int
    summary: Mapping[str, Any]
    report: str
    """Markdown."""
    files: Sequence[Path]


class Service(Protocol):
    """A place that metrics are sent to. Any method may raise anything."""

    known: str
    """Name under which it finds the run again."""

    def points(self, points: Sequence[Point]) -> None:
        """Log metrics, in the order of their steps."""
        ...

    def image(self, file: Path, step: int) -> None:
        """Log drawn detections."""
        ...

    def end(self, end: End) -> None:
        """Log the report and send what waits."""
        ...


class Wandb:
    """Weights & Biases. What is logged offline lies in `wandb` in the run folder, for `wandb sync`."""

    def __init__(self, start: Start) -> None:
        self.package: Any = importlib.import_module("wandb")
        self.known = start.known or secrets.token_hex(4)
        mode = None if os.environ.get("WANDB_MODE") else "online" if self._logged_in() else "offline"
        # Its own figures of the machine would ask a metadata server of clouds; ours are in status.json
        settings = self.package.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=OPENING,
            finish_timeout=CLOSING,
        )
        self.run: Any = self.package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.known,
            name=start.folder.name,
            dir=str(start.folder),
            mode=mode,
            resume="allow",
            config=dict(start.config),
            settings=settings,
        )

    def _logged_in(self) -> bool:
        """Return whether a key is at hand: in the environment, or where `wandb login` writes it."""
        if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            return True
        try:
            hosts = netrc.netrc(os.environ.get("NETRC") or None).hosts
        except (OSError, netrc.NetrcParseError):
            return False
        server = urlsplit(os.environ.get("WANDB_BASE_URL") or f"https://{WANDB_HOST}").hostname
        return server in hosts

    def points(self, points: Sequence[Point]) -> None:
        """Log metrics."""
        for point in points:
            self.run.log(point.values, step=point.step)

    def image(self, file: Path, step: int) -> None:
        """Log drawn detections."""
        self.run.log({SAMPLES: self.package.Image(str(file))}, step=step)

    def end(self, end: End) -> None:
        """Log the report and send what waits."""
        self.run.log({REPORT: self.package.Html(f"<pre>{html.escape(end.report)}</pre>")}, step=end.step)
        self.run.summary.update(dict(end.summary))
        self.run.finish(exit_code=EXITS[end.state])


class Mlflow:
    """MLflow: `mlruns` in the run folder, or what MLFLOW_TRACKING_URI names."""

    def __init__(self, start: Start) -> None:
        # Its files are in maintenance mode and refused otherwise; a database needs packages that mlflow-skinny has not
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Its defaults hold a thread for many minutes where the server is gone
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.entities: Any = importlib.import_module("mlflow.entities")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (start.folder / "mlruns").absolute().as_uri()
        self.client: Any = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=place)
        self.known = self._reopen(start) or self._create(start)

    def _reopen(self, start: Start) -> str | None:
        """Return the run that goes on; None if there is none, or the place does not know it."""
        if start.known is None:
            return None
        try:
            self.client.update_run(start.known, status="RUNNING")
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return start.known

    def _create(self, start: Start) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        identity = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        known: str = self.client.create_run(identity, run_name=start.folder.name).info.run_id
        settings = [self.entities.Param(key, str(value)[:MOST_LETTERS]) for key, value in start.config.items()]
        for first in range(0, len(settings), 100):  # a call takes no more
            self.client.log_batch(known, params=settings[first : first + 100])
        return known

    def points(self, points: Sequence[Point]) -> None:
        """Log metrics."""
        metrics = [
            self.entities.Metric(name, value, round(1000 * point.time), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(self.known, metrics=metrics[first : first + 1000])

    def image(self, file: Path, step: int) -> None:
        """Log drawn detections; the file's name tells the step."""
        self.client.log_artifact(self.known, str(file), SAMPLES)

    def end(self, end: End) -> None:
        """Log the report and the files of metrics and settings."""
        self.client.log_text(self.known, end.report, f"{REPORT}.md")
        for file in end.files:
            self.client.log_artifact(self.known, str(file))
        self.client.set_terminated(self.known, ENDS[end.state])


class Trackio:
    """trackio: its own local database, or the Space or server that its variables name."""

    def __init__(self, start: Start) -> None:
        self.package = import_trackio()
        # It finds runs by name, and folders of several places may share one
        self.known = start.known or f"{start.folder.name}-{secrets.token_hex(3)}"
        self.run: Any = self.package.init(
            project=PROJECT,
            name=self.known,
            resume="never" if start.known is None else "allow",
            config=dict(start.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def points(self, points: Sequence[Point]) -> None:
        """Log metrics."""
        for point in points:
            self.run.log(dict(point.values), step=point.step)

    def image(self, file: Path, step: int) -> None:
        """Log drawn detections."""
        self.run.log({SAMPLES: self.package.Image(str(file))}, step=step)

    def end(self, end: End) -> None:
        """Log the report and write what waits."""
        self.run.log({REPORT: self.package.Markdown(end.report)}, step=end.step)
        self.run.finish()


SERVICES: dict[str, Callable[[Start], Service]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
"""By the name in `train.loggers`, which is also the name of the package."""


def check_loggers(names: Sequence[str]) -> None:
    """Refuse services whose packages are not installed.

    Raises:
        MissingExtraError: One is missing.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        # A folder `wandb` or `mlflow` where the command runs looks like a package without a file
        if found is None or found.origin is None:
            raise MissingExtraError(f"train.loggers={name}", "loggers")
