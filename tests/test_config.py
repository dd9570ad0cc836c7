import pytest
from hypothesis import given
from hypothesis import strategies as st

from multibox.config import Config
from multibox.errors import ConfigError
from multibox.presets import PRESETS, RECIPES, fitting, resolve
from multibox.settings import parse_assignments


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
        ("train.lrr=1", ["train.lrr", "did you mean train.lr?"]),
        ("trian.lr=1", ["did you mean train.lr?"]),
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


def test_unknown_preset_and_recipe_name_their_neighbour():
    with pytest.raises(ConfigError, match="did you mean 'tinyssd'"):
        resolve("tinysd")
    with pytest.raises(ConfigError, match="did you mean 'd2l-focal'"):
        resolve("tinyssd", "d2l-focl")


def test_every_recipe_fits_a_known_preset():
    assert all(preset in PRESETS for recipe in RECIPES.values() for preset in recipe.fits)
    assert fitting("default") == list(PRESETS)


@pytest.mark.parametrize(
    ("recipe", "classification", "localization", "batch"),
    [("d2l", "cross_entropy", "l1", 32), ("d2l-focal", "focal", "smooth_l1", 8)],
)
def test_d2l_recipes_are_post_b(recipe, classification, localization, batch):
    config = resolve("tinyssd", recipe)
    assert (config.loss.classification, config.loss.localization) == (classification, localization)
    assert (config.loss.alpha, config.loss.gamma, config.loss.sigma) == (0.25, 2.0, 1.0)
    assert config.loss.normalizer == "anchors"
    assert config.loss.negative_ratio == "all"
    assert (config.train.lr, config.train.weight_decay, config.train.momentum) == (0.2, 5e-4, 0)
    assert (config.train.epochs, config.train.batch_size) == (20, batch)
    assert (config.train.schedule, config.train.ema, config.train.bias_decay, config.train.norm_decay) == (
        "constant",
        "none",
        1,
        1,
    )
    assert (config.matching.matcher, config.matching.threshold, config.matching.inclusive) == ("bipartite", 0.5, False)
    assert (config.model.mean, config.model.std) == ((0, 0, 0), (1, 1, 1))
    assert (config.train.augmentation, config.train.report, config.post.nms_threshold) == ("d2l", "d2l", 0.5)
