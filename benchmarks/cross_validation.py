"""Small data scored whole: each fold's images are found by a detector that was trained on the others.

`python benchmarks/cross_validation.py DATA --preset P --weights W --folds 5 --steps N --rename sofa=couch` trains once
a fold by the preset's default recipe, for N steps without validation, and scores all images together.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peers import machine

from multibox import api
from multibox.data.convert import write_dataset
from multibox.data.formats import open_dataset
from multibox.data.images import load_image
from multibox.evaluation.report import evaluate
from multibox.inference.detector import open_checkpoint
from multibox.settings import parse_assignments
from multibox.structures import Detections

LOW = 0.01
"""Scores from here on are kept, as average precision wants them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train once a fold, score once, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="settings, such as train.lr=1e-4")
    parser.add_argument("--rename", nargs="*", default=[], help="class names of DATA, such as sofa=couch")
    asked = parser.parse_args(arguments)
    data = open_dataset(asked.data, rename=dict(pair.split("=") for pair in asked.rename), on_bad="skip")
    # Neighbours in a listing may be of one scene or class
    order = np.random.default_rng(0).permutation(len(data))
    found: dict[int, Detections] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for fold in range(asked.folds):
            held = order[fold :: asked.folds].tolist()
            folder, run = Path(scratch) / f"data-{fold}", Path(scratch) / f"run-{fold}"
            write_dataset({"train": data.subset(int(row) for row in order if row not in held)}, folder, "voc")
            changes = {"train.steps": asked.steps, "train.batch_size": 16}
            changes |= parse_assignments(asked.set)
            options = {"out": run, "val_split": "none", "weights": asked.weights, "changes": changes}
            api.train(folder, preset=asked.preset, **options)
            detector = open_checkpoint(run / "last.safetensors")
            for row in held:
                found[row] = detector.predict(load_image(data[row]), threshold=LOW)
            print(f"fold {fold + 1} of {asked.folds}", flush=True)
    coco = evaluate([found[row] for row in range(len(data))], data, data.class_names)["coco"]
    print(machine())
    print(json.dumps({"images": len(data), **{key: coco[key] for key in ("AP", "AP50", "AP75")}}))


if __name__ == "__main__":
    main()
