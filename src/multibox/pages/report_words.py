"""What a report says in sentences: its verdict, and the short answers to ten questions that users ask."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

LESS = 0.1
"""Found share and AP50 by which small objects must lie below large ones."""
GAIN = 0.02
"""F1 that another threshold must add before it is advised."""
FEW = 20
"""Objects of a group or class from which its recall or its best threshold is more than chance."""
MISCALIBRATED = 0.05
"""Expected calibration error from which a score is no probability."""
NO_OBJECTS = "It cannot be told: the split has no objects."
MOST_NAMED = 4
"""Classes whose thresholds a sentence names."""
DIVIDED = ("classification", "localization", "both", "duplicate", "background", "missed")
"""Kinds of errors that exclude each other; the other two of a report sum them up."""

Report = Mapping[str, Any]


class Line(NamedTuple):
    """One sentence of the page, and the section that shows more."""

    text: str
    link: str
    """Id of a section."""


def part(report: Report, *names: str) -> dict[str, Any]:
    """Return a part of a report by its names from outside in; an empty one where the report lacks it."""
    found: Any = report
    for name in names:
        found = found.get(name) or {}
    return found


def rows(report: Report, *names: str) -> list[Any]:
    """Return a list of a report as `part` does."""
    return part(report, *names[:-1]).get(names[-1]) or []


def verdict(report: Report) -> list[Line]:
    """Return what a report says first, on its page and on the console: at most seven lines.

    They are about score, costliest error, weakest class, thresholds, calibration, labels and leaks.
    """
    lines = [
        Line(score_in_words(report), "metrics"),
        Line(costliest_error(report), "errors"),
        Line(weakest_class(report), "metrics"),
        Line(threshold_advice(report), "thresholds"),
        Line(miscalibration(report), "calibration"),
        Line(label_suspects(report), "suspects"),
        Line(leaks(report), "duplicates"),
    ]
    return [line for line in lines if line.text]


def answers(report: Report) -> list[dict[str, str]]:
    """Return question, short answer and section of the ten questions."""
    known = [(question, link, answer(report)) for question, link, answer in QUESTIONS]
    if _is_empty(report):
        known = [(question, link, text if link in WITHOUT_OBJECTS else NO_OBJECTS) for question, link, text in known]
    return [{"question": question, "link": link, "answer": text} for question, link, text in known]


def _is_empty(report: Report) -> bool:
    return report.get("objects") == 0


def own_thresholds(report: Report) -> str:
    """Return the lowest score that the model reports of each class in brackets, with a space before; or nothing."""
    known = {name: f"{value:.2f}" for name, value in part(report, "confusion", "threshold").items()}
    values = sorted(set(known.values()))
    if not values:
        return ""
    if len(values) == 1:
        return f" ({values[0]})"
    if len(known) > MOST_NAMED:
        return f" ({values[0]} to {values[-1]}, by class)"
    return f" ({', '.join(f'{name} {value}' for name, value in known.items())})"


def score_in_words(report: Report) -> str:
    """Return the AP with its interval, and what both mean."""
    coco = part(report, "metrics", "coco")
    average, loose = coco.get("AP"), coco.get("AP50")
    if average is None:
        return "There is no AP: no image of this data has an object that counts."
    text = f"AP is {average:.3f} (AP50 {loose:.3f})" if loose is not None else f"AP is {average:.3f}"
    ends = part(report, "metrics", "intervals", "coco").get("AP")
    if ends is None:
        return f"{text} on {_counted(report.get('images') or 0, 'image')}."
    return (
        f"{text} on {_counted(report.get('images') or 0, 'image')}. With other images of this kind it would likely lie "
        f"between {ends[0]:.3f} and {ends[1]:.3f} (95 %): a smaller difference between two models may be chance."
    )


def costliest_error(report: Report) -> str:
    """Return the kind of error that costs most AP50."""
    kinds = [kind for kind in rows(report, "errors", "kinds") if kind["kind"] in DIVIDED]
    kinds = [kind for kind in kinds if kind["count"] and (kind["ap_cost"] or 0) > 0]
    if not kinds:
        return "No kind of error costs any AP50." if report.get("objects") else ""
    worst = max(kinds, key=lambda kind: kind["ap_cost"])
    text = (
        f"The costliest error is {worst['kind']!r}: {_counted(worst['count'], 'case')}, and without them AP50 would be "
        f"{worst['ap_cost']:.3f} higher (detections count down to a score of 0 here). {worst.get('meaning') or ''}"
    )
    return text.strip()


def weakest_class(report: Report) -> str:
    """Return the class of lowest AP, beside the mean of the others; nothing where no class has an AP."""
    per_class = part(report, "metrics", "coco", "per_class")
    scores = {name: one.get("AP") for name, one in per_class.items() if one.get("AP") is not None}
    if not scores:
        return ""
    if len(scores) == 1:
        (name,) = scores
        return f"There is one class with objects, {name!r}: its AP is the AP."
    # The AP of a few objects is chance, so it says little of a class
    frequent = {name: ap for name, ap in scores.items() if (part(report, "curves", name).get("objects") or 0) >= FEW}
    chosen = len(frequent) < len(scores) and len(frequent) > 1
    scores = frequent if chosen else scores
    name = min(scores, key=lambda one: scores[one])
    others = float(np.mean([score for other, score in scores.items() if other != name]))
    objects = part(report, "curves", name).get("objects")
    many = f" ({_counted(objects, 'object')})" if objects is not None else ""
    which = f"Of the {len(scores)} classes with {FEW} objects or more, the weakest" if chosen else "The weakest class"
    return f"{which} is {name!r}{many}: AP {scores[name]:.3f}, where the others have {others:.3f} on average."


def costliest_class(report: Report) -> str:
    """Return what `weakest_class` says, or that it cannot be told."""
    return weakest_class(report) or "It cannot be told: no class has an AP."


class Gain(NamedTuple):
    """What another threshold gives a class."""

    name: str
    own: float
    """The model's threshold."""
    best: float
    before: float
    """F1 at the model's threshold."""
    after: float
    """F1 at the best one."""


def gains(report: Report) -> list[Gain]:
    """Return the classes of enough objects that another threshold helps, those with most objects times gain first."""
    found: list[Gain] = []
    curves = part(report, "curves")
    for name, best in part(report, "thresholds").items():
        if best is None or best.get("model") is None or name not in curves or not _enough(curves[name]):
            continue
        own = f1_at(curves[name], float(best["model"]))
        # The page shows two digits, so no other difference could be acted on
        is_other = f"{best['model']:.2f}" != f"{best['threshold']:.2f}"
        if is_other and best["f1"] - own > GAIN:
            found.append(Gain(name, float(best["model"]), float(best["threshold"]), own, float(best["f1"])))
    return sorted(found, key=lambda one: (one.before - one.after) * curves[one.name].get("objects", 1))


def f1_at(curve: Mapping[str, Any], score: float) -> float:
    """Return F1 of the detections of at least this score, from a report's curve; 0 where there is none."""
    reached = int((np.asarray(curve["scores"], np.float64) >= score).sum())
    return float(curve["f1"][reached - 1] or 0) if reached else 0.0


def _enough(curve: Mapping[str, Any]) -> bool:
    return curve.get("objects", FEW) >= FEW


def threshold_advice(report: Report) -> str:
    """Return whether the model's thresholds are those of best F1, and which one to change first."""
    thresholds, curves = part(report, "thresholds"), part(report, "curves")
    if not any(best and _enough(curves.get(name) or {}) for name, best in thresholds.items()):
        return f"No threshold can be advised: no class has right detections and at least {FEW} objects."
    better = gains(report)
    if not better:
        return (
            f"The thresholds are right: no other one raises the F1 of a class of {FEW} objects or more by more than "
            f"{GAIN:g}."
        )
    name, own, best, before, after = better[0]
    more = f" {_counted(len(better) - 1, 'more class', 'more classes')} would gain, too." if len(better) > 1 else ""
    return (
        f"For {name!r} a threshold of {best:.2f} instead of {own:.2f} raises F1 from {before:.2f} to {after:.2f}.{more}"
    )


def label_suspects(report: Report) -> str:
    """Return how many labels look wrong, by kind."""
    suspects = report.get("suspects")
    if suspects is None:
        return ""
    if not suspects:
        return "" if _is_empty(report) else "No label looks wrong."
    words = {"missing": "perhaps missing", "location": "perhaps badly placed", "class": "perhaps of the wrong class"}
    counts = {kind: sum(one["kind"] == kind for one in suspects) for kind in words}
    listed = ", ".join(f"{count:,} {words[kind]}" for kind, count in counts.items() if count)
    return f"{_counted(len(suspects), 'label is', 'labels are')} suspect: {listed}. Look at the first ones."


def leaks(report: Report) -> str:
    """Return whether images stand in two splits or twice; nothing where none does."""
    kinds = [one.get("kind") for one in rows(report, "duplicates")]
    shared = sum(kind in ("leaked-image", "split-overlap") for kind in kinds)
    if shared:
        says = _counted(shared, "finding says", "findings say")
        return f"{says} that training images are in this split, too: the metrics are too good."
    if kinds:
        return f"{_counted(len(kinds), 'finding says', 'findings say')} that images stand in the data more than once."
    return ""


def missed_objects(report: Report) -> str:
    """Return how many objects are missed, and where the reason of each stands."""
    missed = sum(one["missed"] for one in rows(report, "files"))
    if not missed:
        return f"No object is missed at the model's thresholds{own_thresholds(report)}."
    return (
        f"{missed} of {_counted(report.get('objects') or 0, 'object')} are missed at the model's thresholds"
        f"{own_thresholds(report)}. Open an image: each has its reason."
    )


def worst_image(report: Report) -> str:
    """Return the image with most errors."""
    files, worst = rows(report, "files"), rows(report, "worst")
    if not worst:
        return "No image has an error."
    one = files[worst[0]]
    return f"{one['file']}: {one['missed']} missed, {one['false']} false. {len(worst)} are shown, the worst first."


def calibration_in_words(report: Report) -> str:
    """Return how far scores lie from the share of right detections, and what mends it."""
    calibration = part(report, "calibration")
    error = calibration.get("ece")
    if error is None:
        return "It cannot be told: there are no detections to judge by."
    if error < MISCALIBRATED:
        return f"Nearly: scores differ from the share of right detections by {error:.3f} on average (ECE)."
    return f"No: scores {_off(calibration)}"


def miscalibration(report: Report) -> str:
    """Return how far scores are from probabilities, and what mends it; nothing where they nearly are."""
    error = part(report, "calibration").get("ece")
    if error is None or error < MISCALIBRATED or _is_empty(report):
        return ""
    return f"Scores are no probabilities: they {_off(part(report, 'calibration'))}"


def _off(calibration: Mapping[str, Any]) -> str:
    error, after = calibration["ece"], calibration.get("ece_after")
    mended = "" if after is None else " A temperature would not mend it."
    if after is not None and after < 0.9 * error:
        mended = f" A temperature of {calibration['temperature']:.2f} leaves {after:.3f} (--temperature)."
    return f"differ from the share of right detections by {error:.3f} on average (ECE).{mended}"


def confusion_in_words(report: Report) -> str:
    """Return the most frequent confusion of two classes."""
    names, counts = rows(report, "confusion", "names"), np.asarray(rows(report, "confusion", "counts") or [[0]])
    classes = counts[:-1, :-1].copy()
    if not classes.size:
        return ""
    np.fill_diagonal(classes, 0)
    at = f"at the model's thresholds{own_thresholds(report)}"
    if not classes.any():
        return f"No class is taken for another one {at}."
    gt, predicted = np.unravel_index(int(classes.argmax()), classes.shape)
    return (
        f"Most often {names[int(gt)]!r} is taken for {names[int(predicted)]!r}: {_counted(int(classes.max()), 'time')} "
        f"{at}."
    )


def small_objects(report: Report) -> str:
    """Return whether small objects are found less often and have a lower AP50 than large ones.

    COCO's groups are compared, or the quarters of this data if those are too few.
    """
    groups = [row for row in rows(report, "slices", "size") if row["objects"] and row.get("recall") is not None]
    for least, words in ((FEW, ("small ", "large")), (1, ("smallest", "largest")), (1, ("small", "large"))):
        pair: list[Any] = [next((row for row in groups if row["name"].startswith(word)), None) for word in words]
        if not all(pair) or min(row["objects"] for row in pair) < least:
            continue
        small, large = pair
        scores = [0.0 if row.get("ap50") is None else row["ap50"] for row in pair]
        fewer, lower = small["recall"] < large["recall"] - LESS, scores[0] < scores[1] - LESS
        says = {2: "Yes", 1: "Not clearly", 0: "No"}[fewer + lower]
        shares = [f"{100 * row['recall']:.0f} % of {row['name']!r}" for row in pair]
        text = f"{says}: found at the model's thresholds are {shares[0]} and {shares[1]}"
        advice = " A lower threshold would likely find more of them." if fewer and not lower else ""
        return f"{text}; AP50 is {scores[0]:.3f} and {scores[1]:.3f}.{advice}"
    return "It cannot be told: there are no small and large objects to compare."


def training_in_words(report: Report) -> str:
    """Return whether the score still rose at the end of training."""
    epochs = rows(report, "training")
    found = [(row.get("epoch"), number(row.get("val_map50"))) for row in epochs]
    scored = [(epoch, score) for epoch, score in found if score is not None]
    if not epochs:
        return "It cannot be told: MODEL is no run folder, so its training curves are not at hand."
    if len(scored) < 4:
        return "It cannot be told from fewer than four validations; see the losses."
    before, late = (
        max(score for _, score in scored[: -max(1, len(scored) // 4)]),
        max(score for _, score in scored[-2:]),
    )
    epoch, best = max(scored, key=lambda one: one[1])
    if late - before >= max(0.01, 0.02 * late):
        return f"No: mAP still rose from {before:.3f} to {late:.3f} in the last quarter. More epochs would help."
    return f"Yes: mAP has not risen in the last quarter; the best was {best:.3f} in epoch {epoch}."


def origin(report: Report) -> str:
    """Return when and with which version a report was made."""
    made = part(report, "made")
    if not made:
        return ""
    return f"By multibox {made.get('multibox', '?')} at {made.get('time', '?')}; the command is ready to be copied."


def number(value: Any) -> float | None:
    """Return a cell of metrics.csv as a number; None for an empty one."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


QUESTIONS: tuple[tuple[str, str, Callable[[Report], str]], ...] = (
    ("Why is this object missed?", "worst", missed_objects),
    ("Which class costs most?", "metrics", costliest_class),
    ("Is the threshold right?", "thresholds", threshold_advice),
    ("Are there wrong labels?", "suspects", label_suspects),
    ("Which images are worst?", "worst", worst_image),
    ("Is the score a probability?", "calibration", calibration_in_words),
    ("What is confused with what?", "confusion", confusion_in_words),
    ("Does it fail on small objects?", "slices", small_objects),
    ("Did training converge?", "training", training_in_words),
    ("How was this made, and can I repeat it?", "made", origin),
)
"""What users ask, the section that answers, and the answer in short."""
WITHOUT_OBJECTS = ("training", "made")
"""Sections of the questions that a split without objects does not concern."""
