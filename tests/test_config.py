import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.config import LENGTHS, Config
from multibox.errors import ConfigError
from multibox.models.build import build_model
from multibox.models.weights import default_preset
from multibox.presets import PRESETS, RECIPES, SET, fitting, resolve, resolve_layers
from multibox.settings import flatten, get_setting, list_settings, parse_assignments

OLD = (Path(__file__).parent / "golden" / "config_format_2.toml").read_text(encoding="utf-8")


def test_toml_round_trip_keeps_every_setting():
    for recipe in RECIPES:
        config = resolve(fitting(recipe)[0], recipe)
        assert Config.from_toml(config.to_toml()) == config
        assert Config.from_dict(config.to_dict()) == config


@given(lr=st.floats(1e-6, 10), epochs=st.integers(1, 1000))
def test_set_parses_strings_to_the_field_type(lr, epochs):
    config = Config().updated(parse_assignments([f"train.lr={lr!r}", f"train.epochs={epochs}"]))
    assert config.train.lr == lr
    assert config.train.epochs == epochs


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.lrr=1", ["train.lrr", "did you mean train.lr=1?"]),
        ("trian.lr=1", ["did you mean train.lr=1?"]),
        ("train=1", ["section"]),
        ("train.lr=fast", ["train.lr", "a number"]),
        ("train.epochs=1.5", ["whole number"]),
        ("anchors.clip=1", ["true or false"]),
        ("model.score=soft", ["softmax, sigmoid"]),
        ("model.input_size=[256]", ["2 whole numbers from 16 to 8192, such as [256, 256]"]),
        ("model.mean=[1, 2]", ["3 numbers from -1000 to 1000, such as [127.5"]),
        ("train.scales=2", ["2 numbers above 0", "such as [0.75, 1.25]"]),
        ("anchors.sizes=[1]", ["a list of lists, one per feature map", "such as [[0.1, 0.2]"]),
        ("preset.x=1", ["not a section"]),
        ("train.lr", ["section.key=value"]),
    ],
)
def test_a_wrong_setting_says_what_was_expected(assignment, words):
    with pytest.raises(ConfigError) as error:
        Config().updated(parse_assignments([assignment]))
    assert all(word in str(error.value) for word in words)


def test_precedence_is_preset_then_recipe_then_set():
    assert Config().train.lr == 1e-3
    assert resolve("tinyssd").train.lr == PRESETS["tinyssd"].settings["train.lr"]
    assert resolve("tinyssd", "d2l").train.lr == RECIPES["d2l"].settings["train.lr"]
    assert resolve("tinyssd", changes={"train.lr": "0.5"}).train.lr == 0.5


NONSENSE = [
    ("model.backbone", "", "a name of"),
    ("model.width", 0, "above 0"),
    ("model.heads", "conv5x5", "one of conv3x3"),
    ("model.input_size", [0, 64], "2 whole numbers from 16 to 8192"),
    ("model.input_size", [64.5, 64], "2 whole numbers"),
    ("model.input_size", [64, 64, 3], "2 whole numbers"),
    ("model.mean", [0, 0], "3 numbers"),
    ("model.std", [0, 0, 0], "3 numbers of at least 1e-06"),
    ("model.variances", [0.1, 0.1, 0.2, -0.2], "4 numbers above 0"),
    ("model.prior", 0, "above 0 and below 1, or none"),
    ("anchors.sizes", [[0.1], "x"], "lists"),
    ("anchors.ratios", [[1, -2]], "above 0"),
    ("anchors.steps", [8, 0], "above 0"),
    ("anchors.offset", 2, "from 0 to 1"),
    ("anchors.clip", 1, "true or false"),
    ("anchors.fit", 0, "or none"),
    ("matching.threshold", 0, "above 0 and at most 1"),
    ("matching.low", -1, "from 0 to 1"),
    ("loss.sigma", -1, "above 0"),
    ("loss.alpha", 2, "from 0 to 1"),
    ("loss.gamma", float("inf"), "at least 0"),
    ("loss.negative_ratio", 0, "above 0, or all"),
    ("loss.negative_overlap", 2, "or any"),
    ("loss.minimum_negatives", -1, "at least 0"),
    ("loss.hard_examples", 1.5, "whole number"),
    ("train.weights", "", "none, the name"),
    ("train.epochs", 0, "at least 1, or none"),
    ("train.steps", True, "whole number"),
    ("train.minutes", float("nan"), "above 0, or none"),
    ("train.batch_size", 0, "or auto"),
    ("train.lr", 0, "above 0, or auto"),
    ("train.lr", "fast", "above 0, or auto"),
    ("train.momentum", 1, "below 1"),
    ("train.weight_decay", -1e-4, "at least 0"),
    ("train.freeze_until", 1.5, "from 0 to 1"),
    ("train.boundaries", [80_000, 100_000], "shares of the run"),
    ("train.boundaries", [0.8, 0.6], "ascending shares"),
    ("train.boundaries", [0.5, 0.5], "ascending shares"),
    ("train.factors", [1, -0.1], "at least 0"),
    ("train.schedule", "steps", "one more than train.boundaries"),
    ("train.warmup", 2, "from 0 to 1"),
    ("train.warmup_steps", 0, "or none"),
    ("train.clip_norm", 0, "or none"),
    ("train.ema", 1, "below 1, or none"),
    ("train.scales", [1.25, 0.75], "smallest and the largest"),
    ("train.scales", [0, 1], "above 0"),
    ("train.validate_every", 0, "or auto"),
    ("train.patience", -1, "or none"),
    ("train.seed", -1, "at least 0"),
    ("train.workers", -7, "from 0 to 64, or auto"),
    ("train.threads", 0, "or auto"),
    ("post.score_threshold", 1, "below 1"),
    ("post.thresholds", [0.5, 1.5], "from 0 to 1"),
    ("post.nms_threshold", 5, "from 0 to 1"),
    ("post.pre_nms_topk", 0, "at least 1"),
    ("post.max_detections", 10**30, "whole number"),
    ("post.max_per_class", 0, "or none"),
    ("post.min_size", 1, "below 1"),
    ("data.path", [""], "paths separated by commas"),
    ("data.merge", ["car"], "NEW=A,B"),
    ("data.on_bad", "explode", "stop, skip"),
]


@pytest.mark.parametrize(("key", "value", "words"), NONSENSE)
def test_nonsense_is_refused_by_name(key, value, words):
    for build in (
        lambda: Config().updated({key: value}),
        lambda: resolve("tinyssd", changes={key: value}),
        lambda: resolve_layers("tinyssd", layers=[("my.toml", {key: value})]),
    ):
        with pytest.raises(ConfigError) as error:
            build()
        assert f"{key}=" in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss.classification_weight": 0, "loss.localization_weight": 0}, "one of them above 0"),
        ({"matching.matcher": "dual_max", "matching.low": 0.7}, "matching.low=0.7: expected at most"),
        (dict.fromkeys(LENGTHS, "none"), "are all none"),
        ({"train.backbone_lr": 0, "train.head_lr": 0}, "leave nothing to learn"),
        (
            {"train.schedule": "steps", "train.factors": [1], "train.lr": 0.1, "train.minimum_lr": 1},
            "train.minimum_lr=1: expected at most train.lr=0.1",
        ),
        ({"train.epochs": 3, "train.steps": 9}, "train.epochs=3 and train.steps=9 are two lengths"),
        ({"train.schedule": "steps", "train.boundaries": [0.5], "train.factors": [0, 0]}, "a factor above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        resolve("tinyssd", changes=changes)


def test_a_file_has_types_and_the_command_line_has_not():
    with pytest.raises(ConfigError, match=r"my.toml: train.lr=0.1: expected a number above 0, or auto"):
        Config.from_toml('train.lr = "0.1"', "my.toml")
    with pytest.raises(ConfigError, match=r"my.toml: train.lr=0.1: expected a number"):
        resolve_layers("tinyssd", layers=[("my.toml", {"train.lr": "0.1"})])
    assert resolve_layers("tinyssd", layers=[(SET, {"train.lr": "0.1"})])[0].train.lr == 0.1
    assert Config.from_toml("train.lr = 1").train.lr == 1


def test_every_setting_has_a_meaning_and_a_default_of_its_own_type():
    for key, setting in list_settings(Config).items():
        assert setting.meaning.endswith(".") and len(setting.meaning) > 12, key
        assert setting.expected, key
        values = {"train.epochs": 20} if key in LENGTHS else {}
        assert Config().updated(values | {key: setting.default}) == Config()
    assert msgspec.structs.fields(Config)


@pytest.mark.parametrize("key", LENGTHS)
def test_a_layer_that_sets_one_length_unsets_the_others(key):
    config = resolve("tinyssd", changes={key: 3})
    assert {other: get_setting(config, other) for other in LENGTHS} == dict.fromkeys(LENGTHS, "none") | {key: 3}
    below = [("my.toml", {"train.minutes": 5.0}), (SET, {key: "3"})]
    config, origins = resolve_layers("tinyssd", layers=below)
    assert get_setting(config, key) == 3
    assert {origins[other] for other in LENGTHS} == {SET}


def test_each_setting_tells_its_layer():
    layers = [("my.toml", {"train.lr": 0.1, "train.seed": 1}), (SET, {"train.seed": "2"})]
    config, origins = resolve_layers("multibox-coco", layers=layers)
    assert (config.train.lr, config.train.seed) == (0.1, 2)
    assert {
        "preset": "--preset",
        "model.backbone": "preset multibox-coco",
        "train.weights": "preset multibox-coco",
        "train.optimizer": "recipe default",
        "matching.matcher": "tuning of multibox-coco",
        "train.lr": "my.toml",
        "train.seed": SET,
        "model.coder": "default",
    }.items() <= origins.items()
    assert origins.keys() == list_settings(Config).keys()
    with pytest.raises(ConfigError, match=r"my.toml: preset=tinyssd comes too late; give --preset tinyssd"):
        resolve_layers("multibox-s", layers=[("my.toml", {"preset": "tinyssd"})])


def test_the_default_preset_fits_the_recipe():
    assert {recipe: default_preset(recipe) for recipe in ("default", "d2l", "caffe", "nvidia")} == {
        "default": "multibox-fine",
        "d2l": "tinyssd",
        "caffe": "ssd300-vgg16",
        "nvidia": "ssd300-resnet50",
    }
    assert resolve("multibox-coco").train.weights == "coco"
    assert resolve("tinyssd").train.weights == "none"


def test_a_config_alone_is_a_network():
    config = Config()
    model = build_model(config, 2)
    assert model.heads.logits == 3
    assert (config.anchors.sizes, config.anchors.ratios) == tuple(
        PRESETS["tinyssd"].settings[f"anchors.{name}"] for name in ("sizes", "ratios")
    )


def test_data_stands_in_the_runs_file_and_in_no_model():
    config = Config().updated({"data.path": "a, b", "data.merge": "vehicle=car,bus;pet=cat", "data.val_split": "none"})
    assert config.data.path == ("a", "b")
    assert config.data.merge == ("vehicle=car,bus", "pet=cat")
    assert "data" not in config.to_dict() and "[data]" not in config.to_toml()
    assert Config.from_toml(config.to_toml(with_data=True)) == config
    assert Config.from_dict(config.to_dict()).data == Config().data


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("batch_size=8", "did you mean train.batch_size=8?"),
        ("batch=16", "did you mean train.batch_size=16?"),
        ("imgsz=640", "did you mean model.input_size=[640,640]?"),
        ("img_size=[640,480]", "did you mean model.input_size=[640,480]?"),
        ("image_size=x", "did you mean model.input_size?"),
        ("lr0=0.1", "did you mean train.lr=0.1?"),
        ("lr=0.1", "did you mean train.lr=0.1?"),
        ("epochs=5", "did you mean train.epochs=5?"),
        ("data=x", "multibox train DATA"),
        ("preset=x", "did you mean"),
        ("clip=true", "one of anchors.clip, post.clip"),
        ("threshhold=0.5", "did you mean matching.threshold=0.5?"),
        ("train.zzz=1", "known in train: weights, epochs"),
        ("zzz=1", "multibox list settings"),
    ],
)
def test_a_setting_by_another_name_is_recognised(assignment, words):
    if assignment == "preset=x":
        with pytest.raises(ConfigError, match="give --preset x"):
            resolve("tinyssd", changes=parse_assignments([assignment]))
        return
    with pytest.raises(ConfigError) as error:
        Config().updated(parse_assignments([assignment]))
    assert words in str(error.value)


def test_an_old_run_is_read_in_todays_words():
    config = Config.from_toml(OLD)
    today = resolve("ssd300-vgg16", "hikapok")
    differing = {key for key in list_settings(Config) if get_setting(config, key) != get_setting(today, key)}
    # Its order of images stays the one it was; today's default is auto
    assert differing == {"train.sampling"} and config.train.sampling == "uniform"
    lines = {
        "epochs = 0": "epochs = 60",
        "patience = 0": "patience = 4",
        "workers = -1": "workers = 2",
        "ema = 0.0": "ema = 0.99",
        "design_size = 300": "design_size = 0",
        "negative_ratio = 3.0": "negative_ratio = 0.0",
        "negative_overlap = 2.0": "negative_overlap = 0.5",
        "lr = 0.001": "lr = 0.0",
        "batch_size = 32": "batch_size = 0",
        "max_per_class = 200": "max_per_class = 0",
    }
    text = OLD
    for before, after in lines.items():
        assert f"\n{before}\n" in text
        text = text.replace(f"\n{before}\n", f"\n{after}\n")
    changed = flatten(Config.from_toml(text).to_dict())
    assert {
        "train.epochs": 60,
        "train.steps": "none",
        "train.boundaries": (501 / 120_000, 80_001 / 120_000, 100_001 / 120_000),
        "train.patience": 4,
        "train.workers": 2,
        "train.ema": 0.99,
        "train.lr": "auto",
        "train.batch_size": "auto",
        "anchors.design_size": "none",
        "loss.negative_ratio": "all",
        "loss.negative_overlap": 0.5,
        "post.max_per_class": "none",
    }.items() <= changed.items()


def test_old_boundaries_that_no_step_reaches_go_and_those_of_unknown_runs_are_refused():
    short = Config.from_toml(OLD.replace("steps = 120000", "steps = 100000")).train
    assert short.boundaries == (501 / 100_000, 80_001 / 100_000)
    assert short.factors == (0.1, 1.0, 0.1)
    unknown = OLD.replace("steps = 120000", "steps = 0").replace("epochs = 0", "epochs = 9")
    with pytest.raises(
        ConfigError, match=r"run.toml: train.boundaries=\[501, 80001, 100001\] are steps of a run given"
    ):
        Config.from_toml(unknown, "run.toml")
    assert tomllib.loads(unknown)["train"]["epochs"] == 9


@pytest.mark.parametrize(
    ("recipe", "steps"), [("caffe", 120_000), ("hikapok", 120_000), ("nvidia", 65), ("torchvision-ssd", 120)]
)
def test_shares_are_the_very_steps_of_the_originals(recipe, steps):
    shares = resolve(fitting(recipe)[0], recipe).train.boundaries
    found = {"caffe": (80_000, 100_000), "hikapok": (501, 80_001, 100_001), "nvidia": (43, 54)}.get(recipe, (80, 110))
    assert tuple(round(share * steps) for share in shares) == found


def test_unknown_preset_and_recipe_name_their_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'tinyssd'"):
        resolve("tinysd")
    with pytest.raises(ConfigError, match="did you mean 'd2l-focal'"):
        resolve("tinyssd", "d2l-focl")


def test_every_recipe_fits_a_known_preset():
    assert all(preset in PRESETS for recipe in RECIPES.values() for preset in recipe.fits)
    assert fitting("default") == list(PRESETS)


def test_the_old_word_of_a_value_is_read_everywhere():
    old, key = "pictures", "loss.normalizer"
    layers = [("my.toml", {key: old})]
    for config in (
        Config().updated({key: old}),
        Config.from_dict({"loss": {"normalizer": old}}),
        Config.from_toml(f'[loss]\nnormalizer = "{old}"'),
        resolve_layers("tinyssd", layers=layers)[0],
    ):
        assert config.loss.normalizer == "images"
