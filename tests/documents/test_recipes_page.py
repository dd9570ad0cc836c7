"""The tables of docs/recipes.md are what the code does. `python tests/documents/test_recipes_page.py` prints them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.presets import RECIPES, fitting, resolve
from multibox.settings import parse_assignments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


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


def losses(config: Config) -> tuple[str, str]:
    loss = config.loss
    name = {"focal": f"focal {loss.alpha:g}/{loss.gamma:g}", "cross_entropy": "cross-entropy"}[loss.classification]
    per = {
        "positives": "over the batch's positives",
        "images": "over each image's positives, averaged",
        "selected": "x 4 over the chosen anchors; boxes over positives",
        "anchors": "over all anchors",
    }[loss.normalizer]
    return f"{name} + {loss.localization.replace('_', ' ')}", per


def optimiser(config: Config) -> str:
    train = config.train
    text = f"{train.optimizer} {train.lr:g}, batch {train.batch_size}"
    text += f", momentum {train.momentum:g}" if train.optimizer == "sgd" else ""
    text += f", decay {train.weight_decay:g}"
    spared = [name for name, share in (("biases", train.bias_decay), ("norms", train.norm_decay)) if not share]
    text += f" (not {' and '.join(spared)})" if spared and train.weight_decay else ""
    text += f", biases x {train.bias_lr:g}" if train.bias_lr != 1 else ""
    text += f", L2 {config.loss.l2_penalty:g} in the loss" if config.loss.l2_penalty else ""
    return text + ("" if train.ema == "none" else f", EMA {train.ema:g}")


def schedule(config: Config) -> tuple[str, ...]:
    train = config.train
    long = f"{train.epochs} epochs" if train.epochs != "none" else f"{train.steps} steps"
    rate = train.schedule
    if train.schedule == "steps":
        rate = f"x {', '.join(f'{f:g}' for f in train.factors)} from {', '.join(f'{b:.2%}' for b in train.boundaries)}"
    rate += f"; floor {train.minimum_lr:g}" if train.minimum_lr else ""
    most = f"{train.warmup_steps} steps" if train.warmup_steps != "none" else ""
    return long, rate, f"{train.warmup:.2%}" if train.warmup else "", most


def boxes(config: Config) -> tuple[str, ...]:
    post = config.post
    more = [
        f"{post.max_per_class} per class" if post.max_per_class != "none" else "",
        f"sides > {post.min_size:g}" if post.min_size else "",
        "" if post.multi_label else "one class per anchor",
    ]
    return (
        f"> {post.score_threshold:g}",
        f"{post.pre_nms_topk}",
        f"IoU {'>=' if post.nms_inclusive else '>'} {post.nms_threshold:g}",
        f"{post.max_detections}",
        post.clip.replace("_nms", " NMS"),
        ", ".join(part for part in more if part),
    )


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Config], tuple[str, ...]]]] = {
    "How are anchors matched and negatives chosen?": (
        ("recipe", "matching", "negatives"),
        lambda config: (matching(config), negatives(config)),
    ),
    "Which losses, and how are they averaged?": (("recipe", "losses", "normalisation"), losses),
    "Which optimiser and augmentation?": (
        ("recipe", "optimiser and learning rate", "augmentation"),
        lambda config: (optimiser(config), config.train.augmentation),
    ),
    "How long, and which schedule?": (
        ("recipe", "length", "learning rate", "warm-up", "at most"),
        schedule,
    ),
    "How do outputs become boxes?": (
        ("recipe", "score", "candidates per class", "suppressed", "kept", "clipped", "also"),
        boxes,
    ),
}
"""Heading of each table on the page, its columns, and its cells for one recipe."""


def table(heading: str) -> str:
    columns, cells = TABLES[heading]
    rows = [columns, ("---",) * len(columns)]
    rows += [(f"`{recipe}`", *cells(resolve(fitting(recipe)[0], recipe))) for recipe in RECIPES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@pytest.mark.parametrize("heading", TABLES)
def test_the_tables_are_the_code(heading):
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    assert table(heading) in section, "paste the output of python tests/documents/test_recipes_page.py"


def test_every_setting_that_is_named_exists():
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:model|anchors|matching|loss|train|post)\.\w+)", page))
    assert {"loss.normalizer", "post.nms_inclusive", "train.warmup_steps"} <= named
    for setting in named:
        section, name = setting.split(".")
        assert hasattr(getattr(Config(), section), name), setting
    examples = re.findall(r"--set '?([\w.]+=[^`'\s]+)", page)
    assert examples
    # Both tables of usual names: an example holds one value, and others in parentheses
    examples += re.findall(r"`((?:model|matching|loss)\.\w+=[^`\s]+)`", page)
    for example in examples:
        Config().updated(parse_assignments([example]))


def test_a_recipe_for_another_network_is_refused_as_the_page_says():
    with pytest.raises(ConfigError, match="was made for"):
        resolve("tinyssd", "caffe")


if __name__ == "__main__":
    for title in TABLES:
        sys.stdout.write(f"## {title}\n\n{table(title)}\n\n")
