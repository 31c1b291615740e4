"""Outlines of the shapes of the embedded world (`scenes`), as distances to their edges.

In units of a shape's radius; u goes right and v down from its centre.
"""

from collections.abc import Callable

import numpy as np


def distance(u: np.ndarray, v: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Distance to the edge, about; negative inside.

    Args:
        u: of points, [n ...].
        v: of points, [n ...].
        shape: number of the shape, a name in `SHAPES`, of each of n.
    """
    found = np.empty_like(u)
    for kind, of in enumerate(_OUTLINES.values()):
        rows = np.flatnonzero(shape == kind)
        found[rows] = of(u[rows], v[rows])
    return found


def _radius(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _radius(u, v) - 0.85


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.75, 0.75)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v - 0.15
    return np.maximum(0.8660254 * np.abs(u) - 0.5 * v, v) - 0.55


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points. Mirrors bring every point into the wedge between a tip and a notch."""
    x, y = np.abs(u), -v
    for mirror in (0.6 * np.pi, 0.2 * np.pi):  # angles from the tip at the top
        c, s = np.float32(np.cos(mirror)), np.float32(np.sin(mirror))
        beyond = 2 * np.maximum(x * c - y * s, 0)
        x, y = x - beyond * c, y + beyond * s
    x = np.abs(x)
    notch = 0.46 * np.array([np.sin(0.2 * np.pi), np.cos(0.2 * np.pi)])
    edge = notch - [0, 1]  # from the tip to the notch
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return np.float32(normal[0]) * x + np.float32(normal[1]) * (y - 1)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(_radius(u, v) - 0.68) - 0.22


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_box(u, v, 0.9, 0.3), _box(u, v, 0.3, 0.9))


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_radius(u + 0.1, v) - 0.92, 0.74 - _radius(u - 0.36, v))


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 1.05, 0.32)


_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
    "ring": _ring, "cross": _cross, "crescent": _crescent, "bar": _bar,
}  # fmt: skip

SHAPES = tuple(_OUTLINES)
"""Names of the shapes; what is called a shape elsewhere is the number of its name."""
