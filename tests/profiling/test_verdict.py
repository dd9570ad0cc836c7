"""The one sentence of a profile, from figures by hand."""

import dataclasses
import re

import pytest

from multibox.profiling import verdict
from multibox.profiling.machine import MachineUse
from multibox.profiling.measuring import Profile
from multibox.profiling.preparing import ImageCost
from multibox.profiling.verdict import advise
from multibox.structures import Size

QUIET = MachineUse(seconds=10, cores=4, own=3.5, others=0.0, throttled=None)
IMAGE = ImageCost(read=0.001, decode=0.004, augment=0.002, bytes=50_000, size=Size(480, 640))
SLOW_TO_READ = dataclasses.replace(IMAGE, read=0.1)
LARGE = dataclasses.replace(IMAGE, size=Size(3000, 4000))
PROFILE = Profile(
    preset="tinyssd",
    device="cpu",
    precision="bfloat16",
    batch_size=16,
    images=1600,
    steps=20,
    planned_steps=1000,
    epochs=10,
    step=1.0,
    waiting=0.02,
    first_waiting=0.06,
    spans={"copy": 0.0, "forward": 0.3, "targets": 0.03, "loss": 0.02, "backward": 0.58, "optimizer": 0.03},
    kept=1.0,
    image=IMAGE,
    validation=2.0,
    validations=20,
    saving=0.5,
    saves=20,
    machine=QUIET,
    threads=4,
    memory=2 * 10**9,
    whole_memory=16 * 10**9,
    input_size=Size(256, 256),
    augmentation="strong",
)

FIXED_COST = {"forward": 0.02, "backward": 0.02, "optimizer": 0.03}


def changed(**values):
    return dataclasses.replace(PROFILE, **values)


def machine(**values):
    return changed(machine=dataclasses.replace(QUIET, **values))


def spans(**values):
    return {**PROFILE.spans, **values}


def test_parts_add_up_to_the_run():
    parts = PROFILE.parts()
    # Of ten epochs the first one decodes: 0.04 s per step more, a tenth of it on average; read : decode = 1 : 4
    assert parts["read"] == pytest.approx(0.0008) and parts["decode"] == pytest.approx(0.0032)
    assert parts["augment"] == pytest.approx(0.02) and parts["other"] == pytest.approx(0.02)
    assert parts["validation"] == pytest.approx(0.04) and parts["saving"] == pytest.approx(0.01)
    assert PROFILE.total == pytest.approx(1.0 + 0.004 + 0.05) and sum(parts.values()) == pytest.approx(PROFILE.total)
    # Images that are not kept are decoded in every epoch: 5 of 7 ms of each image, beside the slow start of the first
    unkept = changed(kept=0.0, first_waiting=0.02)
    assert unkept.decoding == pytest.approx(0.02 * 5 / 7) and unkept.parts()["augment"] == pytest.approx(0.02 * 2 / 7)
    assert PROFILE.idle is None and changed(device="cuda", step=1.2).idle == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (PROFILE, "83 % of the time goes into the network itself"),
        (machine(throttled=0.4), "a quota on processor time stopped this process in 40 %"),
        (machine(others=1.2), r"other programs keep 1.2 of the 4 cores busy \(burner most of all\)"),
        (changed(memory=15 * 10**9), "set train.batch_size=8, or train.accumulate=2"),
        (
            changed(waiting=4, first_waiting=4, kept=0, image=dataclasses.replace(IMAGE, read=0.1)),
            r"reading files \(100 ms each, 0.5",
        ),
        (
            changed(waiting=4, step=5, first_waiting=4, kept=0.25),
            "only 25 % of the images fit decoded into memory; .* --cache-gb",
        ),
        (
            changed(first_waiting=9, epochs=2, image=dataclasses.replace(IMAGE, size=Size(3000, 4000))),
            "4000x3000, 4 ms",
        ),
        (changed(waiting=0.5), r"augmentation \(strong, 2.0 ms .*train.augmentation=default or more cores than 4"),
        (changed(waiting=0.5, augmentation="default"), "per image\\); more cores than 4"),
        (changed(validation=20.0), "20 validations of 20.0 s; .*train.validate_every=2"),
        (changed(saving=10.0), "20 saves of 10.0 s; put the run folder .*validate_every=2$"),
        (changed(saving=10.0, saves=60), "60 saves of 10.0 s; put the run folder .*save_minutes=10$"),
        (
            changed(batch_size=1, step=0.12, validation=0, spans=FIXED_COST),
            "its 1 image; .*=8$",
        ),
        (machine(cores=1), "on the one core"),
        (changed(spans=spans(targets=0.6)), "matching anchors and the loss"),
    ],
)
def test_each_cause_is_named(profile, words, monkeypatch):
    monkeypatch.setattr(verdict, "busiest_program", lambda: "burner")
    sentence = advise(profile)
    assert "\n" not in sentence
    assert re.search(words, sentence), sentence
