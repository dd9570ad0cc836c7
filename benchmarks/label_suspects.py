"""How many of labels that were damaged on purpose are found among the label suspects, beside cleanlab's scores.

    python benchmarks/label_suspects.py judge MODEL DATA --split test [--seeds 5]
    python benchmarks/label_suspects.py damage DATA OUT [--seed 0]
    python benchmarks/label_suspects.py trained CLEAN_RUN DATA DAMAGED_RUN DAMAGED --split train

`judge` damages the labels of a split in memory, 5 % of the boxes: one third is moved by 0.4 to 0.7 of its size, one
third deleted, one third given another class. MODEL was trained on clean labels of other images. `damage` writes such a
copy of a data set as VOC, with a list of what was done beside it; train a model on it (`multibox train OUT --minutes
8`), and one on DATA; `trained` then judges the suspects among the very labels that the second model learned from.

Suspects that were suspects before the damage are left out, if a box of theirs overlaps one of those by IoU above 0.5.
Of the others the first N count, where N labels were damaged. A suspect is right if a box of it overlaps a damaged
label, where it was or where it is, by IoU above 0.5. Precision is the number of right ones over N.
"""

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import multibox
from multibox.analysis.ledger import read_ledger
from multibox.analysis.suspects import find_suspects
from multibox.api import open_for
from multibox.data.convert import write_dataset
from multibox.data.formats import find_splits, open_dataset
from multibox.errors import DataError
from multibox.inference.detector import find_all, open_checkpoint
from multibox.structures import Dataset, Detections, iou

SHARE = 0.05
KINDS = ("moved", "deleted", "swapped")
SAME_PLACE = 0.5
CLEANLAB_SCORES = (0.95, 0.5)
"""Least scores of predictions that cleanlab looks at: its own, and one that suits the scores of this detector."""


def damage(dataset: Dataset, seed: int) -> tuple[Dataset, list[dict[str, Any]]]:
    """Return a copy with damaged labels, and what was done."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.starts))
    boxes, labels = dataset.boxes_xyxy.copy(), dataset.labels.copy()
    keep, log = np.ones(len(labels), np.bool_), []
    for number, row in enumerate(rng.permutation(len(labels))[: round(SHARE * len(labels))].tolist()):
        kind = KINDS[number % 3]
        if kind == "moved":
            boxes[row] = moved(boxes[row], dataset.sizes[int(image[row])], rng)
        elif kind == "deleted":
            keep[row] = False
        else:
            labels[row] = (labels[row] + rng.integers(1, len(dataset.class_names))) % len(dataset.class_names)
        places = [dataset.boxes_xyxy[row].tolist(), *([] if kind == "deleted" else [boxes[row].tolist()])]
        log.append({"file": dataset.image_names[int(image[row])], "kind": kind, "places": places})
    return replace(dataset, boxes_xyxy=boxes, labels=labels).keep_boxes(keep), log


def moved(box: np.ndarray, size: Any, rng: np.random.Generator) -> np.ndarray:
    """Return the box 0.4 to 0.7 of its size away in some direction, inside the image where 50 tries allow it."""
    edges = np.array([size.width, size.height] * 2)
    for _ in range(50):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.7)
        step = far * (box[2:] - box[:2]) * (np.cos(angle), np.sin(angle))
        there = np.round(box + np.tile(step, 2))
        if (there >= 0).all() and (there <= edges).all():
            break
    return np.clip(there, 0, edges)


def places(suspect: dict[str, Any]) -> list[Any]:
    return [box for box in (suspect["box"], suspect["suggested_box"]) if box is not None]


def near(some: list[Any], others: list[Any]) -> bool:
    if not some or not others:
        return False
    return bool((iou(np.array(some)[:, None], np.array(others)[None]) > SAME_PLACE).any())


def precision(after: list[Any], before: list[Any], log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the precision at the number damaged, the right suspects of each kind, and what damage was found."""
    old, done = defaultdict(list), defaultdict(list)
    for suspect in before:
        old[suspect["file"]] += places(suspect)
    for number, one in enumerate(log):
        done[one["file"]].append((number, one["places"]))
    new = [one for one in after if not near(places(one), old[one["file"]])][: len(log)]
    of_kind, right, found = Counter[str](), Counter[str](), set[int]()
    for one in new:
        hits = [number for number, there in done[one["file"]] if near(places(one), there)]
        of_kind[one["kind"]] += 1
        right[one["kind"]] += bool(hits)
        found.update(hits)
    return {
        "precision": sum(right.values()) / len(log),
        "kinds": {kind: f"{right[kind]} of {of_kind[kind]}" for kind in sorted(of_kind)},
        "found": dict(Counter(log[number]["kind"] for number in found)),
        "damaged": len(log),
    }


def cleanlab_suspects(detections: list[Detections], dataset: Dataset, least: float) -> list[dict[str, Any]]:
    """Return the boxes that cleanlab scores lowest, all three kinds in one list."""
    from cleanlab.object_detection import rank

    labels = [{"bboxes": sample.boxes_xyxy, "labels": sample.labels} for sample in dataset]
    columns = [np.column_stack([one.boxes, one.scores]).astype(np.float64) for one in detections]
    count = range(len(dataset.class_names))
    predictions = [
        np.array([table[one.labels == label] for label in count] + [None], dtype=object)[:-1]
        for one, table in zip(detections, columns, strict=True)
    ]
    given: dict[str, Any] = {"labels": labels, "predictions": predictions, "alpha": 0.9}
    scores = {
        "missing": rank.compute_overlooked_box_scores(**given, high_probability_threshold=least),
        "class": rank.compute_swap_box_scores(**given, high_probability_threshold=least),
        "location": rank.compute_badloc_box_scores(**given, low_probability_threshold=0.5),
    }
    found: list[dict[str, Any]] = []
    for kind, per_image in scores.items():
        for image, values in enumerate(per_image):
            seen = np.concatenate(predictions[image])
            for row, score in enumerate(np.asarray(values, np.float64).tolist()):
                if np.isfinite(score) and score < 1:
                    box = (seen[row, :4] if kind == "missing" else dataset[image].boxes_xyxy[row]).tolist()
                    file = dataset.image_names[image]
                    found.append(
                        {"file": file, "kind": kind, "box": box, "suggested_box": None, "suspicion": 1 - score}
                    )
    return sorted(found, key=lambda one: -one["suspicion"])


def shown(results: dict[str, list[dict[str, Any]]]) -> float:
    """Print a line for each way, and return the median precision of the first."""
    return [show(who, some) for who, some in results.items()][0]  # noqa: RUF015 - all are printed


def show(who: str, results: list[dict[str, Any]]) -> float:
    values = [one["precision"] for one in results]
    last = results[-1]
    print(f"{who:26} precision {np.median(values):.2f} (from {min(values):.2f} to {max(values):.2f}), "
          f"{last['damaged']} damaged; the last: right {last['kinds']}, found {last['found']}")  # fmt: skip
    return float(np.median(values))


def rivals(after: tuple[Any, Dataset], before: tuple[Any, Dataset], log: list[Any]) -> dict[str, Any]:
    """Return the results of cleanlab; of as many suspects before as the damaged set has labels, at most."""
    results: dict[str, Any] = {}
    for least in CLEANLAB_SCORES:
        old = cleanlab_suspects(*before, least)[: 4 * len(log)]
        results[f"cleanlab, scores from {least}"] = precision(cleanlab_suspects(*after, least), old, log)
    return results


def judge(arguments: argparse.Namespace) -> bool:
    detector = open_checkpoint(arguments.model)
    dataset = open_for(detector, arguments.data, split=arguments.split)
    detections = find_all(detector, dataset)
    names = dataset.class_names
    results = defaultdict(list)
    for seed in range(arguments.seeds):
        bad, log = damage(dataset, seed)
        before, after = find_suspects(detections, dataset, names), find_suspects(detections, bad, names)
        results["multibox"].append(precision(after, before, log))
        results["multibox, none left out"].append(precision(after, [], log))
        for who, result in rivals((detections, bad), (detections, dataset), log).items():
            results[who].append(result)
    return shown(results) >= 0.6


def trained(arguments: argparse.Namespace) -> bool:
    log = json.loads(Path(f"{arguments.damaged}.json").read_text())[arguments.split]
    seen, suspects = [], []
    for run, data in ((arguments.clean_run, arguments.data), (arguments.damaged_run, arguments.damaged)):
        detector = open_checkpoint(run)
        dataset = open_for(detector, data, split=arguments.split)
        seen.append((find_all(detector, dataset), dataset))
        try:
            ledger = read_ledger(Path(run) if Path(run).is_dir() else Path(run).parent)
        except DataError:
            ledger = None
        suspects.append([find_suspects(*seen[-1], dataset.class_names, ledger=used) for used in (ledger, None)])
    (old, old_alone), (new, new_alone) = suspects
    results = {
        "multibox": precision(new, old, log),
        "multibox, no ledger": precision(new_alone, old_alone, log),
        "multibox, none left out": precision(new, [], log),
        **rivals(seen[1], seen[0], log),
    }
    return shown({who: [result] for who, result in results.items()}) >= 0.6


def write(arguments: argparse.Namespace) -> bool:
    splits: dict[str, Dataset] = {}
    logs: dict[str, Any] = {}
    for number, split in enumerate(find_splits(arguments.data)):
        if split in ("train", "val", "test"):
            splits[split], logs[split] = damage(open_dataset(arguments.data, split), 10 * arguments.seed + number)
    write_dataset(splits, arguments.out, "voc")
    Path(f"{arguments.out}.json").write_text(json.dumps(logs))
    print(f"wrote {arguments.out} and {arguments.out}.json: { ({split: len(log) for split, log in logs.items()}) }")
    return True


def main() -> None:
    """Run one of the three; exit with 1 if precision is below 0.6."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, function, places in (
        ("judge", judge, ("model", "data")),
        ("damage", write, ("data", "out")),
        ("trained", trained, ("clean_run", "data", "damaged_run", "damaged")),
    ):
        verb = verbs.add_parser(name)
        for place in places:
            verb.add_argument(place)
        verb.add_argument("--split", default="test" if name == "judge" else "train")
        verb.add_argument("--seeds", type=int, default=5)
        verb.add_argument("--seed", type=int, default=0)
        verb.set_defaults(run=function)
    arguments = parser.parse_args()
    print(f"multibox {multibox.__version__}")
    raise SystemExit(0 if arguments.run(arguments) else 1)


if __name__ == "__main__":
    main()
