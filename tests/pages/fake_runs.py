"""Run folders as training writes them (docs/run-folder.md), without any training."""

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

HOSTILE = '<img src=x onerror="throw Error()"> & "quoted" </script>'

NAMES = ("ant", "bee", HOSTILE)


class FakeRun:
    """A run whose steps are written when asked, so that a test decides what a reader sees."""

    def __init__(self, folder: Path, *, steps: int = 400, classes: int = 3, began: float | None = None) -> None:
        self.folder, self.steps, self.classes = folder, steps, classes
        self.began = time.time() - 600 if began is None else began
        self.step = 0
        self.best = 0.0
        (folder / "images").mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'preset = "tinyssd"\n[train]\nlr = {0.001 * (1 + len(folder.name))}\nepochs = 8\n'
            '[data]\npath = ["sprites"]\n'
        )
        self.status("starting")

    def status(self, state: str, **more: Any) -> None:
        values = {
            "format": 1,
            "state": state,
            "step": self.step,
            "steps": self.steps,
            "epoch": 1 + self.step // 50,
            "seconds": 1.5 * self.step,
            "seconds_left": 1.5 * (self.steps - self.step),
            "updated": time.time(),
            "started": self.began,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "device": "cpu",
            "preset": "tinyssd",
            "best": self.best or None,
            "last": self.best or None,
            "loss": self._loss(self.step),
            "images_per_second": 41.7,
            "error": None,
            "command": "multibox train sprites --preset tinyssd --epochs 8",
            "hardware": {"cpu_percent": 187.0, "memory_gb": 1.9, "gpu_percent": None, "gpu_memory_gb": None},
        }
        text = json.dumps(values | more)
        part = self.folder / ".status.part"
        part.write_text(text)
        part.replace(self.folder / "status.json")

    def _loss(self, step: int) -> float:
        return 4 * math.exp(-step / 120) + 0.6 + 0.2 * math.sin(step * 7.3)

    def write(self, **event: Any) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def go(self, steps: int, *, every: int = 2) -> None:
        """Do so many steps, with an epoch and a validation after each 50."""
        for _ in range(steps):
            self.step += 1
            now, loss = self.began + 1.5 * self.step, self._loss(self.step)
            if self.step % every == 0:
                parts = {"loss": loss, "class_loss": 0.7 * loss, "box_loss": 0.3 * loss}
                rates = {"lr": 0.01 * (1 - self.step / self.steps), "images_per_second": 40 + 3 * math.sin(self.step)}
                place = {"time": now, "step": self.step, "epoch": 1 + self.step // 50, "seconds": 1.5 * self.step}
                self.write(kind="step", **place, **parts, **rates)
            if self.step % 50 == 0:
                self._validate(now, loss)
        self.status("training")

    def _validate(self, now: float, loss: float) -> None:
        share = self.step / self.steps
        self.best = round(0.8 * (1 - math.exp(-3 * share)), 4)
        name = f"images/step-{self.step:06}.jpg"
        sheet = Image.new("RGB", (640, 330), "white")
        for place in range(8):
            x, y = 4 + 159 * (place % 4), 4 + 163 * (place // 4)
            ImageDraw.Draw(sheet).rectangle((x, y, x + 150, y + 155), fill=(40 + 20 * place, 120, 200 - 20 * place))
            grow = int(60 * (1 - share))
            ImageDraw.Draw(sheet).rectangle((x + 30 + grow // 2, y + 30, x + 110, y + 120 - grow), outline="yellow")
        sheet.save(self.folder / name)
        names = [NAMES[place % 3] + (f" {place}" if place > 2 else "") for place in range(self.classes)]
        per_class = {name: self.best - 0.1 * (place % 5) * share for place, name in enumerate(names)}
        epoch = self.step // 50
        self.write(
            kind="epoch", time=now, step=self.step, epoch=epoch, learning_rate=0.01 * (1 - share), total_loss=loss,
            cross_entropy_loss=0.7 * loss, location_loss=0.3 * loss, positive_class_error=0.9 - 0.8 * share,
        )  # fmt: skip
        self.write(
            kind="validation", time=now, step=self.step, epoch=epoch, val_loss=loss + 0.3, val_map50=self.best,
            best=self.best, per_class=per_class, thresholds={}, samples=name,
        )  # fmt: skip
        self.write(kind="note", time=now, step=self.step, text=f"validated after epoch {epoch}")


def old_run(folder: Path, epochs: int = 5) -> Path:
    """Write a run folder of a version that had metrics.csv alone."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('preset = "tinyssd"\n')
    lines = ["epoch,step,learning_rate,total_loss,cross_entropy_loss,location_loss,seconds,val_loss,val_map50"]
    for epoch in range(1, epochs + 1):
        lines.append(
            f"{epoch},{epoch * 10},0.001,{5 / epoch:.4f},{4 / epoch:.4f},{1 / epoch:.4f},2.5,{6 / epoch:.4f},0.{epoch}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
