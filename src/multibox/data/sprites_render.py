"""Casts figures made of ellipsoids into small shaded pictures with transparency: parallel rays, one lamp, numpy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_FINE = 2  # rays per pixel and axis
_EYE = np.array([0.0, 0.0, 1.0], np.float32)


@dataclass(frozen=True, eq=False)
class Solid:
    """A body made of P ellipsoids; x points right, y up and z to the viewer, in units of its own."""

    centres: Floats
    """[P, 3]"""
    axes: Floats
    """[P, 3, 3]; each ellipsoid is the unit ball times this matrix, so its columns are the half axes."""
    colours: Floats
    """[P, 3]; linear in 0 to 1."""
    gloss: Floats
    """[P]; 0 is chalk, 1 a wet eye."""


@dataclass(frozen=True, eq=False)
class Lamp:
    """One far light and what the surroundings give back."""

    direction: Floats
    """[3], towards the light, length 1."""
    key: Floats
    """[3], the colour and strength of the light."""
    fill: Floats
    """[3], the colour and strength of everything else."""


def turn(yaw: float, pitch: float, roll: float) -> Floats:
    """Return the rotation that looks left or right (yaw), up or down (pitch), then spins in the picture (roll)."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (around_z @ around_x @ around_y).astype(np.float32)


def cast(solid: Solid, rotation: Floats, longest: float, lamp: Lamp) -> tuple[Floats, Floats]:
    """Draw `solid` so that the longer side of its outline is `longest` pixels.

    Returns:
        Colours [h, w, 3], already multiplied by the coverage, and coverage [h, w] in 0 to 1.
    """
    centres = solid.centres @ rotation.T
    axes = rotation @ solid.axes
    reach = np.sqrt(np.square(axes).sum(axis=2))
    low, high = (centres - reach).min(axis=0), (centres + reach).max(axis=0)
    scale = longest / float(max(high[0] - low[0], high[1] - low[1])) * _FINE
    width, height = (max(1, int(np.ceil((high[i] - low[i]) * scale / _FINE))) for i in (0, 1))

    # From here on one unit is one fine pixel and y points down the picture.
    flip = np.array([1, -1, 1], np.float32) * scale
    origin = np.array([low[0], high[1], 0], np.float32)
    owner, normals = _nearest(
        (centres - origin) * flip, axes * flip[:, None], reach * scale, (height * _FINE, width * _FINE)
    )
    normals[:, 1] *= -1
    hit = owner >= 0
    fine = np.zeros((*hit.shape, 4), np.float32)
    fine[hit, :3] = _shade(normals, solid.colours[owner[hit]], solid.gloss[owner[hit]], lamp)
    fine[hit, 3] = 1
    coarse = fine.reshape(height, _FINE, width, _FINE, 4).mean(axis=(1, 3))
    return coarse[..., :3], coarse[..., 3]


def _nearest(centres: Floats, axes: Floats, reach: Floats, shape: tuple[int, int]) -> tuple[NDArray[np.int16], Floats]:
    """Find for every ray the ellipsoid it meets first ([h, w], -1 for none) and, for the rays that hit, the normal."""
    depth = np.full(shape, -np.inf, np.float32)
    owner = np.full(shape, -1, np.int16)
    normal = np.zeros((*shape, 3), np.float32)
    forms = np.linalg.inv(axes @ axes.transpose(0, 2, 1)).astype(np.float32)
    for part, (centre, form, extent) in enumerate(zip(centres, forms, reach, strict=True)):
        x1, y1 = (max(0, int(np.floor(centre[i] - extent[i]))) for i in (0, 1))
        x2, y2 = (min(shape[1 - i], int(np.ceil(centre[i] + extent[i])) + 1) for i in (0, 1))
        if x2 <= x1 or y2 <= y1:
            continue
        x = np.arange(x1, x2, dtype=np.float32) + np.float32(0.5) - centre[0]
        y = (np.arange(y1, y2, dtype=np.float32) + np.float32(0.5) - centre[1])[:, None]
        # p' form p = 1 with p = (x, y, z): a quadratic in z, of which the viewer sees the larger root.
        slope = (form[0, 2] * x + form[1, 2] * y) / form[2, 2]
        rest = (form[0, 0] * x * x + 2 * form[0, 1] * x * y + form[1, 1] * y * y - 1) / form[2, 2]
        inside = slope * slope - rest
        z = np.sqrt(np.maximum(inside, 0)) - slope
        window = (slice(y1, y2), slice(x1, x2))
        seen = (inside > 0) & (z + centre[2] > depth[window])
        rows, columns = np.nonzero(seen)
        points = np.stack([x[columns], y[rows, 0], z[rows, columns]], axis=1)
        depth[window][seen] = points[:, 2] + centre[2]
        owner[window][seen] = part
        normal[window][seen] = points @ form
    hit = normal[owner >= 0]
    return owner, hit / np.sqrt(np.square(hit).sum(axis=1, keepdims=True))


def _shade(normals: Floats, colours: Floats, gloss: Floats, lamp: Lamp) -> Floats:
    towards = normals @ lamp.direction
    lit = np.square(np.clip((towards + 0.35) / 1.35, 0, 1))[:, None]
    sky = (0.75 + 0.25 * normals[:, 1])[:, None]
    halfway = lamp.direction + _EYE
    shine = np.clip(normals @ (halfway / np.linalg.norm(halfway)), 0, 1)
    spark = (gloss * np.power(shine, 20 + 60 * gloss))[:, None]
    edge = 0.22 * np.power(1 - np.clip(normals[:, 2], 0, 1), 3)[:, None]
    return colours * (lamp.key * lit + lamp.fill * sky) + (spark * lamp.key + edge * lamp.fill)
