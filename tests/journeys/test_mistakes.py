"""Mistakes of a beginner: each ends in one sentence before data is read, and leaves nothing behind."""

import pytest

NONSENSE = [
    ("post.nms_threshold=5", "from 0 to 1"),
    ("post.score_threshold=1", "below 1"),
    ("post.thresholds=[2]", "from 0 to 1"),
    ("post.pre_nms_topk=0", "at least 1"),
    ("post.max_per_class=0", "none"),
    ("post.clip=never", "after_nms"),
    ("model.std=[0,0,0]", "1e-06"),
    ("model.mean=[2000,0,0]", "from -1000 to 1000"),
    ("model.input_size=[0,0]", "from 16 to 8192"),
    ("model.input_size=64", "2 whole numbers"),
    ("model.variances=[0,1,1,1]", "above 0"),
    ("model.heads=big", "conv3x3"),
    ("model.backbone=tinysd", "did you mean 'tinyssd'"),
    ("model.width=0", "above 0"),
    ("model.prior=1", "below 1"),
    ("train.warmup=2", "from 0 to 1"),
    ("train.warmup_steps=0", "none"),
    ("train.workers=-7", "from 0 to 64"),
    ("train.threads=0", "auto"),
    ("train.batch_size=0", "auto"),
    ("train.batch_size=3.5", "whole number"),
    ("train.lr=nan", "above 0"),
    ("train.lr=inf", "above 0"),
    ("train.lr=0", "above 0"),
    ("train.lr=fast", "above 0"),
    ("train.steps=0", "at least 1"),
    ("train.epochs=-1", "at least 1"),
    ("train.minutes=0", "above 0"),
    ("train.steps=none", "give one"),
    ("train.patience=0", "none"),
    ("train.momentum=1", "below 1"),
    ("train.ema=1", "below 1"),
    ("train.clip_norm=0", "none"),
    ("train.boundaries=[0.8,0.5]", "ascending"),
    ("train.scales=[2,1]", "smallest"),
    ("train.seed=-1", "at least 0"),
    ("train.mix_until=1.5", "from 0 to 1"),
    ("train.validate_every=0", "auto"),
    ("train.precision=int8", "bfloat16"),
    ("train.augmentation=defalt", "did you mean 'default'"),
    ("train.optimizer=adam", "adamw"),
    ("train.weights=nope", "does not exist"),
    ("loss.sigma=-1", "above 0"),
    ("loss.gamma=-1", "at least 0"),
    ("loss.alpha=7", "from 0 to 1"),
    ("loss.negative_ratio=0", "all"),
    ("loss.classification=hinge", "cross_entropy"),
    ("matching.threshold=0", "above 0"),
    ("anchors.sizes=[]", "feature map"),
    ("anchors.sizes=[[-1,2]]", "above 0"),
    ("anchors.ratios=[[1]]", "feature map"),
    ("anchors.style=round", "mxnet"),
    ("anchors.fit=0", "none"),
    ("data.format=xml", "known"),
    ("data.on_bad=ignore", "skip"),
    ("data.merge=[\"cars\"]", "NEW=A,B"),
    ("data.fingerprint=abc", "the run sets it"),
    ("train.speed=fast", "unknown setting"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "words"), NONSENSE, ids=[setting for setting, _ in NONSENSE])
def test_a_nonsensical_setting_is_refused_by_name_before_data_is_read(call, tmp_path, setting, words):
    out = tmp_path / "run"
    command = ["train", tmp_path / "no-data", "--preset", "tinyssd", "--out", out]
    code, printed, err = call(*command, "--set", setting)
    assert code == 2
    assert printed == ""
    assert setting.partition("=")[0] in err
    assert words in err
    assert err.startswith("multibox: ") and err.count("\n") == 1
    assert "no-data" not in err
    assert list(tmp_path.iterdir()) == []


def test_settings_that_make_sense_get_as_far_as_the_data(call, tmp_path):
    code, _, err = call("train", tmp_path / "no-data", "--preset", "tinyssd", "--set", "train.lr=0.1")
    assert code == 2
    assert "no-data does not exist" in err


TYPED = [
    (["DATA", "--batch", "8"], "did you mean --set train.batch_size=8?"),
    (["DATA", "--imgsz", "640"], "did you mean --set model.input_size=[640,640]?"),
    (["DATA", "--set", "data=x"], "the data set is the first argument"),
    (["DATA", "--set", "batch_size=8"], "did you mean train.batch_size=8?"),
    (["DATA", "--set", "train.lr"], "expected section.key=value"),
    (["data=DATA"], "data=DATA does not exist"),
    (["DATA", "--out", "RUN", "--resume"], "--resume takes the run folder now: multibox train --resume RUN"),
    (["DATA", "--resume", "--out", "RUN"], "--resume takes the run folder now: multibox train --resume RUN"),
    (["--resume", "--out", "RUN"], "--resume takes the run folder now: multibox train --resume RUN"),
    (["DATA", "--resume"], "--resume takes the run folder now: multibox train --resume RUN"),
    (["--resume", "DATA"], "DATA is no run to resume"),
    (["--resume", "nothing"], "there is no such folder"),
    (["--resume", "old", "--out", "other"], "leave --out away"),
    (["nothing"], "nothing does not exist"),
    ([], "train needs DATA"),
    (["DATA", "--data", "DATA"], "--data belongs to --resume"),
    (["DATA", "--minutes", "1", "--epochs", "2"], "exclude each other"),
    (["DATA", "--preset", "tinysd"], "did you mean 'tinyssd'"),
    (["DATA", "--recipe", "cafe"], "did you mean 'caffe'"),
    (["DATA", "--weights", "cocoo"], "cocoo does not exist"),
    (["DATA", "--val-split", "nope"], "has no split 'nope'"),
    (["DATA", "--format", "xml"], "unknown format 'xml'"),
    (["DATA", "--device", "tpu"], "tpu"),
    (["DATA", "--config", "none.toml"], "none.toml cannot be read"),
    (["empty"], "empty"),
]


@pytest.mark.parametrize(("arguments", "words"), TYPED, ids=[" ".join(arguments) for arguments, _ in TYPED])
def test_a_mistyped_train_says_what_was_meant(call, squares, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    squares.rename("DATA")
    for name in ("empty", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "old" / "config.toml").write_text('preset = "tinyssd"\n')
    before = sorted(tmp_path.rglob("*"))
    code, _, err = call("train", *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("film.mp4", "is no video that can be read"),
        ("https://example.org/dog.jpg", "nothing is downloaded"),
        ("photos.zip", "is an archive"),
        ("photos.tar.gz", "is an archive"),
        ("0", "names a camera"),
        ("gone.jpg", "gone.jpg does not exist"),
        ("*.png", "no image or video matches"),
        ("empty", "empty"),
        ("notes.txt", "notes.txt"),
        ("torn.jpg", "torn.jpg"),
    ],
)
def test_what_is_no_image_is_named(call, tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("film.mp4", "photos.zip", "photos.tar.gz", "notes.txt", "torn.jpg"):
        (tmp_path / name).write_bytes(b"\0\1\2")
    code, _, err = call("predict", "coco", source)
    assert code == 2
    assert words in err
    assert err.splitlines()[-1].startswith("multibox: ")
    assert not (tmp_path / "predictions").exists()


@pytest.mark.slow
def test_a_failed_start_does_not_block_the_corrected_command(call, squares, tmp_path, train_options):
    command = ["train", squares, "--out", tmp_path / "run", "--epochs", "1", *train_options]
    assert call(*command, "--set", 'train.freeze=["nope*"]')[0] == 2
    assert not (tmp_path / "run").exists()
    assert call(*command, "--set", "anchors.steps=[8]")[0] == 2
    assert not (tmp_path / "run").exists()
    code, _, err = call(*command)
    assert code == 0, err
    assert (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("anchors.steps=[8]", "anchors.steps"),
        ("post.thresholds=[0.3,0.3,0.3]", "post.thresholds"),
        ("train.freeze=[\"nope*\"]", "train.freeze"),
        ("data.classes=[\"green\"]", "data.classes"),
        ("data.merge=[\"x=green\"]", "data.merge"),
        ("data.train_split=nope", "has no split 'nope'"),
        ("model.input_size=[16,16]", "model.input_size"),
    ],
)  # fmt: skip
def test_what_only_the_data_and_the_network_can_tell_is_refused_without_a_trace(
    call, squares, tmp_path, train_options, setting, words
):
    command = ["train", squares, "--out", tmp_path / "run", "--epochs", "1", *train_options, "--val-split", "none"]
    code, _, err = call(*command, "--set", setting)
    assert code == 2
    assert words in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [[], ["--preset", "tinyssd"], ["--recipe", "caffe"]])
def test_a_dry_run_prints_the_layers_and_writes_nothing(call, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", "anything", *more, "--set", "train.lr=0.5", "--dry-run")
    assert code == 0, err
    assert ["train.lr", "0.5", "--set"] in [line.split() for line in out.splitlines()]
    assert list(tmp_path.iterdir()) == []
