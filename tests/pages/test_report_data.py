"""The report as data: the numbers of `eval`, every entry named in docs/report.md, files, and what cannot be there."""

import importlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import multibox
from multibox.analysis.relabel import write_relabel
from multibox.api import evaluate, make_report, open_for
from multibox.data.formats import open_dataset
from multibox.pages.report_data import _relabel_place, _training_run
from multibox.pages.report_words import verdict
from multibox.structures import Detections

ENTRIES = {
    "model", "data", "split", "images", "objects", "classes", "made", "metrics", "curves", "thresholds", "confusion",
    "errors", "slices", "calibration", "files", "worst", "mistakes", "suspects", "relabel", "duplicates", "training",
    "training_run",
}  # fmt: skip


class Guesser:
    """A detector that knows the labels and errs at random, the same way every time."""

    names = ("red", "blue")
    thresholds = (0.5, 0.4)
    background = (255, 255, 255)
    merge = ()

    def __init__(self, data, split):
        self.dataset = open_for(self, data, split=split)
        self.next = 0

    def prepare(self, image):
        return image

    def detect(self, images):
        found = [self.guess(number % len(self.dataset)) for number in range(self.next, self.next + len(images))]
        self.next += len(images)
        return found

    def guess(self, number):
        random = np.random.default_rng(number)
        sample = self.dataset[number]
        boxes = np.repeat(sample.boxes_xyxy, 6, axis=0) + random.normal(0, 8, (6 * len(sample.boxes_xyxy), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        labels = np.where(random.random(len(boxes)) < 0.8, np.repeat(sample.labels, 6), 1)
        scores = np.sort(random.random(len(boxes)))[::-1]
        return Detections(boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64), self.names)


@pytest.fixture(scope="module")
def squares(tmp_path_factory, draw_squares):
    return draw_squares(tmp_path_factory.mktemp("report") / "squares", 80)


@pytest.fixture(scope="module")
def report(squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "report"
    made = make_report(Guesser(squares, "train"), squares, split="train", out=folder, bootstrap=20)
    return made, folder


def test_the_metrics_are_those_of_eval(report, squares):
    made, _ = report
    assert made["metrics"] == json.loads(
        json.dumps(evaluate(Guesser(squares, "train"), squares, split="train", bootstrap=20))
    )
    assert made["errors"]["ap50"] == made["metrics"]["coco"]["AP50"]


def test_every_entry_is_there_and_the_file_holds_the_same(report):
    made, folder = report
    assert set(made) == ENTRIES
    assert json.loads((folder / "report.json").read_text()) == made
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    assert (made["images"], made["objects"], made["split"]) == (60, 60, "train")
    assert made["made"]["command"] == "multibox.make_report"
    assert len(made["made"]["fingerprint"]) == 64


def test_counts_agree_with_each_other(report):
    made, _ = report
    files, confusion = made["files"], np.array(made["confusion"]["counts"])
    assert sum(one["gt"] for one in files) == confusion[:-1].sum() == made["objects"]
    assert all(one["found"] + one["missed"] == one["gt"] for one in files)
    worst = [files[place]["missed"] + files[place]["false"] for place in made["worst"]]
    assert worst == sorted(worst, reverse=True) and worst[-1] > 0
    kinds = {one["kind"]: one for one in made["errors"]["kinds"]}
    assert kinds["false-positives"]["count"] == sum(
        kinds[kind]["count"] for kind in ("classification", "localization", "both", "duplicate", "background")
    )
    for kind, one in kinds.items():
        examples = [made["mistakes"][place] for place in one["examples"]]
        assert all(kind.startswith("false-") or example["kind"] == kind for example in examples)
        assert bool(examples) == bool(one["count"])
    scores = [one["score"] for one in made["mistakes"] if one["score"] is not None]
    assert scores == sorted(scores, reverse=True) and len(made["mistakes"]) <= 200
    for name, curve in made["curves"].items():
        best = made["thresholds"][name]
        assert max(curve["f1"]) == best["f1"] and best["threshold"] in curve["scores"]
        assert len(curve["scores"]) <= 200 and min(curve["f1"]) >= 0
    assert made["thresholds"]["blue"]["model"] == 0.4


def test_a_curve_of_many_detections_is_thinned_and_keeps_its_best_point(build_curve=None):
    from multibox.evaluation.voc_metrics import Curve
    from multibox.pages.report_data import POINTS, _thinned

    random = np.random.default_rng(0)
    right = random.random(30_000) < np.linspace(0.9, 0.0, 30_000)
    scores = np.linspace(1, 0, 30_000).round(4)
    true = np.cumsum(right)
    curve = Curve(true / right.sum(), true / np.arange(1, 30_001), scores, int(right.sum()))
    thin = _thinned(curve)
    assert 100 < len(thin["f1"]) <= POINTS
    assert max(thin["f1"]) == curve.f1.max()
    assert thin["recall"][-1] == 1.0
    assert np.diff(thin["recall"]).max() < 0.02


def test_an_existing_report_is_refused_before_any_work(report, squares):
    _, folder = report
    with pytest.raises(multibox.MultiboxError, match="overwrite=True"):
        make_report("no such model", squares, split="train", out=folder)


@pytest.mark.slow
def test_the_command_writes_numbered_folders_and_says_the_main_findings(run, squares, tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.inference.load.load", lambda *_, **__: Guesser(squares, "train"))
    monkeypatch.chdir(tmp_path)
    for name in ("report", "report-2"):
        code, out, err = run("report", "model", squares, "--split", "train", "--bootstrap", 20)
        assert code == 0, err
        assert (tmp_path / name / "index.html").is_file()
        assert out.splitlines()[-1] == f"the page: {name}/index.html"
    assert len(out.splitlines()) <= 10
    assert out.startswith("AP is 0.") and "costliest error is" in out and "weakest class is" in out
    # The console says what the page says
    made = json.loads((tmp_path / "report" / "report.json").read_text())
    said = [line.text for line in verdict(made)]
    assert all(line.startswith(text) for line, text in zip(out.splitlines(), said, strict=False))
    assert sum("images to relabel: report-2/relabel/labels" in line for line in out.splitlines()) <= 1
    code, out, _ = run("report", "model", squares, "--split", "train", "--bootstrap", 0, "--out", "mine", "--json", "-")
    assert set(json.loads(out)) == ENTRIES
    assert "intervals" not in json.loads(out)["metrics"]
    code, _, err = run("report", "model", squares, "--split", "train", "--out", "mine")
    assert code == 2 and "mine/" in err


@pytest.mark.slow
def test_overwriting_replaces_the_relabel_list_but_no_work_of_a_person(squares, tmp_path):
    folder = tmp_path / "out"

    def again(data=squares, **options):
        made = make_report(Guesser(squares, "train"), data, split="train", out=folder, bootstrap=0, **options)
        assert json.loads((folder / "report.json").read_text())["relabel"] == made["relabel"]
        assert (folder / made["relabel"]["folder"] / "list.csv").is_file()
        return made["relabel"]["folder"], [note for note in made["relabel"]["notes"] if "stays" in note]

    assert again() == ("relabel", [])
    assert again(overwrite=True) == ("relabel", [])
    mine = folder / "relabel" / "list.csv"
    mine.write_text(mine.read_text() + "mine")
    stays = ["relabel/ may hold corrections, so it stays"]
    assert again(overwrite=True) == again(overwrite=True) == ("relabel-2", stays)
    assert mine.read_text().endswith("mine")
    for name in ("index.html", "report.json"):
        (folder / name).unlink()
    assert again()[0] == "relabel-3"
    assert sorted(path.name for path in folder.glob("relabel*")) == ["relabel", "relabel-2", "relabel-3"]


def test_a_relabel_list_that_is_read_is_never_replaced(squares, tmp_path):
    place, kept = _relabel_place(tmp_path / "relabel", [str(squares)], overwrite=True)
    assert (place, kept) == (tmp_path / "relabel", [])
    suspects = make_report(Guesser(squares, "train"), squares, split="train", bootstrap=0)["suspects"]
    write_relabel(suspects, open_for(Guesser(squares, "train"), squares, split="train"), place)
    assert _relabel_place(place, [str(squares)], overwrite=True) == (place, [])
    assert _relabel_place(place, [str(place / "labels")], overwrite=True)[1] == ["relabel"]


def archived(kind, squares, folder, draw_squares):
    """The validation images as other kinds of data sets."""
    if kind == "zip":
        return [Path(shutil.make_archive(str(folder / "squares"), kind, squares))]
    samples = list(open_for(Guesser(squares, "val"), squares, split="val"))
    if kind == "joined":
        return [squares, draw_squares(folder / "more", 12)]
    if kind == "broken":
        shutil.copytree(squares, folder / "broken")
        first, second = (folder / "broken" / sample.path.relative_to(squares) for sample in samples[:2])
        first.unlink()
        second.write_bytes(second.read_bytes()[:200])
        return [folder / "broken"]
    rows = [
        {
            "image": {"bytes": sample.path.read_bytes(), "path": sample.path.name},
            "objects": {
                "bbox": np.hstack(
                    [sample.boxes_xyxy[:, :2], np.diff(sample.boxes_xyxy.reshape(-1, 2, 2), axis=1)[:, 0]]
                ).tolist(),
                "category": [("red", "blue")[label] for label in sample.labels],
            },
        }
        for sample in samples
    ]
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs multibox[hub]")
        (folder / "set").mkdir()
        table = importlib.import_module("pyarrow").Table.from_pylist(rows)
        parquet.write_table(table, folder / "set" / "val-00000-of-00001.parquet")
        return [folder / "set"]
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "val-000.tar", "w") as tar:
        for number, (sample, row) in enumerate(zip(samples, rows, strict=True)):
            label = json.dumps(row["objects"]).encode()
            for ending, data in (("jpg", sample.path.read_bytes()), ("json", label)):
                member = tarfile.TarInfo(f"{number:04}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return [folder / "shards"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "parquet", "webdataset", "joined", "broken"])
def test_every_kind_of_data_gives_page_and_relabel_list(kind, squares, tmp_path, draw_squares, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = archived(kind, squares, tmp_path, draw_squares)
    detector = Guesser(squares, "val")
    if kind == "broken":
        with pytest.raises(multibox.MultiboxError):
            make_report(detector, data, split="val", bootstrap=0)
    on_bad = "skip" if kind == "broken" else "stop"
    detector.dataset = open_for(detector, data, split="val", on_bad=on_bad)
    made = make_report(detector, data, split="val", out=tmp_path / "out", bootstrap=0, on_bad=on_bad)
    assert made["images"] == len(made["files"]) == {"joined": 20 + 3, "broken": 18}.get(kind, 20)
    assert made["suspects"] and "</html>" in (tmp_path / "out" / "index.html").read_text()[-20:]
    relabel = tmp_path / "out" / "relabel"
    assert {"list.csv", "labels", "label-studio.json", "cvat.xml"} <= {path.name for path in relabel.iterdir()}
    again = open_dataset(relabel / "labels", class_names=("red", "blue"))
    assert len(again) == made["relabel"]["images"]
    assert len(open_dataset(relabel / "cvat.xml", class_names=("red", "blue")).labels) == len(again.labels)


def test_no_detection_and_no_label_give_a_report(squares, tmp_path):
    class Blind(Guesser):
        def guess(self, number):
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), self.names)

    made = make_report(Blind(squares, "val"), squares, split="val", out=tmp_path / "out", bootstrap=5)
    assert made["metrics"]["coco"]["AP"] == 0 and made["suspects"] == [] and made["relabel"]["images"] == 0
    assert sum(file["missed"] for file in made["files"]) == made["objects"]
    assert all(line.text for line in verdict(made))


def test_an_untrained_network_gives_a_report_too(tmp_path, squares):
    detector = multibox.create("tinyssd", ["red", "blue"])
    made = make_report(detector, squares, split="val", bootstrap=0)
    assert made["images"] == 20 and made["training"] == []


def test_rates_are_those_of_the_steps_and_the_end_is_named(tmp_path):
    assert _training_run(None) is _training_run(tmp_path) is None
    events = [{"kind": "step", "step": step, "lr": step / 1000} for step in range(1, 1001)]
    events.append({"kind": "note", "step": 1000, "text": "ended after step 1000: ... (train.patience); ..."})
    lines = "\n".join(map(json.dumps, events))
    (tmp_path / "metrics.jsonl").write_text(lines + '\n{"kind": "step", "st')
    found = _training_run(tmp_path)
    rates = found["learning_rate"]
    assert rates["step"][0] == 1 and rates["step"][-1] == 1000 and len(rates["step"]) == 200
    assert max(rates["value"]) == 1.0 and found["ended"] == "patience"
    (tmp_path / "status.json").write_text('{"state": "stopped"}')
    assert _training_run(tmp_path)["ended"] == "stopped"
