"""Two detectors on the same images: verdicts worked by hand, exit codes, hotcoco as an oracle."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import multibox
from multibox.analysis import comparison
from multibox.analysis.comparison import Side, compare_sides, judge, mcnemar
from multibox.errors import ConfigError, DataError
from multibox.evaluation.bootstrap import draw_images
from multibox.evaluation.coco_metrics import _evaluation, coco_metrics
from multibox.evaluation.table import columns
from multibox.structures import Detections, Sample, pack

NAMES = ("cat", "dog")
BOX = np.array([10.0, 10, 30, 30])


def dataset_of(labels, names=NAMES):
    """Return a data set of one object per image, all in the same place."""
    flags = np.zeros(1, np.bool_)
    samples = [
        Sample(f"{i}.png", Path(f"{i}.png"), BOX[None], np.array([label]), flags, flags)
        for i, label in enumerate(labels)
    ]
    return pack(samples, root=Path(), format="coco", split="test", class_names=names)


def detections_of(rows, names=NAMES):
    """Return detections (score, label, shift) of one image."""
    return Detections(
        np.array([BOX + shift for _, _, shift in rows], np.float32).reshape(-1, 4),
        np.array([score for score, _, _ in rows], np.float32),
        np.array([label for _, label, _ in rows], np.int64),
        names,
    )


def side(found, names=NAMES, thresholds=()):
    detector = SimpleNamespace(names=names, thresholds=thresholds, precision="float32", device="cpu")
    return Side(detector, "model", found)


def right(labels):
    return [detections_of([(0.9, label, 0)]) for label in labels]


def test_one_missed_of_four_by_hand():
    labels = [0, 0, 0, 0]
    a = right(labels)
    b = [*a[:3], detections_of([])]
    result = compare_sides(side(a), side(b), dataset_of(labels), resamples=200)
    # Recall 0.75 at precision 1: 76 of COCO's 101 points
    ap = result["metrics"]["AP"]
    assert ap["a"] == pytest.approx(1) and ap["b"] == pytest.approx(76 / 101)
    assert ap["difference"] == pytest.approx(76 / 101 - 1)
    assert result["worse"] and result["verdict"].startswith("B is worse by 0.248 AP (95 % ")
    assert result["verdict"].endswith(": fails the margin of 0.01")
    # Four images say nothing about others, however alike their resamples are
    assert result["certain"] is None and result["notes"][-1].startswith("4 images are too few")
    assert result["per_class"]["cat"]["AP"] == ap
    assert result["per_class"]["dog"]["AP"]["difference"] is None and result["per_class"]["dog"]["AP"]["p"] is None
    found = result["detections"]
    assert {key: found[key] for key in ("objects", "both", "only_a", "only_b", "neither", "p")} == {
        "objects": 4, "both": 3, "only_a": 1, "only_b": 0, "neither": 0, "p": 1.0,
    }  # fmt: skip
    assert [one["file"] for one in result["differing"]] == ["3.png"]
    assert result["differing"][0]["found_a"] == 1 and result["differing"][0]["found_b"] == 0


def test_the_same_detections_differ_by_exactly_nothing():
    labels = [0, 1, 0, 1, 1]
    rng = np.random.default_rng(0)
    found = [detections_of([(s, int(label), d) for s, d in rng.random((3, 2))]) for label in labels]
    result = compare_sides(side(found), side(found), dataset_of(labels), resamples=100)
    every = [*result["metrics"].values(), *(v for one in result["per_class"].values() for v in one.values())]
    assert all(one["difference"] == one["low"] == one["high"] == 0 and one["p"] == 1 for one in every)
    assert not result["worse"] and result["verdict"].startswith("B and A have the same AP (95 % 0.000 to 0.000)")
    assert result["differing"] == [] and result["detections"]["p"] == 1


def noisy(rng, labels, hit):
    return [
        detections_of([(rng.random(), label, 0)] * int(rng.random() < hit) + [(rng.random(), 1 - label, 5)])
        for label in labels
    ]


def test_intervals_and_p_are_those_of_copied_images():
    """By brute force: each resample is a data set in which an image stands as often as it was drawn."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 14).tolist()
    a, b = noisy(rng, labels, 0.8), noisy(rng, labels, 0.55)
    found = compare_sides(side(a), side(b), dataset_of(labels), resamples=40, seed=3)["metrics"]["AP"]
    differences = []
    for weights in draw_images(14, 40, 3):
        drawn = np.repeat(np.arange(14), weights).tolist()
        data = dataset_of([labels[row] for row in drawn])
        ap = [coco_metrics(columns([one[row] for row in drawn], data, NAMES))["AP"] for one in (a, b)]
        differences.append(ap[1] - ap[0])
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    rarer = min(sum(one <= 0 for one in differences), sum(one >= 0 for one in differences))
    assert 0 < rarer < 20 and found["p"] == pytest.approx(2 * (rarer + 1) / 41)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_exchanging_both_turns_every_sign(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 12).tolist()
    a, b = side(noisy(rng, labels, 0.8)), side(noisy(rng, labels, 0.6))
    data = dataset_of(labels)
    one, other = (compare_sides(*pair, data, resamples=50) for pair in ((a, b), (b, a)))
    for name in ("AP", "AP50"):
        first, second = one["metrics"][name], other["metrics"][name]
        assert first["difference"] == -second["difference"] and first["p"] == second["p"]
        assert first["low"] == pytest.approx(-second["high"], abs=1e-12)
    assert one["detections"]["only_a"] == other["detections"]["only_b"]
    assert one["detections"]["p"] == pytest.approx(other["detections"]["p"])


def test_hotcoco_finds_the_same_differences():
    from hotcoco import compare as oracle

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60).tolist()
    a, b, data = noisy(rng, labels, 0.9), noisy(rng, labels, 0.5), dataset_of(labels)
    result = compare_sides(side(a), side(b), data, resamples=1000)
    evaluations = [_evaluation(columns(found, data, NAMES), 100) for found in (a, b)]
    for one in evaluations:
        one.evaluate()
    theirs = oracle(*evaluations, n_bootstrap=1000, seed=1, confidence=0.95)
    for name in ("AP", "AP50"):
        ours = result["metrics"][name]
        assert theirs["deltas"][name] == pytest.approx(ours["difference"], abs=1e-9)
        ends = theirs["ci"][name]
        low, high = (ends["lower"], ends["upper"]) if isinstance(ends, dict) else ends[:2]
        # Other draws of the same distribution
        assert (low, high) == pytest.approx((ours["low"], ours["high"]), abs=0.03)


def test_thresholds_are_each_models_own():
    labels = [0, 0]
    found = [detections_of([(0.4, 0, 0)])] * 2
    result = compare_sides(
        side(found, thresholds=(0.3, 0.3)), side(found, thresholds=(0.5, 0.3)), dataset_of(labels), resamples=0
    )
    assert result["metrics"]["AP"]["difference"] == 0 and result["metrics"]["AP"]["low"] is None
    assert result["detections"]["only_a"] == 2 and result["detections"]["p"] == 0.5
    assert "95 %" not in result["verdict"]


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"), [(0, 0, 1), (6, 0, 0.03125), (0, 6, 0.03125), (5, 5, 1), (1, 3, 0.625)]
)
def test_mcnemar_by_hand(only_a, only_b, expected):
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("difference", "low", "high", "worse", "certain", "words"),
    [
        (-0.031, -0.05, -0.012, True, True, "B is worse by 0.031 AP (95 % 0.012 to 0.050): fails the margin of 0.01"),
        (-0.031, -0.07, 0.01, True, False, "other images might decide otherwise"),
        (-0.004, -0.008, 0.0, False, True, "B is worse by 0.004 AP (95 % 0.000 to 0.008): within the margin of 0.01"),
        (-0.004, -0.02, 0.01, False, False, "other images might decide otherwise"),
        (-0.01, -0.01, -0.01, False, True, "within the margin"),
        (0.02, 0.01, 0.03, False, True, "B is better by 0.020 AP (95 % 0.010 to 0.030)"),
        (0.0, 0.0, 0.0, False, True, "B and A have the same AP"),
        (-0.0004, None, None, False, None, "B is worse by 0.0004 AP: within the margin of 0.01"),
    ],
)  # fmt: skip
def test_verdicts(difference, low, high, worse, certain, words):
    found = judge({"difference": difference, "low": low, "high": high}, 0.01)
    assert found[:2] == (worse, certain) and words in found[2]


@pytest.fixture
def two(monkeypatch, tmp_path):
    """Two models by name, of which A finds everything and B every second object; and images for the speed."""
    labels = [0, 1] * 6
    (tmp_path / "data").mkdir()
    for index in range(len(labels)):
        Image.new("RGB", (40, 40)).save(tmp_path / "data" / f"{index}.png")
    lines = ["image,xmin,ymin,xmax,ymax,label", *(f"{i}.png,10,10,30,30,{NAMES[k]}" for i, k in enumerate(labels))]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")

    def fake(names, found):
        return SimpleNamespace(
            names=names, thresholds=(), merge=(), background=(255, 255, 255), precision="float32", device="cpu",
            found=found, predict=lambda image: None,
        )  # fmt: skip

    everything = [detections_of([(0.9, label, 0)]) for label in labels]
    models = {
        "a": fake(NAMES, everything),
        "b": fake(NAMES, [one if i % 2 else detections_of([]) for i, one in enumerate(everything)]),
        "c": fake(("cat", "bird", "unused 3"), [detections_of([(0.9, 0, 0)], ("cat", "bird"))] * 12),
        "d": fake(("bird",), []),
    }
    for name in models:
        (tmp_path / name).touch()
    monkeypatch.setattr(comparison, "load", lambda path, device: models[Path(path).name])
    monkeypatch.setattr(comparison, "find_model", Path)
    monkeypatch.setattr(comparison, "find_all", lambda model, data, most, progress: model.found)
    return tmp_path


def test_exit_codes_and_output(run, two):
    code, out, err = run("compare", two / "a", two / "b", two / "data", "--bootstrap", 100, "--json", two / "c.json")
    assert code == 1, err
    assert out.startswith("B is worse by 0.5") and "AP of cat" in out and "speed, median ms" in out
    made = json.loads((two / "c.json").read_text())
    assert made["worse"] and made["speed"]["images"] == 12 and made["detections"]["only_a"] == 6
    assert run("compare", two / "a", two / "b", two / "data", "--margin", 0.6, "--speed", 0)[0] == 0
    code, out, err = run("compare", two / "b", two / "a", two / "data", "--json", "-", "--bootstrap", 50)
    assert code == 0 and json.loads(out)["metrics"]["AP"]["difference"] > 0.4 and "B is better by" in err
    assert run("compare", two / "a", two / "a", two / "data")[0] == 0
    code, _, err = run("compare", two / "a", two / "b", two / "data", "--json", two / "c.json")
    assert code == 2 and "exists already" in err


def test_classes_that_both_know_are_compared(two):
    result = multibox.compare(two / "a", two / "c", two / "data", bootstrap=20, speed=0)
    assert result["classes"] == ["cat"] and result["objects"] == 6 and result["speed"] is None
    assert any("A alone knows them: dog" in note for note in result["notes"])
    assert "left out, as B alone knows them: bird" in result["notes"]
    with pytest.raises(ConfigError, match="rename bird=dgo: no class 'dgo' in the model, did you mean 'dog'"):
        multibox.compare(two / "a", two / "c", two / "data", rename={"bird": "dgo"})
    with pytest.raises(ConfigError, match="share no class name"):
        multibox.compare(two / "a", two / "d", two / "data")


def test_a_model_that_has_hardly_trained_is_named(two):
    assert not any(
        "trained for" in one for one in multibox.compare(two / "a", two / "b", two / "data", speed=0)["notes"]
    )
    for last, told in ((61, True), (100, False)):
        (two / "p").mkdir(exist_ok=True)
        (two / "p" / "a").touch()
        (two / "p" / "metrics.csv").write_text(f"epoch,step,l2_loss\n1,16,0\n2,{last},0\n")
        notes = multibox.compare(two / "b", two / "p" / "a", two / "data", bootstrap=0, speed=0)["notes"]
        assert any(note.startswith("B has trained for 61 steps alone") for note in notes) == told
        assert not any(note.startswith("A has trained") for note in notes)


def test_nothing_to_compare_is_refused():
    data = dataset_of([0]).subset([])
    with pytest.raises(DataError, match="nothing to compare"):
        compare_sides(side([]), side([]), data)


@pytest.mark.slow
def test_a_real_model_equals_itself_and_its_export(run, squares, tmp_path):
    out = tmp_path / "run"
    options = ["--preset", "tinyssd", "--set", "model.input_size=[64,64]", "--epochs", 2, "--out", out]
    assert run("train", squares, *options)[0] == 0
    assert run("export", out, "--out", tmp_path / "m.onnx")[0] == 0
    code, said, err = run("compare", out, out / "best.safetensors", squares, "--split", "train")
    assert code == 0 and said.startswith("B and A have the same AP"), err
    result = multibox.compare(out, tmp_path / "m.onnx", squares, split="train", bootstrap=50)
    assert abs(result["metrics"]["AP"]["difference"]) < 0.02
    assert "PyTorch" in result["a"]["engine"] and result["speed"]["a_ms"] > 0
    scores = multibox.evaluate(multibox.load(out), squares, split="train")
    assert result["metrics"]["AP"]["a"] == scores["coco"]["AP"]
    assert result["per_class"]["red"]["AP50"]["a"] == scores["coco"]["per_class"]["red"]["AP50"]
