"""What a run says of itself: at its start what it trains, at its end what it has come to and what would help most."""

import shlex
from typing import TYPE_CHECKING

from multibox.analysis.advice import nothing_matched, score_stays_low, what_would_help
from multibox.data.left_out import AUGMENTATION, sentences, training_counts
from multibox.training.optimizer import known_rate

if TYPE_CHECKING:
    from multibox.training.trainer import Trainer


def describe_run(trainer: "Trainer") -> str:
    """Return data, network, length and place of a run, for a note at its start."""
    training, validation, config, pace = trainer.training, trainer.validation, trainer.config, trainer.pace
    held = f"{len(validation.dataset)} for validation ({validation.dataset.split})" if validation else "no validation"
    parameters = sum(p.numel() for p in trainer.stepper.model.parameters())
    start = "fresh weights" if config.train.weights == "none" else f"from {config.train.weights}"
    epochs = (pace.fixed or 0) / trainer.steps_per_epoch
    length = f"{pace.fixed} steps ({epochs:.3g} epochs of {trainer.steps_per_epoch})"
    if pace.seconds is not None:
        length = f"{pace.seconds / 60:g} minutes"
    left_out = "".join(f"; {sentence}" for sentence in sentences(training_counts(training)))
    return (
        f"{', '.join(config.data.path)}: {len(training)} images ({training.split}), {held}, "
        f"classes {', '.join(training.class_names)}{left_out}\n"
        f"{config.preset}, recipe {config.recipe}, {start}: {parameters:,} parameters, {length}, "
        f"{trainer.stepper.precision} on {trainer.device}, folder {trainer.folder}"
    )


def conclude(trainer: "Trainer") -> None:
    """Say what the run has come to, and in one sentence what would help most."""
    rows, note = trainer.records.rows, trainer.reporter.note
    for sentence in sentences({AUGMENTATION: trainer.lost_boxes}):
        note(f"{sentence} in {trainer.pace.step} steps")
    if not trainer.pace.finished:
        note(
            f"ended after step {trainer.pace.step} of {trainer.pace.total}: "
            f"{trainer.config.train.patience} validations in a row were no better than mAP@0.5 {trainer.best:.3f}, "
            "whose weights are best.safetensors (train.patience); the learning rate's schedule was not shortened"
        )
    scored = [row for row in rows if row.get("val_map50") is not None]
    if len(scored) > 1 and scored[0]["step"] == 0 and scored[0]["val_map50"] == trainer.best:
        advice = "; a lower rate may improve on them, such as --set train.lr=3e-5"
        note(
            f"no validation was better than the weights before the first step (mAP@0.5 {trainer.best:.3f}), so "
            f"best.safetensors are those{advice if known_rate(trainer.config.train) > 1e-4 else ''}"
        )
    elif trainer.warned:
        note(
            nothing_matched(trainer.pace.step, int(trainer.positives), trainer.findings)
            or score_stays_low(rows, trainer.findings)
            or "in the end the run found objects, in spite of the warning above"
        )
    elif trainer.validation is not None:
        more = shlex.join(["multibox", "train", "--resume", str(trainer.folder), *_longer(trainer)])
        if advice := what_would_help(rows, trainer.training, trainer.validation.per_class, more):
            note(advice)


def _longer(trainer: "Trainer") -> list[str]:
    """Return the options of a run twice as long."""
    minutes = trainer.config.train.minutes
    if minutes != "none":
        return ["--minutes", f"{2 * minutes:g}"]
    return ["--epochs", str(-(-2 * trainer.pace.step // trainer.steps_per_epoch))]
