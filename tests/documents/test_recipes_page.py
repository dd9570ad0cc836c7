"""The table of docs/recipes.md is what the code does. `python tests/documents/test_recipes_page.py` prints it anew."""

import re
import sys
from pathlib import Path

import pytest

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.presets import RECIPES, fitting, resolve
from multibox.settings import parse_assignments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
HEADINGS = (
    "recipe",
    "matching",
    "negatives",
    "losses",
    "optimiser",
    "schedule",
    "augmentation",
    "from answers to boxes",
)


def matching(config: Config) -> str:
    rule = config.matching
    return f"{rule.matcher}, IoU {'>=' if rule.inclusive else '>'} {rule.threshold:.3g}"


def negatives(config: Config) -> str:
    loss = config.loss
    if loss.negative_ratio == "all":
        return "all"
    some = loss.negative_overlap != "any"
    text = f"{loss.negative_ratio:g} per positive, "
    text += f"of those below IoU {loss.negative_overlap:g}" if some else "of all unmatched"
    return text + (f", at least {loss.minimum_negatives}" if loss.minimum_negatives else "")


def losses(config: Config) -> str:
    loss = config.loss
    name = {"focal": f"focal {loss.alpha:g}/{loss.gamma:g}", "cross_entropy": "cross-entropy"}[loss.classification]
    per = {
        "positives": "over the batch's positives",
        "pictures": "over each picture's positives, averaged",
        "selected": "x 4 over the chosen anchors; boxes over positives",
        "anchors": "over all anchors",
    }[loss.normalizer]
    penalty = f"; L2 {loss.l2_penalty:g} in the loss" if loss.l2_penalty else ""
    return f"{name} + {loss.localization.replace('_', ' ')}, {per}{penalty}"


def optimiser(config: Config) -> str:
    train = config.train
    text = f"{train.optimizer} {train.lr:g}, batch {train.batch_size}"
    text += f", momentum {train.momentum:g}" if train.optimizer == "sgd" else ""
    text += f", decay {train.weight_decay:g}"
    spared = [name for name, share in (("biases", train.bias_decay), ("norms", train.norm_decay)) if not share]
    text += f" (not {' and '.join(spared)})" if spared and train.weight_decay else ""
    text += f", biases x {train.bias_lr:g}" if train.bias_lr != 1 else ""
    return text + ("" if train.ema == "none" else f", EMA {train.ema:g}")


def schedule(config: Config) -> str:
    train = config.train
    long = f"{train.epochs} epochs" if train.epochs != "none" else f"{train.steps} steps"
    warm = f"warm-up {train.warmup:.2%}" if train.warmup else ""
    warm += f", at most {train.warmup_steps} steps" if train.warmup_steps != "none" else ""
    falls = train.schedule
    if train.schedule == "steps":
        falls = f"x {', '.join(f'{f:g}' for f in train.factors)} from {', '.join(f'{b:.2%}' for b in train.boundaries)}"
    floor = f"floor {train.minimum_lr:g}" if train.minimum_lr else ""
    return "; ".join(part for part in (long, falls, warm, floor) if part)


def boxes(config: Config) -> str:
    post = config.post
    sign = ">=" if post.nms_inclusive else ">"
    text = (
        f"score > {post.score_threshold:g}, best {post.pre_nms_topk} a class, IoU {sign} {post.nms_threshold:g} goes, "
    )
    text += f"{post.max_per_class} a class, " if post.max_per_class != "none" else ""
    text += f"{post.max_detections} in all; cut {post.clip.replace('_nms', ' NMS')}"
    text += f"; sides > {post.min_size:g}" if post.min_size else ""
    return text + ("" if post.multi_label else "; one class an anchor")


def table() -> str:
    rows = [HEADINGS, ("---",) * len(HEADINGS)]
    for recipe in RECIPES:
        config = resolve(fitting(recipe)[0], recipe)
        cells = [column(config) for column in (matching, negatives, losses, optimiser, schedule)]
        rows.append((f"`{recipe}`", *cells, config.train.augmentation, boxes(config)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_table_is_the_code():
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "paste the output of python tests/documents/test_recipes_page.py"
    )


def test_every_setting_that_is_named_exists():
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:model|anchors|matching|loss|train|post)\.\w+)", page))
    assert {"loss.normalizer", "post.nms_inclusive", "train.warmup_steps"} <= named
    for setting in named:
        section, name = setting.split(".")
        assert hasattr(getattr(Config(), section), name), setting
    examples = re.findall(r"--set '?([\w.]+=[^`'\s]+)", page)
    assert examples
    for example in examples:
        Config().updated(parse_assignments([example]))


def test_a_recipe_for_another_network_is_refused_as_the_page_says():
    with pytest.raises(ConfigError, match="was made for"):
        resolve("tinyssd", "caffe")


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
