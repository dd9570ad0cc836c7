import numpy as np
import pytest
from PIL import Image

from multibox.plots import detections
from multibox.plots.detections import PALETTE, contact_sheet, draw_detections, draw_sample
from multibox.structures import Detections, Sample


def found(boxes, scores, labels=None, names=("cat", "dog")):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    return Detections(boxes, np.array(scores, np.float32), labels, names)


def colour(name):
    return tuple(int(name[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (4000, 3000)])
def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_class(size):
    width, height = size
    image = Image.new("RGB", size, (40, 40, 40))
    box = [width * 0.25, height * 0.5, width * 0.75, height * 0.9]
    drawn = draw_detections(image, found([box], [0.87], [1]))
    assert drawn.size == size
    pixels = np.asarray(drawn)
    for x, y in ((box[0], height * 0.7), (box[2] - 1, height * 0.7), (width * 0.5, box[3] - 1)):
        assert tuple(pixels[int(y), int(x)]) == colour(PALETTE[1])
    assert tuple(pixels[int(height * 0.7), int(width * 0.5)]) == (40, 40, 40)
    assert (np.asarray(image) == 40).all()


def test_threshold_and_boxes_below_a_pixel_are_left_out():
    image = Image.new("RGB", (50, 50), (40, 40, 40))
    nothing = draw_detections(image, found([[5, 5, 40, 40], [5, 5, 5.5, 40], [-9, -9, 0, 0]], [0.2, 0.9, 0.9]), 0.3)
    assert np.array_equal(np.asarray(nothing), np.asarray(image))
    assert np.array_equal(np.asarray(draw_detections(image, found([], []))), np.asarray(image))


@pytest.mark.parametrize("box", [[0, 0, 20, 20], [180, 80, 200, 100], [0, 80, 200, 100], [-50, -50, 300, 200]])
def test_labels_stay_inside_the_image(box):
    """A label that ran out of the image would lose its colour: count the filled pixels."""
    image = Image.new("RGB", (200, 100), (40, 40, 40))
    drawn = np.asarray(draw_detections(image, found([box], [0.5])))
    middle = np.asarray(draw_detections(image, found([[60, 50, 80, 70]], [0.5])))
    own, other = ((each == colour(PALETTE[0])).all(-1).sum() for each in (drawn, middle))
    assert own > 0.5 * other


def test_difficult_is_dashed_and_classes_have_colours_of_their_own():
    image = Image.new("RGB", (200, 200), (40, 40, 40))
    flags = np.array([False])
    box, label = np.array([[20.0, 60, 180, 180]]), np.array([0])
    plain = draw_sample(image, Sample("a", "a", box, label, flags, flags), ("cat",))
    dashed = draw_sample(image, Sample("a", "a", box, label, ~flags, flags), ("cat",))
    count = [(np.asarray(each)[100:181] == colour(PALETTE[0])).all(-1).sum() for each in (plain, dashed)]
    assert 0.3 * count[0] < count[1] < 0.8 * count[0]
    assert len(set(PALETTE)) == len(PALETTE)


def test_contact_sheet_keeps_shapes_and_order():
    tiles = [Image.new("RGB", size, fill) for size, fill in (((10, 20), "red"), ((40, 10), "lime"), ((5, 5), "blue"))]
    sheet = contact_sheet(tiles, columns=2, tile=64, captions=["a", "b" * 100, ""])
    pixels = np.asarray(sheet)
    red, lime, blue = ((pixels == value).all(-1).nonzero() for value in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert np.ptp(red[0]) + 1 == 64
    assert np.ptp(red[1]) + 1 == 32
    assert np.ptp(lime[1]) + 1 == 64
    assert lime[1].min() > red[1].max()
    assert blue[0].min() > lime[0].max()
    assert contact_sheet([]).width > 0
    with pytest.raises(ValueError, match="caption"):
        contact_sheet(tiles, captions=["a"])
    with pytest.raises(ValueError, match="at least 1"):
        contact_sheet(tiles, columns=0)


def planned(monkeypatch, count, high, names, image=(640, 480)):
    rng = np.random.default_rng(0)
    size = rng.uniform(high / 2, high, (count, 2))
    first = rng.uniform(0, 1, (count, 2)) * (np.array(image) - size)
    where = np.concatenate([first, first + size], axis=1).astype(np.float32)
    labels = np.arange(count) % len(names)
    found = Detections(where, np.linspace(0.9, 0.3, count).astype(np.float32), labels, names)
    plans = []
    original = detections._plan

    def plan(marks, size):
        plans.append(original(marks, size))
        return plans[0]

    monkeypatch.setattr(detections, "_plan", plan)
    drawn = draw_detections(Image.new("RGB", image, (120, 120, 120)), found)
    monkeypatch.setattr(detections, "_plan", original)
    return plans[0], drawn


def test_the_denser_the_less_is_written(monkeypatch):
    few, _ = planned(monkeypatch, 4, 100, ("person", "car"))
    more, _ = planned(monkeypatch, 60, 80, ("person", "traffic light"))
    crowd, drawn = planned(monkeypatch, 200, 60, ("person", "traffic light", "car"))
    assert few.style == detections._STYLES[0]
    assert few.texts[0] == ("person", " 0.90")
    assert few.letters > more.letters >= crowd.letters
    assert not crowd.style.scores and not crowd.style.names
    assert crowd.texts[1] == ("1", "")
    assert crowd.legend is not None
    x1, y1, _, y2 = crowd.legend
    first = np.asarray(drawn)[y1:y2, x1]
    wanted = [detections.PALETTE[label] for label in range(3)]
    colours = [tuple(int(name[i : i + 2], 16) for i in (1, 3, 5)) for name in wanted]
    assert [tuple(row) for i, row in enumerate(first) if i == 0 or tuple(row) != tuple(first[i - 1])] == colours


def test_a_crowd_remark_is_no_score():
    """`(crowd)` stays where scores are left out."""
    mark = detections._Mark((0, 0, 9, 9), 0, "person", " (crowd)", dashed=False)
    assert detections._text(mark, detections._STYLES[3], 12, 640) == ("person", " (crowd)")
