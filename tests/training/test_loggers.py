"""Metrics, images and a report in the services of `train.loggers`, each read back from its real local files."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from filelock import FileLock  # torch needs it, so it is there

from multibox.errors import MissingExtraError
from multibox.training import loggers
from multibox.training.logger_services import Point
from multibox.training.run import RunOptions, prepare

STEPS = ("loss", "class_loss", "box_loss", "lr", "images_per_second", "positives", "accuracy")
SMALL = {"model.input_size": [64, 64], "train.batch_size": 4, "train.workers": 0, "train.precision": "float32"}


class Memory:
    """A service that keeps what it is told, and fails or waits where a test wants it."""

    def __init__(self, start, fail=lambda step: None):
        self.start, self.fail = start, fail
        self.known = start.known or "first"
        self.kept, self.images, self.ended = [], [], None

    def points(self, points):
        for point in points:
            self.fail(point.step)
            self.kept.append(point)

    def image(self, file, step):
        assert file.stat().st_size
        self.images.append(step)

    def end(self, end):
        self.ended = end


@pytest.fixture
def services(monkeypatch):
    """Put `Memory` in the place of the services; return those that were opened, by name."""
    opened = {}

    def replace(name, fail=lambda step: None):
        def make(start):
            opened[name] = Memory(start, fail)
            return opened[name]

        monkeypatch.setitem(loggers.SERVICES, name, make)

    for name in loggers.SERVICES:
        replace(name)
    monkeypatch.setattr("multibox.training.run.check_loggers", lambda names: None)
    return opened, replace


def options(out, *names, **changes):
    return RunOptions(preset="tinyssd", epochs=2, out=out, changes={**SMALL, "train.loggers": [*names], **changes})


def events(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def by_step(service, name):
    return [(point.step, point.values[name]) for point in service.kept if name in point.values]


@pytest.mark.slow
def test_a_service_gets_every_metric_image_and_the_report(squares, tmp_path, services):
    opened, _ = services
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder, "mlflow", **{"train.log_every": 2}))
    trainer.fit()
    service = opened["mlflow"]
    assert service.start.config["train.batch_size"] == 4 and service.start.config["preset"] == "tinyssd"
    for name in STEPS:
        told = [(event["step"], event[name]) for event in events(folder, "step")]
        assert by_step(service, f"steps/{name}") == told, name
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in rows[0].keys() - {"epoch", "step"}:
        told = [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-5)) for row in rows if row[name]]
        assert by_step(service, name) == told, name
    per_class = [(event["step"], event["per_class"]["red"]) for event in events(folder, "validation")]
    assert by_step(service, "ap50/red") == [(step, score) for step, score in per_class if score is not None]
    assert service.images == [3, 6]
    assert service.ended.state == "finished" and service.ended.summary["step"] == 6
    assert "| red |" in service.ended.report and "finished after step 6 (epoch 2)" in service.ended.report
    assert [path.name for path in service.ended.files] == ["metrics.csv", "config.toml"]


@pytest.mark.slow
def test_a_service_that_fails_is_told_once_and_stops_nothing(squares, tmp_path, services, monkeypatch):
    monkeypatch.setattr(loggers, "PAUSE", 0.0)
    opened, replace = services

    def fail(step):
        if step >= 2:
            raise ConnectionError("the server is gone")

    replace("mlflow", fail)
    folder = tmp_path / "run"
    heard = []
    trainer = prepare(squares, options(folder, "mlflow", "wandb", **{"train.log_every": 1}))
    trainer.reporter.write = heard.append
    trainer.fit()
    about = [line for line in heard if "mlflow" in line]
    assert len(about) == 1 and "ConnectionError: the server is gone" in about[0], heard
    assert "training goes on" in about[0]
    assert trainer.pace.step == 6
    assert [step for step, _ in by_step(opened["wandb"], "steps/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in by_step(opened["mlflow"], "steps/loss")] == [1]
    assert opened["mlflow"].ended is not None  # it is tried again


@pytest.mark.slow
def test_a_service_that_never_answers_holds_nothing_up(squares, tmp_path, services, monkeypatch):
    monkeypatch.setattr(loggers, "CLOSING", 0.2)
    _, replace = services
    gate = threading.Event()
    replace("trackio", lambda step: gate.wait(60))
    heard = []
    trainer = prepare(squares, options(tmp_path / "run", "trackio", **{"train.log_every": 1}))
    trainer.reporter.write = heard.append
    trainer.fit()
    gate.set()
    assert [line for line in heard if "trackio does not get all metrics" in line and "within" in line], heard


@pytest.mark.slow
def test_a_service_that_cannot_be_opened_is_told_before_the_first_step(squares, tmp_path, services, monkeypatch):
    def refuse(start):
        raise PermissionError("no key")

    monkeypatch.setitem(loggers.SERVICES, "wandb", refuse)
    heard = []
    trainer = prepare(squares, options(tmp_path / "run", "wandb"))
    trainer.reporter.write = heard.append
    trainer.fit()
    assert "wandb does not get all metrics: it cannot be opened (PermissionError: no key)" in heard[0]
    assert trainer.pace.step == 6


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_place_and_tells_nothing_twice(squares, tmp_path, services):
    """Also what a killed process told after the state that is resumed."""
    opened, _ = services
    folder = tmp_path / "run"
    trainer = prepare(squares, options(folder, "wandb", **{"train.log_every": 1}))

    def stop(trainer, parts):
        if trainer.pace.step == 2:
            signal.raise_signal(signal.SIGINT)

    trainer.reporter.step = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    first = opened["wandb"]
    assert first.ended.state == "stopped"
    step = trainer.pace.step
    lost = {**events(folder, "step")[-1], "step": step + 1}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(lost) + "\n")
    prepare(None, RunOptions(resume=folder)).fit()
    second = opened["wandb"]
    assert second is not first and second.start.known == "first"
    assert [s for s, _ in by_step(first, "steps/loss")] == [*range(1, step + 1)]
    assert [s for s, _ in by_step(second, "steps/loss")] == [*range(step + 2, 7)]
    assert [s for s, _ in by_step(second, "total_loss")] == [3, 6]


def test_a_missing_package_is_one_sentence_before_anything_is_made(squares, tmp_path, monkeypatch):
    """A folder of that name where the command runs is no package."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"train.loggers=wandb needs packages .*pip install 'multibox\[loggers\]"
    ):
        prepare(squares, options(tmp_path / "run", "wandb"))
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("trackio").origin is None:
        with pytest.raises(MissingExtraError):
            prepare(squares, options(tmp_path / "run", "trackio"))


def test_too_many_entries_are_dropped_and_told():
    gate = threading.Event()
    sender = loggers.Sender("mlflow", lambda: gate.wait(60) and None, lambda: None)
    sender.thread.start()
    for step in range(loggers.MOST_WAITING + 5):
        sender.send(Point(step, 0.0, {"a": 1.0}))
    assert len(sender.problems) == 1 and "entries wait for it" in sender.problems[0]
    gate.set()


def test_names_of_classes_suit_every_service():
    event = {"kind": "validation", "best": 0.5, "per_class": {"a/b: ../c": 0.25, "d": None}}
    assert loggers.event_values(event) == {"best_map50": 0.5, "ap50/a_b_ ___c": 0.25}


# The real services, in a process of its own without any network


def has(name):
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def needs_mlflow():
    if not has("mlflow"):
        pytest.skip("needs mlflow: pip install 'multibox[loggers]'")


def known_to(name, known):
    """Return the name under which a service knows the run."""
    if name not in known:
        pytest.skip(f"needs {name}: pip install 'multibox[loggers]'")
    return known[name]


class Machine:
    """Runs the program with an empty home folder, and without any network where the system lets us."""

    def __init__(self, folder):
        self.folder, self.home, self.run = folder, folder / "home", folder / "run"
        self.home.mkdir()
        dropped = ("WANDB_", "MLFLOW_", "TRACKIO_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self.environment = {**kept, "HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        self.environment["TRACKIO_DIR"] = str(folder / "trackio")
        self.alone = ["unshare", "-n"] if shutil.which("unshare") and os.geteuid() == 0 else []

    def train(self, *arguments, alone=True, **more):
        command = [*(self.alone if alone else ()), sys.executable, "-m", "multibox", "train", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **more}, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def arguments(data, *names):
    settings = {**SMALL, "train.loggers": json.dumps(names), "train.log_every": 1}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [data, "--preset", "tinyssd", "--epochs", "1", "--out", "run", *pairs]


@pytest.fixture(scope="module")
def trackio_path():
    """A folder with trackio for PYTHONPATH, made once per machine; it wants an older Pillow than our tests have."""
    if has("trackio"):
        return None
    folder = Path(os.environ.get("MULTIBOX_VENVS") or tempfile.gettempdir()) / "multibox-trackio"
    ready, packages = (
        folder / "ready",
        ("trackio>=0.40", "gradio_client", "httpx<1", "httpcore", "orjson", "websockets"),
    )
    with FileLock(f"{folder}.lock"):
        if not ready.exists():
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
            try:
                subprocess.run(install, check=True, capture_output=True, timeout=300)
            except (subprocess.SubprocessError, OSError):
                return None
            ready.touch()
    return folder


@pytest.fixture(scope="module")
def logged(tmp_path_factory, draw_squares, trackio_path):
    """An epoch, and another one in the resumed run, with every service that is installed: machine and true losses."""
    machine = Machine(tmp_path_factory.mktemp("logged"))
    if trackio_path is not None:
        paths = (machine.environment.get("PYTHONPATH"), str(trackio_path))
        machine.environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    names = [name for name in loggers.SERVICES if has(name) or (name == "trackio" and trackio_path is not None)]
    if not names:
        pytest.skip("needs wandb, mlflow or trackio: pip install 'multibox[loggers]'")
    data = draw_squares(machine.folder / "squares", 16)
    said = machine.train(*arguments(data, *names)) + machine.train("--resume", "run", "--epochs", "2")
    assert "does not get all metrics" not in said, said
    assert "Trackio" not in said and "wandb" not in said, said
    losses = {event["step"]: pytest.approx(event["loss"], rel=1e-5) for event in events(machine.run, "step")}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    return machine, losses, json.loads((machine.run / "loggers.json").read_text())


@pytest.mark.slow
def test_wandb_offline(logged):
    machine, losses, names = logged
    known = known_to("wandb", names)
    parts = sorted((machine.run / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(known) for part in parts)
    found, config, summary = {}, {}, {}
    for part in parts:
        for record in wandb_records(next(part.glob("*.wandb"))):
            values = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for kind in (record.history, record.summary, record.run.config)
                for item in (kind.item if hasattr(kind, "item") else kind.update)
            }
            if "steps/loss" in values and record.HasField("history"):
                found[values.get("_step", record.history.step.num)] = values["steps/loss"]
            config |= values if record.HasField("run") else {}
            summary |= values if record.HasField("summary") else {}
    assert found == losses
    assert config["train.batch_size"] == 4
    assert summary["state"] == "finished" and summary["step"] == 6
    for part in parts:
        assert len(list((part / "files/media/images").glob("samples*.jpg"))) == 1
        assert len(list((part / "files/media/html").glob("report*.html"))) == 1


def wandb_records(path):
    """Yield the records of a .wandb file: a log in the format of LevelDB after 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.slow
def test_mlflow_in_files(logged):
    machine, losses, names = logged
    known = known_to("mlflow", names)
    assert not list(machine.home.rglob("*mlflow*"))
    run = next((machine.run / "mlruns").glob(f"*/{known}"))
    assert not [path for path in run.parent.iterdir() if path.is_dir() and path != run]  # one run, not two
    lines = [line.split() for line in (run / "metrics/steps/loss").read_text().splitlines()]
    assert {int(step): float(value) for _, value, step in lines} == losses and len(lines) == 6
    assert (run / "params/train.batch_size").read_text() == "4"
    assert sorted(path.name for path in (run / "artifacts/samples").iterdir()) == ["step-000003.jpg", "step-000006.jpg"]
    assert "finished after step 6" in (run / "artifacts/report.md").read_text()
    assert (run / "artifacts/metrics.csv").read_text() == (machine.run / "metrics.csv").read_text()
    assert "status: 3" in (run / "meta.yaml").read_text()  # FINISHED


@pytest.mark.slow
def test_trackio_on_this_machine(logged):
    machine, losses, names = logged
    known = known_to("trackio", names)
    table = sqlite3.connect(machine.folder / "trackio" / "multibox.db")
    rows = table.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {name for name, _, _ in rows} == {known}
    told = [(step, json.loads(values)) for _, step, values in rows]
    assert {step: values["steps/loss"] for step, values in told if "steps/loss" in values} == losses
    images = [values["samples"] for _, values in told if "samples" in values]
    assert len(images) == 2 and all((machine.folder / "trackio/media" / each["file_path"]).exists() for each in images)
    reports = [values["report"]["_value"] for _, values in told if "report" in values]
    assert "finished after step 6" in reports[-1]
    config = json.loads(table.execute("select config from configs").fetchone()[0])
    assert config["train.batch_size"] == 4 and config["_Username"] is None


@pytest.mark.slow
def test_an_mlflow_server_that_is_not_there_stops_nothing(machine, squares):
    needs_mlflow()
    said = machine.train(*arguments(squares, "mlflow"), MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert said.count("mlflow does not get all metrics") == 1
    assert "weights, metrics and state are in run" in said
    assert not (machine.run / "mlruns").exists()


@pytest.mark.slow
def test_a_store_that_breaks_in_the_middle_is_told_once(machine, squares):
    """The folder of MLflow's run becomes a file while training."""
    needs_mlflow()
    script = machine.folder / "break.py"
    script.write_text(
        "import shutil, sys\n"
        "from pathlib import Path\n"
        "from multibox.cli.main import main\n"
        "from multibox.training.trainer import Trainer\n"
        "step = Trainer._step\n"
        "def breaking(self, *arguments):\n"
        "    step(self, *arguments)\n"
        "    if self.pace.step == 2:\n"
        "        shutil.rmtree('run/mlruns'); Path('run/mlruns').touch()\n"
        "Trainer._step = breaking\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, str(script), "train", *map(str, arguments(squares, "mlflow"))]
    done = subprocess.run(
        command, cwd=machine.folder, env=machine.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("mlflow does not get all metrics: it failed") == 1
    assert len(events(machine.run, "step")) == 3


def test_nothing_of_this_file_is_left_behind():
    assert not Path("mlruns").exists() and not Path("wandb").exists()
