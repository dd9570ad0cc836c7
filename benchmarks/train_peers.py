"""Detectors of others, trained from scratch for so many minutes on a data set and scored by our evaluation.

`python benchmarks/train_peers.py DATA yolo|ssdlite --minutes 20 --train trainval --test test` trains YOLO11n of
ultralytics by its default settings at 320 pixels, or torchvision's ssdlite320_mobilenet_v3_large by its own loss, with
the transforms of its reference recipe. The last weights (YOLO's are averages) are scored, once, at the end.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import machine

from multibox.data.convert import write_dataset
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.evaluation.report import evaluate
from multibox.structures import Dataset, Detections

SIZE = 320
LOW = 0.01
"""Scores from here on are kept, as average precision wants them."""
Find = Callable[[Any], Detections]


def train_yolo(data: Dataset, minutes: float, folder: Path) -> Find:
    """Train YOLO11n from its yaml, without weights, by its own defaults for so long."""
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    write_dataset({"train": data, "val": data}, folder / "data", "yolo")
    model = YOLO("yolo11n.yaml")
    settings = {"imgsz": SIZE, "time": minutes / 60, "device": "cpu", "workers": 0, "project": str(folder / "runs")}
    yaml = next((folder / "data").rglob("*.yaml"))
    model.train(data=str(yaml), val=False, plots=False, pretrained=False, verbose=False, **settings)
    trained = YOLO(next((folder / "runs").rglob("last.pt")))

    def find(image: Any) -> Detections:
        (result,) = trained.predict(image, imgsz=SIZE, conf=LOW, verbose=False, device="cpu")
        boxes, scores = result.boxes.xyxy.numpy(), result.boxes.conf.numpy()
        return Detections(boxes, scores, result.boxes.cls.numpy().astype(np.int64), tuple(trained.names.values()))

    return find


def train_ssdlite(data: Dataset, minutes: float, folder: Path) -> Find:
    """Train torchvision's SSDLite: its transforms, its loss, SGD and a cosine over the time there is."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    names = data.class_names
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1 + len(names))
    model.score_thresh = LOW
    groups = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=4e-5)
    started, steps = time.monotonic(), 0
    for images, targets in _batches(data, 16):
        share = (time.monotonic() - started) / (60 * minutes)
        if share >= 1:
            break
        rate = 0.05 * min(1, (steps + 1) / 50) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            print(f"step {steps}, {share:.0%} of the time: loss {loss.item():.3f}", flush=True)
    print(f"{steps} steps of 16 images")
    model.eval()

    def find(image: Any) -> Detections:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
            (found,) = model([pixels])
        return Detections(found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy() - 1, names)

    return find


def _batches(data: Dataset, size: int) -> Iterator[tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]]:
    """Yield batches for ever, through the transforms of torchvision's reference recipe for SSDLite."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    change = v2.Compose(
        [v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    )
    images = [torch.from_numpy(np.array(load_image(sample))).permute(2, 0, 1) for sample in data]
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(data))
        for start in range(0, len(order) - size + 1, size):
            batch, targets = [], []
            for index in order[start : start + size]:
                sample = data[int(index)]
                boxes = tv_tensors.BoundingBoxes(
                    torch.from_numpy(sample.boxes_xyxy).float(), format="XYXY", canvas_size=images[index].shape[1:]
                )  # pyright: ignore[reportCallIssue]
                target = {"boxes": boxes, "labels": torch.from_numpy(sample.labels) + 1}
                image, target = change(tv_tensors.Image(images[index]), target)
                batch.append(image / 255)
                targets.append(target)
            yield batch, targets


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score once, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("peer", choices=["yolo", "ssdlite"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--train", default="trainval")
    parser.add_argument("--test", default="test")
    asked = parser.parse_args(arguments)
    train = {"yolo": train_yolo, "ssdlite": train_ssdlite}[asked.peer]
    training = open_dataset(asked.data, asked.train, on_bad="skip")
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        find = train(training, asked.minutes, Path(folder))
        minutes = (time.monotonic() - started) / 60
        test = open_dataset(asked.data, asked.test, class_names=training.class_names, on_bad="skip")
        coco = evaluate([find(load_image(sample)) for sample in test], test, test.class_names)["coco"]
    print(machine())
    figures = {key: value for key, value in coco.items() if isinstance(value, float)}
    print(json.dumps({"peer": asked.peer, "minutes": round(minutes, 1), **figures}))


if __name__ == "__main__":
    main()
