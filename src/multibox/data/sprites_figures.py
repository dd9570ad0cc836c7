"""Creatures built from ellipsoids, one species per class index, and the ray caster that draws them.

Species differ in trunk, head dress and tail, not only in colour. There are 8, 7 and 5 kinds of these, so 280 classes
all differ, and the first 8 share no trunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_FINE = 2  # rays per pixel and axis
_EYE = np.array([0.0, 0.0, 1.0], np.float32)


@dataclass(frozen=True, eq=False)
class Solid:
    """A body of P ellipsoids; x points right, y up and z to the viewer, in units of its own."""

    centres: Floats  # [P, 3]
    axes: Floats  # [P, 3, 3]: each ellipsoid is the unit ball times this matrix, whose columns are the half axes
    colours: Floats  # [P, 3], linear, 0 to 1
    gloss: Floats  # [P]: 0 is chalk, 1 a wet eye


@dataclass(frozen=True, eq=False)
class Lamp:
    """One distant light and the light that the surroundings reflect."""

    direction: Floats  # [3], towards the light, length 1
    key: Floats  # [3], colour and strength of the light
    fill: Floats  # [3], colour and strength of the reflected light


def turn(yaw: float, pitch: float, roll: float) -> Floats:
    """Return the rotation that looks left or right (yaw), up or down (pitch), then spins in the image (roll)."""
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

    # From here on one unit is one fine pixel and y points down
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
    """Return the ellipsoid that each ray meets first, [h, w] (-1: none), and the normals where rays hit."""
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
        # p' form p = 1 with p = (x, y, z): a quadratic in z, of which the viewer sees the larger root
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


Point = tuple[float, float, float]
Part = tuple[Point, Floats, int, float]
"""Centre, half axes [3, 3], which colour of the palette, gloss."""

_NAMES = (
    "bibi", "doba", "fizzo", "gogu", "humi", "juno", "koki", "lulo", "mimbo", "nubi", "oki", "pip",
    "quib", "rumi", "sisu", "tuti",
)  # fmt: skip
"""In alphabetical order, so that a format that sorts its classes keeps their indices."""

_BASE, _LIGHT, _ACCENT, _WHITE, _DARK, _BLUSH = range(6)
_PALETTES = (
    ((0.96, 0.60, 0.13), (1.00, 0.90, 0.68), (0.10, 0.55, 0.60)),
    ((0.36, 0.62, 0.90), (0.88, 0.94, 0.99), (0.95, 0.45, 0.25)),
    ((0.45, 0.72, 0.30), (0.92, 0.95, 0.70), (0.55, 0.25, 0.60)),
    ((0.88, 0.36, 0.45), (0.99, 0.86, 0.82), (0.98, 0.80, 0.25)),
    ((0.58, 0.42, 0.80), (0.90, 0.85, 0.98), (0.35, 0.80, 0.65)),
    ((0.95, 0.80, 0.25), (1.00, 0.96, 0.80), (0.80, 0.30, 0.25)),
    ((0.62, 0.44, 0.30), (0.93, 0.82, 0.66), (0.30, 0.60, 0.85)),
    ((0.25, 0.62, 0.60), (0.85, 0.96, 0.92), (0.98, 0.62, 0.55)),
    ((0.70, 0.72, 0.76), (0.97, 0.97, 0.97), (0.92, 0.55, 0.15)),
)
_FIXED = ((0.97, 0.97, 0.95), (0.06, 0.05, 0.07), (0.95, 0.45, 0.42))


def class_name(label: int) -> str:
    """Return the name of class `label`; after sixteen classes the names repeat, numbered from 2."""
    again, place = divmod(label, len(_NAMES))
    return _NAMES[place] + (str(again + 1) if again else "")


@cache
def figure(label: int) -> Solid:
    """Build the species of class `label`, looking towards the viewer."""
    again = label // len(_TRUNKS)
    parts, head, back = _TRUNKS[label % len(_TRUNKS)]()
    dress, tail = _DRESSES[(label + again) % len(_DRESSES)], _TAILS[(label + again) % len(_TAILS)]
    parts = [*parts, *_face(*head, beak=label % 3), *dress(*head), *tail(*back)]
    centres, axes, colours, gloss = zip(*parts, strict=True)
    coats = np.array([*palette(label), *_FIXED], np.float32)
    return Solid(np.array(centres, np.float32), np.stack(axes), coats[list(colours)], np.array(gloss, np.float32))


def palette(label: int) -> Floats:
    """Return the three colours [3, 3] of class `label`: coat, belly, ornaments."""
    return np.array(_PALETTES[label % len(_PALETTES)], np.float32)


def _ball(centre: Point, radii: Point | float, colour: int, gloss: float = 0.25) -> Part:
    lengths = (radii,) * 3 if isinstance(radii, int | float) else radii
    return centre, np.diag(np.array(lengths, np.float32)), colour, gloss


def _rod(start: Point, end: Point, thick: float, colour: int, *, flat: float = 1.0, gloss: float = 0.25) -> Part:
    """Stretch an ellipsoid from `start` to `end`; `flat` below 1 presses it thin as a leaf."""
    ends = np.array([start, end], np.float64)
    along = (ends[1] - ends[0]) / 2
    unit = along / np.linalg.norm(along)
    side = np.cross(unit, [0, 0, 1] if abs(unit[2]) < 0.9 else [1, 0, 0])
    side /= np.linalg.norm(side)
    axes = np.stack([side * thick, along, np.cross(side, unit) * thick * flat], axis=1)
    x, y, z = ends.mean(axis=0)
    return (float(x), float(y), float(z)), axes.astype(np.float32), colour, gloss


def _on(centre: Point, radii: Point, right: float, up: float, *, lift: float = 1.0) -> Point:
    """Return the point of an ellipsoid's front at angles `right` and `up` (radians), `lift` times as far out."""
    direction = (np.sin(right) * np.cos(up), np.sin(up), np.cos(right) * np.cos(up))
    x, y, z = (c + lift * r * d for c, r, d in zip(centre, radii, direction, strict=True))
    return float(x), float(y), float(z)


def _mirrored(parts: list[Part], across: float = 0.0) -> list[Part]:
    flip = np.diag(np.array([-1, 1, 1], np.float32))
    return [*parts, *(((2 * across - x, y, z), flip @ axes, colour, gloss) for (x, y, z), axes, colour, gloss in parts)]


def _face(centre: Point, radii: Point, *, beak: int) -> list[Part]:
    size = min(radii)
    eye = _on(centre, radii, 0.42, 0.22, lift=0.9)
    pupil = (eye[0], eye[1], eye[2] + 0.16 * size)
    cheek = _on(centre, radii, 0.72, -0.18, lift=0.93)
    pair = [
        _ball(eye, (0.21 * size, 0.26 * size, 0.2 * size), _WHITE, 0.6),
        _ball(pupil, (0.12 * size, 0.17 * size, 0.1 * size), _DARK, 1.0),
        _ball(cheek, (0.16 * size, 0.12 * size, 0.12 * size), _BLUSH, 0.1),
    ]
    nose = _on(centre, radii, 0, -0.1, lift=0.98)
    noses = (
        _ball(nose, (0.1 * size, 0.07 * size, 0.08 * size), _DARK, 0.8),
        _rod(nose, (nose[0], nose[1] - 0.08 * size, nose[2] + 0.4 * size), 0.15 * size, _ACCENT, flat=0.6),
        _ball((nose[0], nose[1] - 0.1 * size, nose[2]), (0.28 * size, 0.17 * size, 0.14 * size), _LIGHT),
    )
    return [*_mirrored(pair, centre[0]), noses[beak]]


Ellipsoid = tuple[Point, Point]
"""Centre and radii."""
Trunk = tuple[list[Part], Ellipsoid, Ellipsoid]
"""The parts, the head and what the tail hangs on."""


def _egg() -> Trunk:
    body = ((0.0, 0.0, 0.0), (0.92, 1.0, 0.85))
    belly = _ball((0, -0.32, 0.3), (0.62, 0.58, 0.6), _LIGHT)
    foot = _ball((0.42, -0.98, 0.22), (0.3, 0.16, 0.42), _ACCENT)
    arm = _rod((0.8, -0.05, 0.2), (1.25, -0.35, 0.45), 0.17, _BASE)
    return [_ball(*body, _BASE), belly, *_mirrored([foot, arm])], body, body


def _snowman() -> Trunk:
    head, trunk = ((0.0, 0.72, 0.08), (0.62, 0.56, 0.56)), ((0.0, -0.4, 0.0), (0.85, 0.75, 0.75))
    limbs = [
        _rod((0.6, -0.1, 0.1), (1.35, 0.4, 0.2), 0.14, _BASE),
        _ball((1.35, 0.42, 0.2), 0.2, _ACCENT),
        _ball((0.4, -1.08, 0.2), (0.3, 0.18, 0.4), _BASE),
    ]
    belly = _ball((0, -0.45, 0.3), (0.55, 0.5, 0.55), _LIGHT)
    return [_ball(*head, _BASE), _ball(*trunk, _BASE), belly, *_mirrored(limbs)], head, trunk


def _walker() -> Trunk:
    head, trunk = ((1.05, 0.5, 0.3), (0.5, 0.48, 0.5)), ((-0.1, 0.0, 0.0), (1.15, 0.52, 0.5))
    legs = [_rod((x, -0.15, z), (x + 0.05, -1.05, z), 0.19, _BASE) for x in (-0.8, 0.6) for z in (-0.28, 0.3)]
    feet = [_ball((x + 0.1, -1.0, z), (0.24, 0.13, 0.2), _ACCENT) for x in (-0.8, 0.6) for z in (-0.28, 0.3)]
    spots = [_ball((x, 0.3, 0.25), (0.2, 0.16, 0.2), _LIGHT) for x in (-0.75, -0.2, 0.35)]
    back = ((-0.5, 0.0, 0.0), (0.6, 0.5, 0.5))
    return [_ball(*trunk, _BASE), _ball(*head, _BASE), *legs, *feet, *spots], head, back


def _pillar() -> Trunk:
    head, trunk = ((0.0, 0.75, 0.0), (0.52, 0.62, 0.5)), ((0.0, -0.45, 0.0), (0.6, 0.95, 0.55))
    rings = [_ball((0, y, 0.0), (r, 0.1, r * 0.93), _LIGHT) for y, r in ((-0.15, 0.62), (-0.55, 0.66), (-0.95, 0.58))]
    arms = [_rod((0.45, 0.0, 0.1), (0.75, -0.75, 0.3), 0.15, _BASE, flat=0.7)]
    return [_ball(*head, _BASE), _ball(*trunk, _BASE), *rings, *_mirrored(arms)], head, trunk


def _crab() -> Trunk:
    body = ((0.0, 0.0, 0.0), (1.15, 0.6, 0.75))
    limbs = [
        _rod((0.9, 0.1, 0.2), (1.6, 0.55, 0.4), 0.13, _BASE),
        _ball((1.62, 0.72, 0.4), (0.26, 0.34, 0.2), _ACCENT),
        *(_rod((x, -0.3, 0.1), (x * 1.5, -0.95, 0.25), 0.1, _BASE) for x in (0.35, 0.65, 0.95)),
    ]
    belly = _ball((0, -0.2, 0.12), (0.9, 0.42, 0.68), _LIGHT)
    return [_ball(*body, _BASE), belly, *_mirrored(limbs)], body, body


def _star() -> Trunk:
    body = ((0.0, 0.0, 0.0), (0.62, 0.6, 0.5))
    parts = [_ball(*body, _BASE)]
    for angle in np.pi / 2 + 2 * np.pi / 5 * np.arange(5) + np.pi / 5:
        x, y = float(np.cos(angle)), float(np.sin(angle))
        parts += [_rod((0.2 * x, 0.2 * y, 0), (1.35 * x, 1.35 * y, 0), 0.32, _BASE, flat=0.8)]
        parts += [_ball((1.22 * x, 1.22 * y, 0.06), 0.17, _ACCENT), _ball((0.8 * x, 0.8 * y, 0.2), 0.12, _LIGHT)]
    return parts, body, body


def _caterpillar() -> Trunk:
    chain = [((-1.3 + 0.52 * i, 0.24 * float(np.sin(1.5 * i)) - 0.2, 0.0), 0.36 + 0.02 * i) for i in range(5)]
    balls = [_ball(centre, radius, (_BASE, _LIGHT)[i % 2]) for i, (centre, radius) in enumerate(chain)]
    feet = [_ball((c[0], c[1] - r, z), (0.12, 0.13, 0.12), _ACCENT) for c, r in chain for z in (-0.18, 0.2)]
    head = ((1.15, 0.3, 0.12), (0.56, 0.54, 0.52))
    return [*balls, *feet, _ball(*head, _BASE)], head, (chain[0][0], (0.36, 0.36, 0.36))


def _squid() -> Trunk:
    body = ((0.0, 0.35, 0.0), (0.8, 0.85, 0.78))
    parts = [_ball(*body, _BASE)]
    for i, angle in enumerate(2 * np.pi / 7 * np.arange(7) + 0.2):
        x, z = float(np.cos(angle)), float(np.sin(angle))
        knee = (0.75 * x, -0.55, 0.7 * z)
        parts += [_rod((0.45 * x, -0.1, 0.45 * z), knee, 0.17, _BASE)]
        parts += [_rod(knee, (1.1 * x, -1.0 + 0.15 * (i % 2), z), 0.13, _LIGHT)]
    return parts, body, body


def _antennae(centre: Point, radii: Point) -> list[Part]:
    root, tip = _on(centre, radii, 0.5, 1.1, lift=0.9), _on(centre, radii, 0.7, 1.1, lift=1.75)
    return _mirrored([_rod(root, tip, 0.06, _DARK), _ball(tip, 0.17, _ACCENT, 0.7)], centre[0])


def _flaps(centre: Point, radii: Point) -> list[Part]:
    root, tip = _on(centre, radii, 1.5, 0.6), _on(centre, radii, 1.5, -0.5, lift=1.6)
    return _mirrored([_rod(root, tip, 0.26, _ACCENT, flat=0.45)], centre[0])


def _horn(centre: Point, radii: Point) -> list[Part]:
    root, tip = _on(centre, radii, 0, 1.2, lift=0.8), _on(centre, radii, 0, 1.25, lift=2.0)
    return [_rod(root, tip, 0.2, _LIGHT), _ball(root, (0.3, 0.12, 0.3), _ACCENT)]


def _crest(centre: Point, radii: Point) -> list[Part]:
    up = (1.0, 1.4, 1.8, 2.2)
    return [_rod(_on(centre, radii, 0, a, lift=0.8), _on(centre, radii, 0, a, lift=1.5), 0.17, _ACCENT) for a in up]


def _ears(centre: Point, radii: Point) -> list[Part]:
    root, tip = _on(centre, radii, 0.6, 1.0, lift=0.8), _on(centre, radii, 0.9, 1.15, lift=2.1)
    inner = (root[0], root[1], root[2] + 0.1), (tip[0] * 0.97, tip[1] * 0.95, tip[2] + 0.1)
    return _mirrored([_rod(root, tip, 0.23, _BASE, flat=0.6), _rod(*inner, 0.13, _BLUSH, flat=0.6)], centre[0])


def _sprout(centre: Point, radii: Point) -> list[Part]:
    root, knot = _on(centre, radii, 0, 1.5, lift=0.9), _on(centre, radii, 0, 1.5, lift=1.45)
    leaf = (knot[0] + 0.62, knot[1] + 0.22, knot[2] + 0.1)
    return [_rod(root, knot, 0.07, _DARK), *_mirrored([_rod(knot, leaf, 0.2, _ACCENT, flat=0.4)], centre[0])]


def _tusks(centre: Point, radii: Point) -> list[Part]:
    root, bend = _on(centre, radii, 1.4, 0.6, lift=0.85), _on(centre, radii, 1.5, 0.7, lift=1.55)
    tip = (bend[0] + 0.05, bend[1] + 0.55, bend[2])
    return _mirrored([_rod(root, bend, 0.17, _ACCENT), _rod(bend, tip, 0.13, _WHITE, gloss=0.6)], centre[0])


def _behind(centre: Point, radii: Point, lift: float, up: float) -> Point:
    return _on(centre, radii, np.pi - 0.5, up, lift=lift)


def _curl(centre: Point, radii: Point) -> list[Part]:
    return [_ball(_behind(centre, radii, 1.0 + 0.17 * i, -0.5 + 0.22 * i), 0.2 - 0.015 * i, _BASE) for i in range(6)]


def _bobble(centre: Point, radii: Point) -> list[Part]:
    return [_ball(_behind(centre, radii, 1.15, -0.4), 0.3, _LIGHT, 0.05)]


def _spike(centre: Point, radii: Point) -> list[Part]:
    return [_rod(_behind(centre, radii, 0.8, -0.3), _behind(centre, radii, 2.1, -0.1), 0.22, _BASE)]


def _fan(centre: Point, radii: Point) -> list[Part]:
    root = _behind(centre, radii, 0.8, 0.0)
    return [_rod(root, _behind(centre, radii, 1.9, up), 0.18, _ACCENT, flat=0.4) for up in (-0.2, 0.3, 0.8)]


def _no_tail(centre: Point, radii: Point) -> list[Part]:
    return []


_TRUNKS: tuple[Callable[[], Trunk], ...] = (_egg, _walker, _squid, _snowman, _star, _caterpillar, _crab, _pillar)
_DRESSES = (_antennae, _ears, _sprout, _tusks, _horn, _flaps, _crest)
_TAILS = (_curl, _fan, _no_tail, _bobble, _spike)
