"""Some steps of the run that `multibox train` would do, one validation and one save, each part timed."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from multibox.data.sampling import Key
from multibox.profiling.machine import MachineUse, MachineWatch, peak_memory, whole_memory
from multibox.profiling.preparing import ImageCost, image_cost
from multibox.structures import Size
from multibox.training.norms import train_mode
from multibox.training.reporter import Reporter
from multibox.training.run import CACHE, Data, RunOptions, prepare
from multibox.training.spans import Stopwatch
from multibox.training.splits import augmented_for, load_training
from multibox.training.step import draw_size, resize_batch
from multibox.training.threads import ThreadPlan
from multibox.training.trainer import Trainer

SECONDS, MOST_STEPS, LEAST_STEPS = 15.0, 50, 4
"""The measured steps take about so long."""
COMPUTING = ("copy", "forward", "targets", "loss", "backward", "optimizer")
"""Spans of a step after its batch is there, in their order."""
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """Where the time of a run goes."""

    preset: str
    device: str
    precision: str
    batch_size: int
    images: int
    """To learn from."""
    steps: int
    """That were measured."""
    planned_steps: int
    """Of the whole run."""
    epochs: float
    step: float
    """Seconds of a step with the wait for its batch, its images decoded before."""
    waiting: float
    """Seconds of that in which the step waits for its batch, or makes it."""
    first_waiting: float
    """The same in the first epoch, which decodes the images."""
    spans: dict[str, float]
    """Seconds per step of each part that computes."""
    kept: float
    """Share of the training images that are kept decoded after the first epoch."""
    image: ImageCost
    validation: float
    """Seconds of a validation, its images decoded before; 0 without one."""
    validations: int
    """Of the whole run."""
    saving: float
    """Seconds of a save."""
    saves: int
    """Of the whole run."""
    machine: MachineUse
    threads: int
    """Of PyTorch, in a step."""
    memory: int
    """Most bytes taken, of the GPU or of memory."""
    whole_memory: int | None
    """Bytes that there are for it."""
    input_size: Size
    augmentation: str

    @property
    def decoding(self) -> float:
        """Seconds per step, averaged over the run, in which it waits for images to be read and decoded."""
        decode = (1 - self.kept) * (self.image.read + self.image.decode)
        in_every_epoch = self.waiting * decode / max(decode + self.image.augment, 1e-12)
        return in_every_epoch + max(0.0, self.first_waiting - self.waiting) / max(1.0, self.epochs)

    def parts(self) -> dict[str, float]:
        """Return the seconds per step of every part, averaged over the run; they add up to `total`."""
        spread = {"validation": self.validation * self.validations, "saving": self.saving * self.saves}
        per_step = {name: seconds / self.planned_steps for name, seconds in spread.items()}
        first = max(0.0, self.first_waiting - self.waiting) / max(1.0, self.epochs)
        read = self.image.read / max(self.image.read + self.image.decode, 1e-12)
        parts = {
            "read": self.decoding * read,
            "decode": self.decoding * (1 - read),
            "augment": self.waiting + first - self.decoding,
            **{name: self.spans.get(name, 0.0) for name in COMPUTING},
        }
        parts["other"] = max(0.0, self.step - self.waiting - sum(self.spans.get(name, 0.0) for name in COMPUTING))
        return {**parts, **per_step}

    @property
    def total(self) -> float:
        """Seconds per step with everything around it."""
        return sum(self.parts().values())

    @property
    def idle(self) -> float | None:
        """Share of a step in which a GPU computes nothing; None on a CPU, which waits for nobody."""
        if self.device == "cpu":
            return None
        return max(0.0, 1 - sum(self.spans.values()) / self.step)


def profile_run(
    data: Data, options: RunOptions, *, reporter: Reporter | None = None, tick: Tick = lambda what: None
) -> Profile:
    """Measure the run that these options mean; its folder and its weights are thrown away.

    Args:
        data: The data set, or several that are joined.
        options: As for training; `out` and `resume` are not looked at.
        reporter: Gets what training would say while it starts.
        tick: Told what is measured next.

    Raises:
        MultiboxError: as training would.
    """
    known = (options.out.parent if options.out else Path("runs")) / CACHE
    with tempfile.TemporaryDirectory(prefix="multibox-profile-") as scratch:
        cache = options.cache or (known if known.is_dir() else None)
        options = dataclasses.replace(options, out=Path(scratch) / "run", cache=cache, resume=None)
        trainer = prepare(data, options, reporter or Reporter(lambda line: None))
        with _released(trainer):
            return _measure(trainer, tick)


@contextlib.contextmanager
def _released(trainer: Trainer) -> Generator[None]:
    try:
        yield
    finally:
        if trainer.decoded is not None:
            trainer.decoded.close()
        trainer.records.close()
        if trainer.hold is not None:
            trainer.hold.close()


def _measure(trainer: Trainer, tick: Tick) -> Profile:
    steps, plan = trainer.steps_per_epoch, trainer.config.train
    tick("preparing images, one after the other")
    train_mode(trainer.stepper.model)
    cost = _image_cost(trainer)
    threads = ThreadPlan(plan.threads) if trainer.device == "cpu" else None
    with threads or contextlib.nullcontext():
        tick("steps of the first epoch")
        first = _run_steps(trainer, Stopwatch(trainer.device), threads, None)
        tick("steps of a later epoch")
        watch, machine = Stopwatch(trainer.device), MachineWatch()
        later = _run_steps(trainer, watch, threads, 1 + first.count)
        use = machine.use()
        computing = torch.get_num_threads()
        if threads:
            threads.pause()
    spans = {name: seconds / later.count for name, seconds in watch.seconds().items()}
    tick("validation")
    validation = _validation_seconds(trainer)
    tick("saving")
    began = time.perf_counter()
    trainer.save()
    saving = time.perf_counter() - began
    planned, validations, saves = _plan(trainer, later.step, validation, saving)
    return Profile(
        preset=trainer.config.preset,
        device=trainer.device,
        precision=trainer.stepper.precision,
        batch_size=trainer.batches.batch_size,
        images=len(trainer.training),
        steps=later.count,
        planned_steps=planned,
        epochs=planned / steps,
        step=later.step,
        waiting=later.waiting,
        first_waiting=first.waiting,
        spans=spans,
        kept=_kept(trainer),
        image=cost,
        validation=validation,
        validations=validations,
        saving=saving,
        saves=saves,
        machine=use,
        threads=computing,
        memory=peak_memory(trainer.device),
        whole_memory=whole_memory(trainer.device),
        input_size=Size(*trainer.config.model.input_size),
        augmentation=plan.augmentation,
    )


@dataclass(frozen=True)
class _Steps:
    count: int
    step: float
    """Seconds of one, on average."""
    waiting: float
    """Seconds of that before its batch is there."""


def _run_steps(trainer: Trainer, watch: Stopwatch, threads: ThreadPlan | None, count: int | None) -> _Steps:
    """Do `count` steps from the run's first on, or as many as are worth measuring."""
    trainer.batches.start_step, trainer.batches.steps = 0, count or MOST_STEPS
    trainer.stepper.spans = watch
    decoded = trainer.decoded and trainer.decoded.training
    took: list[float] = []
    waited: list[float] = []
    with contextlib.closing(
        load_training(trainer.training, trainer.config, trainer.batches, trainer.device, trainer.reporter, decoded)
    ) as batches:
        began = time.perf_counter()
        for step, batch in enumerate(batches):
            waited.append(time.perf_counter() - began)
            size = draw_size(trainer.config, step)
            if threads:
                threads.before_step()
            with watch("copy"):
                batch = resize_batch(batch.to(trainer.device), size)
            trainer.stepper.step(batch)
            took.append(time.perf_counter() - began)
            if threads:
                threads.after_step(took[-1], work=size.height * size.width)
            if not step:
                # The first step prepares memory, kernels and workers
                watch.restart()
            if count is None and sum(took) > SECONDS and step + 1 >= LEAST_STEPS:
                break
            began = time.perf_counter()
    if trainer.device != "cpu":
        torch.cuda.synchronize()
    steps, waits = took[1:], waited[1:]
    return _Steps(len(steps), sum(steps) / len(steps), sum(waits) / len(waits))


def _image_cost(trainer: Trainer) -> ImageCost:
    keys: list[Key] = [key for step in range(4) for key in trainer.batches.batch(step)]
    return image_cost(augmented_for(trainer.training, trainer.config), keys)


def _validation_seconds(trainer: Trainer) -> float:
    if trainer.validation is None:
        return 0.0
    took: list[float] = []
    # The first one decodes its images
    while not took or (len(took) < 2 and took[0] < SECONDS):
        began = time.perf_counter()
        trainer.validation.score(trainer.stepper.weights())
        took.append(time.perf_counter() - began)
    train_mode(trainer.stepper.model)
    return took[-1]


def _plan(trainer: Trainer, step: float, validation: float, saving: float) -> tuple[int, int, int]:
    """Return steps, validations and saves of the whole run."""
    train, pace, every = trainer.config.train, trainer.pace, trainer.config.train.validate_every
    pace.validation = validation
    validations = pace.validations if trainer.validation is not None else 0
    left = (pace.seconds or 0.0) - validations * (validation + saving)
    steps = pace.fixed or max(1, int(left / max(step, 1e-9)))
    epochs = max(1, round(steps / trainer.steps_per_epoch))
    if validations:
        validations = min(validations, epochs) if every == "auto" else max(1, epochs // every)
    by_clock = int(steps * step / (60 * train.save_minutes))
    return steps, validations, max(1, validations, by_clock)


def _kept(trainer: Trainer) -> float:
    """Return the share of the training images that have room in the store."""
    store = trainer.decoded and trainer.decoded.training.store
    if not store:
        return 0.0
    # Validation images have room first
    validated = 0 if trainer.validation is None else len(trainer.validation.dataset)
    return min(1.0, max(0, store.rooms - validated) / len(trainer.training))
