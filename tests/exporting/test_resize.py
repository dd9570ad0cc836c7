"""The graph's resize is Pillow's."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data.images import resize_image
from multibox.exporting.graph_parts import resize
from multibox.structures import Size

from .conftest import RUNTIMES, build, open_in

SIZES = (Size(32, 48), Size(61, 17))


@pytest.fixture(scope="module", params=RUNTIMES)
def runs(request, tmp_path_factory):
    def graph(size):
        def add(builder):
            images = builder.input("images", ir.DataType.UINT8, ["b", "h", "w", 3])
            return {"resized": resize(builder.op, images, size)}

        return add

    return {s: open_in(request.param, build(graph(s)), tmp_path_factory.mktemp("resize")) for s in SIZES}


def expected(batch, size):
    return np.stack([np.asarray(resize_image(Image.fromarray(x), size)) for x in batch]).transpose(0, 3, 1, 2)


def check(run, size, batch):
    got = run({"images": batch})["resized"]
    want = expected(batch, size)
    assert got.shape == want.shape
    # Pillow rounds after either pass: half a level each
    assert np.abs(got - want).max() <= 1.001


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 3), st.sampled_from(SIZES), st.integers(0, 99))
def test_any_size(runs, height, width, count, size, seed):
    batch = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    check(runs[size], size, batch)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8000), (8000, 1), (3, 4001), (32, 48), (64, 96), (61, 17)])
@pytest.mark.parametrize("size", SIZES)
def test_extreme_sizes(runs, shape, size, noise):
    check(runs[size], size, noise(2, *shape))


def test_the_same_size_changes_nothing(runs, noise):
    batch = noise(1, 32, 48)
    assert np.array_equal(runs[32, 48]({"images": batch})["resized"], batch.transpose(0, 3, 1, 2))


def test_halving_by_hand(runs):
    """Two to one: 1, 3, 3, 1 eighths; at the border the outer weight is missing."""
    columns = np.arange(96) % 7 * 30
    batch = np.broadcast_to(columns[None, None, :, None], (1, 32, 96, 3)).astype(np.uint8)
    row = runs[32, 48]({"images": batch})["resized"][0, 0, 5]
    assert row[3] == pytest.approx((columns[5] + 3 * columns[6] + 3 * columns[7] + columns[8]) / 8, abs=1e-4)
    assert row[0] == pytest.approx((3 * columns[0] + 3 * columns[1] + columns[2]) / 7, abs=1e-4)
