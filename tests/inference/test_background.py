"""The colour behind transparent pixels is one setting from training to the exported file."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import multibox
from multibox.config import Config
from multibox.data.images import read_image
from multibox.data.pixels import as_colour
from multibox.errors import ConfigError
from multibox.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def clear(tmp_path):
    """A PNG whose left half is transparent, its right half red."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (255, 0, 0, 255)
    pixels[:, :4, :3] = 99  # what lies under the transparency is not seen
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("white", (255, 255, 255)),
        ("#102030", (16, 32, 48)),
        ("#fff", (255, 255, 255)),
        ("rgb(1, 2, 3)", (1, 2, 3)),
        ("128,64,0", (128, 64, 0)),
        ("[127.5, 0, 255]", (128, 0, 255)),
    ],
)
def test_names_and_numbers_are_colours(text, colour, tmp_path):
    config = Config().updated({"model.background": text})
    assert as_colour(config.model.background) == colour
    assert Config.from_toml(config.to_toml()) == config
    assert Config.from_toml(f'[model]\nbackground = "{text}"') == config


@pytest.mark.parametrize("text", ["whit", "1,2", "1,2,256", "-1,0,0", "#12345678", "[nan,0,0]", "true,1,2", ""])
def test_what_is_no_colour_is_refused(text):
    with pytest.raises(ConfigError, match="expected a colour, such as white or #808080, or three numbers from 0"):
        Config().updated({"model.background": text})


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "1", "RGB"])
def test_transparent_pixels_of_every_mode_show_it(mode, tmp_path):
    options = {}
    if mode in ("RGBA", "LA", "PA"):
        image = Image.new("RGBA", (4, 4), (9, 9, 9, 0)).convert("LA").convert(mode)
    else:
        image = Image.new(mode, (4, 4), {"RGB": (9, 9, 9)}.get(mode, 0))
        options = {"transparency": (9, 9, 9) if mode == "RGB" else 0}
    if mode == "PA":
        image = Image.new("RGBA", (4, 4), (9, 9, 9, 0)).quantize(2)
    image.save(tmp_path / "a.png", **options)
    assert (np.asarray(read_image(tmp_path / "a.png")) == 255).all()
    assert (np.asarray(read_image(tmp_path / "a.png", (10, 20, 30))) == (10, 20, 30)).all()


def test_half_transparent_pixels_are_mixed(tmp_path):
    Image.new("RGBA", (4, 400), (200, 100, 0, 128)).save(tmp_path / "a.png")
    mixed = np.asarray(read_image(tmp_path / "a.png", (0, 0, 255))).astype(int)
    assert np.abs(mixed - (100, 50, 127)).max() <= 1


def test_a_checkpoint_keeps_it_and_an_old_one_reads_as_white(tmp_path, clear):
    detector = multibox.create("tinyssd", names=["a"])
    config = detector.config.updated({"model.background": "black"})
    save_checkpoint(tmp_path / "new.safetensors", Checkpoint(detector.model.state_dict(), config, ("a",)))
    assert multibox.load(tmp_path / "new.safetensors").background == (0, 0, 0)
    prepared, _ = multibox.load(tmp_path / "new.safetensors").prepare(clear)
    assert (prepared[:, 0] == 0).all()

    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = json.loads(file.metadata()["multibox"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["config"]["model"]["background"]
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "old.safetensors", {"multibox": json.dumps(metadata)})
    assert load_checkpoint(tmp_path / "old.safetensors").config.model.background == (255, 255, 255)
    prepared, _ = multibox.load(tmp_path / "old.safetensors").prepare(clear)
    assert (prepared[:, 0] == 255).all()


def test_predict_takes_another_for_one_call(run, tmp_path, clear, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("predict", "coco", clear, "--background", "0,0,255", "--out", "drawn")
    assert code == 0, err
    assert np.asarray(Image.open("drawn/a.jpg"))[4, 1].tolist()[2] > 200
    assert np.asarray(Image.open("drawn/a.jpg"))[4, 1].tolist()[0] < 60
    code, _, err = run("predict", "coco", clear, "--background", "blu", "--out", "again")
    assert code == 2
    assert "--background blu: expected a colour" in err


@pytest.mark.slow
def test_training_and_the_exported_file_agree(run, squares, tmp_path, clear):
    made = tmp_path / "run"
    options = ("--preset", "tinyssd", "--weights", "none", "--epochs", 1, "--set", "train.batch_size=4")
    code, _, err = run("train", squares, *options, "--background", "black", "--out", made)
    assert code == 0, err
    assert multibox.load(made).background == (0, 0, 0)
    code, _, err = run("export", made, "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert code == 0, err
    exported = multibox.load(tmp_path / "a.onnx")
    assert exported.background == (0, 0, 0)
    assert (exported.prepare(clear)[:, :4] == 0).all()
