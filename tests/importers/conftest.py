"""Weights that both sides can make from names alone, so that golden files hold outputs only."""

import zlib

import numpy as np
import pytest


def seeded_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 values that depend on name and shape alone.

    Kernels [out, in, ...] are scaled so that signals keep their size through ReLUs; vectors named like variances or
    scales are positive around 1, all others small.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    if any(part in name for part in ("var", "gamma", "scale", "norm")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * 0.1).astype(np.float32)


@pytest.fixture(name="seeded_weights")
def _seeded_weights():
    return seeded_weights
