import numpy as np
import pytest
from PIL import Image

from multibox.plots import detections
from multibox.plots.detections import draw_detections
from multibox.plots.labels import free_corner, place_labels
from multibox.structures import Detections


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


def planned(count, high, names, image=(640, 480)):
    where = boxes(count, high / 2, high, image)
    labels = np.arange(count) % len(names)
    found = Detections(where, np.linspace(0.9, 0.3, count).astype(np.float32), labels, names)
    plans = []
    original = detections._plan

    def plan(marks, size):
        plans.append(original(marks, size))
        return plans[0]

    detections._plan = plan
    try:
        drawn = draw_detections(Image.new("RGB", image, (120, 120, 120)), found)
    finally:
        detections._plan = original
    return plans[0], drawn


def test_the_denser_the_less_is_written():
    few, _ = planned(4, 100, ("person", "car"))
    more, _ = planned(60, 80, ("person", "traffic light"))
    crowd, drawn = planned(200, 60, ("person", "traffic light", "car"))
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
