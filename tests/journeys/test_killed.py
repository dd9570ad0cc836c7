"""SIGKILL at 20 random moments: the run that was resumed each time ends as one that nobody disturbed, bit for bit."""

import random
import sys

import pytest

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")

KILL_AT = """
NAME = "multibox.training.trainer"
def patch(module):
    import os, signal, threading
    place, times, delay = os.environ.get("KILL_AT", "nowhere 0 0").split()
    left, delay = int(times), float(delay)
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    def pass_by(here):
        nonlocal left
        if here == place:
            left -= 1
            if not left and delay:
                threading.Timer(delay, die).start()
            elif not left:
                die()
    def watched(here, function):
        def call(*arguments, **named):
            pass_by(here)
            return function(*arguments, **named)
        return call
    def loading(*arguments):
        # Of a generator: the workers start here, with the first batch
        pass_by("workers")
        yield from whole(*arguments)
    whole, module.load_training = module.load_training, loading
    module.start_loggers = watched("beginning", module.start_loggers)
    module.Stepper.step = watched("step", module.Stepper.step)
    module.Validation.score = watched("validation", module.Validation.score)
    module.Trainer.save = watched("saving", module.Trainer.save)
    module.save_state = watched("state", module.save_state)
    # By steps and not by the clock, so that every machine saves as often; in the middle of epochs of three steps
    module.Trainer.state_due = lambda self: self.pace.step % 5 == 2
"""
"""Processes kill themselves DELAY seconds after they pass a PLACE for the TIMES-th time."""
MOMENTS = {
    "step": (6, 0.1), "saving": (3, 0.1), "validation": (2, 0.2), "workers": (1, 0.2), "state": (2, 0.0),
    "beginning": (1, 0.0),
}  # fmt: skip
"""Places: the most times that one is passed, and the longest delay. At `state` best.safetensors may be newer; at
`beginning` there is no state yet."""
SETTINGS = (
    "train.augmentation=strong", "train.ema=0.9", "train.freeze=backbone.*", "train.freeze_until=0.4", "train.lr=0.02",
    "train.patience=6", "train.validate_every=1", "train.threads=2", "train.compile=off",
)  # fmt: skip
KILLS = {0: 7, 1: 7, 2: 6}
"""Per number of workers."""
FILES = ("last.safetensors", "best.safetensors", "metrics.csv", "ledger/epochs.bin")


@pytest.fixture(scope="module")
def data(tmp_path_factory, draw_squares):
    return draw_squares(tmp_path_factory.mktemp("killed") / "squares", 16)


@pytest.fixture(scope="module")
def command(train_options, data):
    """The words of a run with everything that a state has to remember."""
    return ["train", data, "--epochs", "14", *train_options, *(w for s in SETTINGS for w in ("--set", s))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, command, start_patched):
    """The files of a run that nobody disturbed, and its folder."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start_patched(KILL_AT, *command, "--out", run)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return {name: (run / name).read_bytes() for name in FILES}, sorted(path.name for path in run.rglob("*.jpg"))


@unix
@pytest.mark.slow
@pytest.mark.parametrize("workers", KILLS)
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(
    undisturbed, command, start_patched, tmp_path, workers
):
    drawn = random.Random(f"kill {workers}")
    run = tmp_path / "run"
    words = [*command, "--set", f"train.workers={workers}", "--out", run]
    places = [place for place in MOMENTS for _ in range(2)]
    drawn.shuffle(places)
    for place in places[: KILLS[workers]]:
        most, longest = MOMENTS[place]
        kill_at = f"{place} {drawn.randint(1, most)} {drawn.uniform(0, longest):.3f}"
        process = start_patched(KILL_AT, *words, KILL_AT=kill_at)
        _, err = process.communicate(timeout=300)
        assert process.returncode == -9, (kill_at, process.returncode, err)
        words = ["train", "--resume", run]
    process = start_patched(KILL_AT, *words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "12 images (train), 4 for validation" in out
    files, samples = undisturbed
    for name in FILES:
        # The checkpoints say with how many workers they were made
        told = (run / name).read_bytes().replace(b'workers\\": %d,' % workers, b'workers\\": 0,')
        assert told == files[name], name
    assert sorted(path.name for path in run.rglob("*.jpg")) == samples
    assert not list(run.rglob("*.part"))
