"""A plausible report of N images x C classes, with images on disk and detections, without any training."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from multibox.analysis.calibration import describe_calibration, scored_detections
from multibox.analysis.confusion import describe_confusions, find_confusions
from multibox.analysis.error_kinds import KINDS, MEANINGS, count_errors, error_costs, find_errors, match
from multibox.analysis.image_scores import certain_mistakes, describe_files, tally_images, worst_images
from multibox.evaluation.report import evaluate
from multibox.evaluation.table import columns
from multibox.evaluation.voc_metrics import precision_recall
from multibox.pages.page import plain
from multibox.structures import Detections, Sample, Size, pack

LEAST = 0.3
COLOURS = ("crimson", "royalblue", "seagreen", "darkorange", "orchid", "gold")


def make_sample(
    folder: Path, images: int, names: tuple[str, ...], *, seed=0, size=(320, 240), files=12, called="{}.jpg"
):
    """Return report, dataset and detections; `files` distinct images are drawn and used in turn."""
    rng = np.random.default_rng(seed)
    width, height = size
    folder.mkdir(parents=True, exist_ok=True)
    truths = [_objects(rng, len(names), width, height) for _ in range(files)]
    paths = [_draw(folder / f"{place:03}.jpg", rng, size, *truth) for place, truth in enumerate(truths)]
    samples = []
    for place in range(images):
        boxes, labels = truths[place % files]
        samples.append(
            Sample(
                name=called.format(f"photos/{place:05}"),
                path=paths[place % files],
                boxes_xyxy=boxes,
                labels=labels,
                difficult=np.zeros(len(labels), bool),
                crowd=np.zeros(len(labels), bool),
                size=Size(height, width),
            )
        )
    dataset = pack(samples, root=folder, format="voc", split="val", class_names=names)
    detections = [_detect(rng, *truths[place % files], names, width, height) for place in range(images)]
    return describe(dataset, detections, names), dataset, detections


def _objects(rng, classes: int, width: int, height: int):
    count = int(rng.integers(2, 7))
    sides = rng.uniform(18, 90, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], 1).round(1), rng.integers(0, classes, count)


def _draw(path: Path, rng, size, boxes, labels) -> Path:
    noise = Image.fromarray(rng.integers(120, 160, (size[1] // 8, size[0] // 8, 3), np.uint8)).resize(size)
    pen = ImageDraw.Draw(noise)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        pen.ellipse(box, fill=COLOURS[label % len(COLOURS)])
    noise.save(path, quality=85)
    return path


def _detect(rng, boxes, labels, names, width: int, height: int) -> Detections:
    """Return the objects as a mediocre detector sees them: moved, confused, doubled, missed, invented."""
    keep = rng.random(len(labels)) < 0.85
    moved = boxes[keep] + rng.normal(0, 4, (int(keep.sum()), 4))
    seen = np.where(rng.random(int(keep.sum())) < 0.12, (labels[keep] + 1) % len(names), labels[keep])
    doubled = rng.random(len(moved)) < 0.1
    invented = rng.uniform(0, 1, (int(rng.integers(0, 3)), 4)) * (width / 2, height / 2, width / 2, height / 2)
    invented[:, 2:] = invented[:, :2] + 20 + invented[:, 2:] / 3
    found = np.concatenate([moved, moved[doubled] + rng.normal(0, 6, (int(doubled.sum()), 4)), invented])
    classes = np.concatenate([seen, seen[doubled], rng.integers(0, len(names), len(invented))])
    scores = np.concatenate([rng.beta(6, 2, len(moved)), rng.beta(2, 4, int(doubled.sum()) + len(invented))])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 2)
    order = np.argsort(-scores)
    return Detections(found[order].astype(np.float32), scores[order].astype(np.float32), classes[order], names)


def describe(dataset, detections, names: tuple[str, ...], bootstrap: int = 20) -> dict:
    """Return the report as `make_report` would; slices, suspects, duplicates and training are made up."""
    table = columns(detections, dataset, names)
    lowest = np.full(len(names), LEAST)
    matches = match(table)
    errors = find_errors(table, matches)
    mistakes, examples = certain_mistakes(table, errors)
    counts, costs = count_errors(errors), error_costs(table, matches, errors)
    tally = tally_images(table, matches, lowest)
    metrics = evaluate(detections, dataset, names, bootstrap=bootstrap)
    return plain(
        {
            "model": "runs/cells",
            "data": ["data/cells"],
            "split": "val",
            "images": len(dataset),
            "objects": len(dataset.labels),
            "classes": list(names),
            "made": {
                "command": "multibox report runs/cells data/cells --split val",
                "time": "2026-11-29T01:23:45+00:00",
                "multibox": "0.1",
                "versions": {"python": "3.12.3", "torch": "2.11.0", "numpy": "2.3.1"},
                "hardware": {"processor": "a processor", "cores": 2, "device": "cpu", "gpu": None},
                "fingerprint": "sha256:0123456789abcdef",
            },
            "metrics": metrics,
            "curves": {name: _curve(one) for name, one in precision_recall(detections, dataset, names).items()},
            "thresholds": {name: best and {**best, "model": LEAST} for name, best in metrics["thresholds"].items()},
            "confusion": describe_confusions(find_confusions(table, lowest), names, lowest),
            "errors": {
                "ap50": metrics["coco"]["AP50"],
                "kinds": [
                    {
                        "kind": k,
                        "count": counts[k],
                        "ap_cost": costs[k],
                        "meaning": MEANINGS[k],
                        "examples": examples[k],
                    }
                    for k in KINDS
                ],
            },
            "slices": _slices(len(dataset.labels)),
            "calibration": describe_calibration(scored_detections(table, matches.right, matches.wrong), names),
            "files": describe_files(dataset, list(dataset.sizes), tally),
            "worst": worst_images(tally),
            "mistakes": mistakes,
            "suspects": _suspects(dataset, names),
            "duplicates": [
                {
                    "severity": "error",
                    "kind": "leaked-image",
                    "file": "photos/00003.jpg",
                    "where": "train/00017.jpg",
                    "what": "the same image stands in train and in val",
                    "why": "the metrics flatter",
                    "fix": "remove it from one of them",
                }
            ],
            "training": _training(),
            "relabel": {"folder": "relabel", "files": ["voc", "label-studio.json", "cvat.xml"]},
        }
    )


def _curve(curve) -> dict:
    places = np.unique(np.linspace(0, len(curve.scores) - 1, min(200, len(curve.scores))).astype(int))
    values = {"recall": curve.recall, "precision": curve.precision, "scores": curve.scores, "f1": curve.f1}
    return {name: each[places] for name, each in values.items()} | {
        "detections": places + 1,
        "objects": curve.objects,
    }


def _slices(objects: int) -> dict:
    def rows(*names: str) -> list[dict]:
        recalls = np.linspace(0.45, 0.92, len(names)).tolist()
        return [
            {"name": name, "objects": objects, "recall": recall, "ap50": recall - 0.1, "found": 9, "missed": 4}
            for name, recall in zip(names, recalls, strict=True)
        ]

    return {
        "size": rows("small", "medium", "large"),
        "aspect": rows("tall", "square", "wide"),
        "level": rows("level 0 (8 px)", "level 1 (16 px)", "level 2 (32 px)", "level 3 (64 px)"),
        "crowding": rows("alone", "near another one", "overlapping"),
        "border": rows("inside", "cut by the border"),
    }


def _suspects(dataset, names: tuple[str, ...], most: int = 40) -> list[dict]:
    suspects = []
    for place in range(min(most, len(dataset))):
        sample, kind = dataset[place], ("missing", "location", "class")[place % 3]
        box, name = sample.boxes_xyxy[0], names[sample.labels[0]]
        suspects.append(
            {
                "file": sample.name,
                "position": place,
                "kind": kind,
                "rank": place + 1,
                "suspicion": 1 - place / most,
                "box": None if kind == "missing" else box,
                "name": None if kind == "missing" else name,
                "suggested_box": box + (6 if kind == "location" else 0),
                "suggested_name": names[(sample.labels[0] + (kind == "class")) % len(names)],
                "evidence": ["predictions", "ledger"][: 1 + place % 2],
                "why": "The model finds it there with a score of 0.97.",
            }
        )
    return suspects


def _training() -> list[dict]:
    return [
        {
            "epoch": epoch,
            "step": 50 * epoch,
            "learning_rate": 0.001 * min(1, epoch / 3),
            "total_loss": 4 / epoch + 0.4,
            "cross_entropy_loss": 3 / epoch + 0.3,
            "location_loss": 1 / epoch + 0.1,
            "val_loss": 4.4 / epoch + 0.5 if epoch % 2 == 0 else None,
            "val_map50": 0.8 - 0.7 / epoch if epoch % 2 == 0 else None,
            "class_error": 0.2 / epoch,
            "seconds": 12.5,
        }
        for epoch in range(1, 21)
    ]
