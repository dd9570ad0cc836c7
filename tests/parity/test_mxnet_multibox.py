"""The three operators against outputs of Apache MXNet 1.9.1 (its CPU kernels), recorded in a file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.ops.mxnet import multibox_detection, multibox_prior, multibox_target

FILE = Path(__file__).parents[1] / "golden" / "mxnet_multibox.npz"
ARRAYS = {name: array for name, array in np.load(FILE).items()}
META = json.loads(str(ARRAYS["meta"]))


def arrays(prefix, *names):
    return [torch.from_numpy(ARRAYS[f"{prefix}_{name}"]) for name in names]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("index", range(len(META["prior"])))
def test_prior(index):
    options = dict(META["prior"][index])
    shape = options.pop("height"), options.pop("width")
    (expected,) = arrays(f"prior{index}", "out")
    close(multibox_prior(shape, **options), expected)
    close(multibox_prior(data=torch.zeros(2, 3, *shape), **options), expected)


@pytest.mark.parametrize("entry", META["target"], ids=lambda entry: entry["case"])
def test_target(entry):
    options = dict(entry)
    prefix = f"target{options.pop('case')}"
    anchor, label, cls_pred = arrays(prefix, "anchors", "labels", "cls_preds")
    # By MXNet's own keywords, as code written for it calls
    loc_target, loc_mask, cls_target = multibox_target(anchor=anchor, label=label, cls_pred=cls_pred, **options)
    expected = arrays(prefix, "loc_target", "loc_mask", "cls_target")
    assert torch.equal(cls_target, expected[2])
    assert torch.equal(loc_mask, expected[1])
    close(loc_target, expected[0])


@pytest.mark.parametrize("entry", META["detection"], ids=lambda entry: entry["case"])
def test_detection(entry):
    options = dict(entry)
    prefix = f"detection{options.pop('case')}"
    cls_prob, loc_pred, anchor = arrays(prefix, "cls_prob", "loc_pred", "anchors")
    actual = multibox_detection(cls_prob=cls_prob, loc_pred=loc_pred, anchor=anchor, **options)
    (expected,) = arrays(prefix, "out")
    assert torch.equal(actual[..., 0], expected[..., 0])
    close(actual, expected)
