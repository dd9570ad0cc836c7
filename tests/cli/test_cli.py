import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from multibox.cli import console
from multibox.cli.main import app

SMALL = [
    "--preset",
    "tinyssd",
    "--set",
    "model.input_size=[64,64]",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.workers=0",
]


def width(path):
    with Image.open(path) as image:
        return image.width


@pytest.fixture(scope="module")
def once(tmp_path_factory, draw_squares, call):
    """A run on images like those of `squares`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # as on a terminal, with a bar
        assert call("train", draw_squares(folder / "squares", 16), "--out", folder / "run", "--epochs", 2, *SMALL) == 0
    return folder / "run"


@pytest.fixture
def trained(once, tmp_path):
    return shutil.copytree(once, tmp_path / "run")


@pytest.mark.slow
def test_train_eval_predict(run, squares, trained, tmp_path):
    assert (trained / "images" / "curves.png").is_file()
    code, out, _ = run(
        "eval", trained, squares, "--split", "val", "--json", tmp_path / "f.json", "--plot", tmp_path / "pr.png"
    )
    assert code == 0
    assert "VOC07 AP" in out
    metrics = json.loads((tmp_path / "f.json").read_text())
    assert metrics["images"] == 4
    assert set(metrics) == {"images", "coco", "voc07", "voc12", "thresholds"}
    assert "precision" in out
    assert "95 %" not in out
    assert set(metrics["voc07"]["per_class"]) == {"red", "blue"}
    code, out, err = run("eval", trained, squares, "--split", "val", "--json", "-")
    assert (code, json.loads(out)) == (0, metrics)
    assert "VOC07 AP" in err and "COCO: AP " in err
    assert (tmp_path / "pr.png").is_file()
    code, out, _ = run(
        "predict", trained, squares / "JPEGImages", "--threshold", 0, "--out", tmp_path / "drawn",
        "--json", tmp_path / "p.json", "--coco", tmp_path / "c.json",
        "--yolo", tmp_path / "yolo", "--voc", tmp_path / "voc",
    )  # fmt: skip
    assert code == 0
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 16
    rows = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == 16
    assert rows[0]["width"] == rows[0]["height"] == 96
    boxes = np.array([d["box"] for row in rows for d in row["detections"]])
    assert len(boxes)
    assert boxes.min() >= 0
    assert boxes.max() <= 96
    assert (tmp_path / "c.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "NOWHERE"], ["NOWHERE"]),
        (["train", "DATA", "--preset", "tinysd"], ["did you mean 'tinyssd'"]),
        (["train", "DATA", "--set", "train.lrr=1"], ["did you mean train.lr=1?"]),
        (["train", "DATA", "--set", "train.lr"], ["section.key=value"]),
        (["train", "DATA", "--set", "train.lr=NaN"], ["train.lr=NaN: expected a number"]),
        # Found when the run's folder was there
        (["train", "DATA", "--set", "train.freeze=bakbone.*"], ["fits no parameter"]),
        (["train", "DATA", "--out", "DATA/ImageSets/Main/val.txt"], ["val.txt is a file", "another --out"]),
        (["train", "DATA", "--train-split", "trian"], ["trian", "train"]),
        (["train", "DATA", "--seeds", "2"], ["--out"]),
        (["train", "DATA", "--ablate", "loss,mathcer"], ["did you mean 'matcher'", "localization"]),
        (["eval", "NOWHERE", "DATA"], ["NOWHERE", "does not exist"]),
        (["predict", "NOWHERE", "DATA"], ["no image or video in folder"]),
        (["predict", "NOWHERE", "DATA/JPEGImages", "--threshold", "nan"], ["--threshold nan", "from 0 to 1"]),
        (["predict", "NOWHERE", "DATA/JPEGImages", "--threshold", "1.5"], ["--threshold 1.5", "from 0 to 1"]),
        (["predict", "NOWHERE", "DATA/JPEGImages", "--threshold", "-1"], ["--threshold -1", "from 0 to 1"]),
        (["import", "mxnets", "x", "--out", "y"], ["did you mean 'mxnet'"]),
        (["list", "preset"], ["did you mean 'presets'"]),
        (["plot", "loses"], ["did you mean 'losses'"]),
        (["plot", "curves"], ["run folder"]),
        (["data", "make", "sprite", "x"], ["did you mean 'sprites'"]),
        (["data", "make", "sprites", "x", "--objects", "6-1"], ["--objects 6-1"]),
        (["data", "show", "NOWHERE"], ["NOWHERE"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(run, squares, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*[a.replace("DATA", str(squares)) for a in arguments])
    assert code == 2
    assert err.startswith("multibox: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["squares"]


def test_a_file_that_cannot_be_written_is_named(run, squares, trained, tmp_path):
    (tmp_path / "file").touch()
    image = squares / "JPEGImages" / "000.png"
    for arguments, said in (
        (("predict", trained, image, "--out", tmp_path / "file"), f"{tmp_path / 'file'} is no folder"),
        (("predict", trained, image, "--out", tmp_path / "d", "--json", squares), f"{squares} is a folder"),
        (("eval", trained, squares, "--split", "val", "--json", tmp_path / "file" / "f.json"), "file is no folder"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert err.startswith("multibox: ") and said in err
        assert err.count("\n") == 1
    assert not (tmp_path / "d").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_intervals_and_the_models_thresholds(run, squares, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        "eval", trained, squares, "--split", "val", "--bootstrap", 50, "--json", tmp_path / "f.json"
    )  # fmt: skip
    assert code == 0
    assert "with 95 % intervals of 50 resamples of the images: VOC12 mAP " in out
    assert set(json.loads((tmp_path / "f.json").read_text())["intervals"]["coco"]) == {"AP", "AP50", "AP75"}
    image = squares / "JPEGImages" / "000.png"
    assert "the model's thresholds are reported: blue " in run("predict", trained, image)[1]
    asked = run("predict", trained, image, "--threshold", 0.4)[1]
    assert "scores from 0.4 are reported" in asked
    code, told, err = run("train", squares, "--out", tmp_path / "held", "--epochs", 1, "--val-split", "train", *SMALL)
    assert code == 0, err
    # Its validation was a tenth of the split it learnt; the other split is one that it has never seen
    assert f"next: multibox eval {tmp_path / 'held'} {squares} --split val" in told
    code, told, err = run("train", squares, "--out", tmp_path / "bare", "--epochs", 1, "--val-split", "none", *SMALL)
    assert code == 0, err
    assert "next: multibox eval" in told
    assert "scores from 0.3 are reported" in run("predict", tmp_path / "bare", image)[1]


@pytest.mark.slow
def test_seeds_and_ablations_end_in_a_table(run, squares, tmp_path):
    few = ("train", squares, "--epochs", 1, *SMALL)
    code, out, err = run(*few, "--out", tmp_path / "seeds", "--seeds", 2)
    assert code == 0, err
    for words in ("run 2 of 2", "standard deviation", "95 % of the mean", "seeds.csv"):
        assert words in out
    code, out, err = run(*few, "--out", tmp_path / "grid", "--ablate", "matcher=atss")
    assert code == 0, err
    assert (tmp_path / "grid" / "atss" / "seed-0" / "last.safetensors").is_file()
    assert "combination 1 of 1: atss" in out
    assert "ablation.md" in out


@pytest.mark.slow
def test_a_class_that_changed_its_name_is_named(run, squares, trained):
    for path in (squares / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>red<", "<name>crimson<"))
    code, out, _ = run("eval", trained, squares, "--split", "val")
    assert code == 0
    assert "left out, of other classes than asked for: crimson (" in out
    assert "scored on 1 of the detector's 2 classes: blue" in out
    (squares.parent / "names.json").write_text('{"crimson": "red"}')
    for given in (["crimson=red"], [squares.parent / "names.json"], ["crimson=", "--rename", "blue=red"]):
        code, out, _ = run("eval", trained, squares, "--split", "val", "--rename", *given)
        assert code == 0
        assert ("left out" in out) == (given[0] == "crimson=")
    code, _, err = run("eval", trained, squares, "--split", "val", "--rename", "crimson")
    assert code == 2
    assert "--rename crimson: expected A=B" in err
    code, _, err = run("eval", trained, squares, "--split", "val", "--rename", "blue=")
    assert code == 2
    assert "shares no class with the model" in err
    for verb in (["eval", trained], ["report", trained], ["inspect", trained], ["compare", trained, trained]):
        code, _, err = run(*verb, squares, "--split", "val", "--rename", "crimson=rd")
        assert code == 2
        assert "rename crimson=rd: no class 'rd' in the model, did you mean 'red'?; it has blue, red" in err, verb
    _, out, _ = run("eval", trained, squares, "--split", "val", "--rename", "crimsn=red")
    assert "the data has no class 'crimsn' to rename, did you mean 'crimson'?" in out
    for text, words in (("{", "not a readable JSON file"), ('{"a": 1}', "expected an object such as")):
        (squares.parent / "names.json").write_text(text)
        code, _, err = run("eval", trained, squares, "--split", "val", "--rename", squares.parent / "names.json")
        assert code == 2 and words in err


def test_list_and_diff(run):
    presets = {line.split()[0]: line for line in run("list", "presets")[1].splitlines()}
    assert all(figure in presets["ssd300-vgg16"] for figure in ("300x300", "26.29", "8,732"))
    assert "5,444" in presets["tinyssd"]
    assert "1,917" in presets["ssd300-mobilenetv1"]
    out = run("list", "recipes", "--diff", "d2l", "d2l-focal")[1]
    assert ["loss.classification", "cross_entropy", "focal"] in [line.split() for line in out.splitlines()]
    assert "train.lr" not in out
    across = run("list", "recipes", "--diff", "nvidia", "d2l")[1]
    assert "nvidia (ssd300-resnet50)" in across
    assert "did you mean 'caffe'" in run("list", "recipes", "--diff", "cafe", "d2l")[2]
    importers = run("list", "importers")[1]
    assert "mxnet" in importers
    assert "onnxruntime" in next(line for line in importers.splitlines() if line.startswith("linzaer"))
    assert "mobilenetv3" in run("list", "backbones")[1]
    assert "every preset" in run("list", "recipes")[1]


@pytest.mark.slow
def test_plots(run, tmp_path, trained):
    assert run("plot", "losses", "--out", tmp_path / "l.png")[0] == 0
    assert run("plot", "curves", trained, "--out", tmp_path / "c.png")[0] == 0
    assert width(tmp_path / "l.png") > 500


@pytest.mark.slow
def test_data_make_show_convert(run, tmp_path):
    code, out, _ = run(
        "data", "make", "sprites", tmp_path / "s", "--images", 10, "--size", 64, "--classes", 2, "--objects", "1-3"
    )
    assert code == 0
    code, out, _ = run("data", "show", tmp_path / "s", "--out", tmp_path / "sheet.png", "--augmentation", "default")
    assert code == 0
    assert "voc" in out
    assert width(tmp_path / "sheet.png") > 256
    code, out, _ = run("data", "convert", tmp_path / "s", tmp_path / "y", "--to", "yolo")
    assert code == 0
    assert out.startswith(f"wrote {tmp_path / 'y'} as yolo, from {tmp_path / 's'} (voc): 10 images (train 9, val 1), ")
    assert "PosixPath" not in out
    assert run("data", "show", tmp_path / "y", "--out", tmp_path / "sheet2.png")[0] == 0
    assert run("data", "convert", tmp_path / "s", tmp_path / "y", "--to", "yolo")[0] == 2


def test_a_stopped_run_goes_on_by_the_command_that_it_names():
    from multibox.cli.progress import resume_command

    assert resume_command(Path("my runs/tinyssd-1")) == "multibox train --resume 'my runs/tinyssd-1'"


def commands(group, *names):
    """Yield every command as its words."""
    for name, command in group.commands.items():
        yield from commands(command, *names, name) if hasattr(command, "commands") else [(*names, name)]


VERBS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_the_help_of_every_verb_has_an_example(run, words):
    code, out, _ = run(*words, "--help")
    assert code == 0 and f"Example: multibox {' '.join(words)}" in " ".join(out.split())


def test_version_and_help(run):
    assert run("--version")[1].strip() == "0.1.0"
    out = run("--help")[1]
    assert len(VERBS) >= 14 and all(words[0] in out for words in VERBS)


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (89.6, "90 s"), (180, "3 min"), (7800, "2 h 10 min"), (5399, "1 h 30 min")]
)
def test_times_are_told_as_a_person_would(seconds, text):
    assert console.describe_seconds(seconds) == text


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.counting("drawing", 3) as done:
        done(3)
    assert "drawing" in capsys.readouterr().err
