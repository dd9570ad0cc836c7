"""Runs whose images lie in large files and are read along them."""

from pathlib import Path

import pytest
import torch

from multibox.data.convert import convert
from multibox.data.read_ahead import ReadAhead
from multibox.errors import ConfigError
from multibox.training.run import RunOptions, prepare
from multibox.training.trainer import Trainer

SMALL = {
    "model.input_size": [64, 64],
    "train.batch_size": 3,
    "train.precision": "float32",
    "train.sampling": "shards",
    "train.augmentation": "mosaic",
    "train.mix_until": 0.7,
}


def start(data: Path, out: Path, workers: int = 0) -> Trainer:
    changes = {**SMALL, "train.workers": workers}
    return prepare(data, RunOptions(preset="tinyssd", epochs=2, out=out, weights="none", changes=changes))


@pytest.fixture
def records(squares: Path, tmp_path: Path) -> Path:
    convert(squares, tmp_path / "records", "recordio")
    return tmp_path / "records"


def test_a_resumed_run_equals_an_uninterrupted_one(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    reach = ReadAhead.reach
    monkeypatch.setattr(ReadAhead, "reach", lambda self, step: (reached.append(step), reach(self, step))[1])
    whole = start(records, tmp_path / "whole")
    whole.fit()
    assert reached == list(range(8)) and whole.pace.step == 8
    trainer = start(records, tmp_path / "parts", workers=2)
    trainer.reporter.step = lambda trainer, parts: (tmp_path / "parts" / "stop").touch()  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = prepare(None, RunOptions(resume=tmp_path / "parts"))
    assert 0 < resumed.pace.step < 8
    resumed.fit()
    for (name, a), b in zip(
        whole.stepper.model.state_dict().items(), resumed.stepper.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_images_in_a_folder_are_refused_before_there_is_a_run(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.sampling is shards.*\.png is a file of its own"):
        start(squares, tmp_path / "run")
    assert not (tmp_path / "run").exists()
