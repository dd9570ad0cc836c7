import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from multibox.plots import labels as lettering
from multibox.plots.curves import plot_precision_recall
from multibox.plots.detections import draw_detections
from multibox.plots.labels import free_corner, place_labels
from multibox.structures import Detections

DEJAVU = str(Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
CACHES = ("width", "shortened", "drawable_names", "_file_for", "_system_font")


@pytest.fixture(autouse=True)
def forget():
    """Fonts are looked for once; each test has its own."""
    yield
    for name in CACHES:
        getattr(lettering, name).cache_clear()


def system_has(monkeypatch, *files):
    for name in CACHES:
        getattr(lettering, name).cache_clear()
    monkeypatch.setattr(lettering, "_system_fonts", lambda: files)


def test_without_a_font_accents_go_and_other_scripts_become_numbers(monkeypatch, caplog):
    system_has(monkeypatch)
    names = ("cat", "大熊猫", "Müller", "Кошка", "a 大")
    with caplog.at_level(logging.WARNING, "multibox"):
        assert lettering.drawable_names(names) == ("cat", "class 1", "Muller", "class 3", "class 4")
        assert lettering.drawable_names(names)[1] == "class 1"
    (record,) = caplog.records
    assert "letters of 3 class names" in record.getMessage()
    assert "大熊猫 is class 1" in record.getMessage()


def test_captions_keep_the_letters_there_are(monkeypatch):
    system_has(monkeypatch)
    assert [lettering.drawable_text(text) for text in ("a.jpg", "é.jpg", "图 1.jpg")] == ["a.jpg", "e.jpg", "? 1.jpg"]


def test_a_font_of_the_system_is_used_for_what_it_has(monkeypatch, caplog):
    # The second file is no font at all, the third is not there
    broken = __file__
    system_has(monkeypatch, broken, "/no/such/font.ttf", DEJAVU)
    assert lettering.drawable_names(("cat", "Müller", "Кошка", "大熊猫")) == ("cat", "Müller", "Кошка", "class 3")
    assert len(caplog.records) == 1
    assert lettering.font_for("Кошка 0.90", 20).path == DEJAVU
    assert lettering.font_for("Кошка 0.90", 20).size == 20
    assert lettering.font_for("cat 0.90", 20).path != DEJAVU
    assert lettering.extra_fonts(["cat", "Кошка", "Müller"]) == (DEJAVU,)


def test_names_of_a_font_are_drawn_with_it(monkeypatch):
    """The same letters as a Pillow script draws with that font, and not the box of a missing letter."""
    system_has(monkeypatch, DEJAVU)
    found = Detections(
        np.array([[50, 100, 350, 350]], np.float32), np.ones(1, np.float32), np.zeros(1, int), ("Кошка",)
    )
    drawn = draw_detections(Image.new("RGB", (400, 400)), found)
    font = ImageFont.truetype(DEJAVU, 12)
    mask = font.getmask("ш")
    wanted = np.array(mask).reshape(mask.size[::-1]) > 250
    ink = (np.asarray(drawn) == 255).all(-1)
    windows = np.lib.stride_tricks.sliding_window_view(ink, wanted.shape)
    assert (windows | ~wanted).all(axis=(2, 3)).any()


def test_chinese_with_a_font_of_this_machine():
    if lettering._system_font(frozenset("大熊猫")) is None:
        pytest.skip("needs a system font with Chinese letters, such as fonts-wqy-microhei")
    assert lettering.drawable_names(("大熊猫",)) == ("大熊猫",)
    assert lettering.font_for("大熊猫", 20).getlength("大熊猫") > 40


def test_right_to_left_names_need_a_layout_engine(monkeypatch):
    system_has(monkeypatch, DEJAVU)
    monkeypatch.setattr(lettering.features, "check", lambda name: False)
    assert lettering.drawable_names(("قطة",)) == ("class 0",)


def test_font_folders_of_every_system(monkeypatch, tmp_path):
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    for name in ("Sans-Bold.ttf", "Sans-Regular.ttf", "readme.txt", "Serif.OTF"):
        (fonts / name).write_bytes(b"")
    lettering._system_fonts.cache_clear()
    monkeypatch.setattr(lettering, "_font_folders", lambda: [fonts, tmp_path / "absent"])
    assert [Path(file).name for file in lettering._system_fonts()] == ["Sans-Regular.ttf", "Sans-Bold.ttf", "Serif.OTF"]
    lettering._system_fonts.cache_clear()
    monkeypatch.undo()
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(lettering.sys, "platform", platform)
        assert lettering._font_folders()


def test_curves_use_the_same_fonts(monkeypatch, tmp_path):
    """Matplotlib warns of letters that its fonts lack, and warnings are errors here."""
    system_has(monkeypatch, DEJAVU)
    line = np.array([0.0, 1.0])
    plot_precision_recall(tmp_path / "a.png", {"Кошка": (line, line, 0.5), "大熊猫": (line, line, 0.4)})
    assert (tmp_path / "a.png").stat().st_size > 1000


def boxes(count, low, high, image, seed=0):
    rng = np.random.default_rng(seed)
    size = rng.uniform(low, high, (count, 2))
    first = rng.uniform(0, 1, (count, 2)) * (np.array(image) - size)
    return np.concatenate([first, first + size], axis=1).astype(np.float32)


def rectangles(placed, sizes):
    there = placed.corners[:, 0] >= 0
    return np.concatenate([placed.corners[there], placed.corners[there] + sizes[there]], axis=1)


def shared(a, b):
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "high"), [(1, 300), (30, 300), (100, 60), (400, 20)])
def test_labels_lie_inside_and_never_on_each_other(count, high, seed):
    image = (640, 480)
    where = boxes(count, 4, high, image, seed)
    sizes = np.random.default_rng(seed).integers(12, 80, (count, 2)).astype(np.float32)
    sizes[:, 1] = 14
    taken = (0, 400, 100, 480)
    placed = place_labels(where, sizes, image, [taken])
    found = rectangles(placed, sizes)
    assert len(found) > 0
    assert (found >= 0).all() and (found[:, 2:] <= image).all()
    common = shared(found, found)
    assert (common - np.diag(np.diag(common)) == 0).all()
    assert (shared(found, np.array([taken])) == 0).all()
    assert placed.missing == pytest.approx(1 - len(found) / count)


def test_one_label_stands_above_its_box():
    placed = place_labels(np.array([[50, 60, 90, 100]], np.float32), np.array([[30, 10]], np.float32), (200, 200))
    assert placed.corners.tolist() == [[50, 50]]
    assert placed.hidden < 0.01 and placed.missing == 0


def test_a_label_goes_where_it_hides_no_neighbour():
    """A small object right above the box would vanish below its label."""
    where = np.array([[50, 60, 150, 160], [52, 48, 70, 58]], np.float32)
    sizes = np.array([[40, 12], [40, 12]], np.float32)
    placed = place_labels(where, sizes, (300, 300))
    assert shared(rectangles(placed, sizes), where[1:]).sum() == 0
    above = np.array([[50, 48, 90, 60]])
    assert shared(above, where[1:]).sum() > 100


def test_what_fits_nowhere_is_left_out():
    where = np.array([[0, 0, 20, 20]], np.float32)
    placed = place_labels(where, np.array([[30, 10]], np.float32), (20, 20))
    assert placed.corners.tolist() == [[-1, -1]] and placed.missing == 1
    assert len(place_labels(where[:0], where[:0, :2], (20, 20)).corners) == 0


def test_the_legend_takes_the_emptiest_corner():
    where = np.array([[0, 0, 50, 50], [0, 60, 40, 100], [60, 60, 99, 99]], np.float32)
    assert free_corner(where, (30, 30), (100, 100)) == (70, 0)
