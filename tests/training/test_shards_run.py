"""Runs whose images lie in large files and are read along them."""

import signal
from pathlib import Path

import pytest
import torch

from multibox.config import Config
from multibox.data.convert import convert
from multibox.data.formats import open_dataset
from multibox.data.read_ahead import ReadAhead
from multibox.errors import ConfigError
from multibox.training import splits
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


@pytest.mark.slow
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
    trainer.reporter.step = lambda trainer, parts: (  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGINT) if trainer.pace.step == 3 else None
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = prepare(None, RunOptions(resume=tmp_path / "parts"))
    assert resumed.pace.step == 3
    resumed.fit()
    for (name, a), b in zip(
        whole.stepper.model.state_dict().items(), resumed.stepper.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_files_larger_than_memory_are_read_along(
    records: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in records.glob("train.rec"))
    dataset = open_dataset(records, "train")
    config, said = Config(preset="tinyssd"), list[str]()
    for free, expected in ((2 * size - 2, "shards"), (2 * size, "uniform"), (None, "uniform")):
        monkeypatch.setattr(splits, "available_memory", lambda free=free: free)
        assert splits.choose_sampling(dataset, config, said.append).train.sampling == expected
    assert said == [
        "images are read along their files, which take 0.0 GB, more than half of the free memory "
        "(train.sampling=shards)"
    ]
    monkeypatch.setattr(splits, "available_memory", lambda: 1)
    asked = config.updated({"train.sampling": "balanced"})
    assert splits.choose_sampling(dataset, asked, pytest.fail) == asked
    # Images in a folder have no order on the disk
    loose = open_dataset(squares, "train")
    assert splits.choose_sampling(loose, config, pytest.fail).train.sampling == "uniform"


def test_images_in_a_folder_are_refused_before_there_is_a_run(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.sampling is shards.*\.png is a file of its own"):
        start(squares, tmp_path / "run")
    assert not (tmp_path / "run").exists()
