"""The embedded world: small rendered scenes whose every factor is known.

One shape, lit and textured, floats over a background and throws a soft shadow. Colours, texture,
background, light, position, size and rotation vary freely, so neighbours in raw pixels share a
palette and rarely a shape; the shape is what a person sees first.

Scene i is a function of (seed, i, size) alone, however many scenes are made.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from erg.data.outlines import SHAPES, distance
from erg.views.random import uniform

TEXTURES = ("plain", "stripes", "dots", "checks")
BACKGROUNDS = ("gradient", "noise", "blobs")

NAMES = {"shape": SHAPES, "texture": TEXTURES, "background": BACKGROUNDS}
"""Names of the values of the factors that are classes."""

CHUNK = 64  # scenes rendered at a time: their arrays stay in the processor's cache
_DRAWS = 24  # scalars drawn per scene, in the order of `_factors` and `_palette`
_COARSE, _FINE, _BLOBS = 4, 10, 6  # sides of the two noise lattices; number of blobs


class World(NamedTuple):
    """Scenes and what they were made of.

    Args:
        images: uint8 [n s s 3].
        factors: arrays [n]: `shape`, `texture`, `background` (numbers into `NAMES`); `x`, `y`
            (centre, fractions of the side), `scale` (radius, fraction of the side), `rotation`
            [radians], `hue`, `background_hue` [turns], `lightness`, `background_lightness` (of
            OKLCH, in [0, 1]), `light_angle` [radians] and `light` (its strength, in [0, 1]).
    """

    images: np.ndarray
    factors: dict[str, np.ndarray]

    def describe(self) -> str:
        """How many scenes of what, as one line of text."""
        n, side = self.images.shape[:2]
        return (
            f"{n:,} synthetic scenes of {side} x {side} pixels: {len(SHAPES)} shapes, "
            f"{len(TEXTURES)} textures, {len(BACKGROUNDS)} backgrounds"
        )


def world(n: int, *, seed: int = 0, size: int = 48) -> World:
    """Render the first n scenes of a world.

    Args:
        n: number of scenes.
        seed: of the world.
        size: side of the images [pixels].
    """
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    factors = []
    for start in range(0, max(n, 1), CHUNK):
        index = np.arange(start, min(n, start + CHUNK))
        factors.append(factors_of(index, seed=seed))
        images[index] = render(index, seed=seed, size=size)
    return World(images, {k: np.concatenate([f[k] for f in factors]) for k in factors[0]})


def factors_of(index: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """What scenes of some numbers are made of, as in `World`; arguments as `render`."""
    return _factors(_draws(seed, index))


def render(index: np.ndarray, *, seed: int = 0, size: int = 48) -> np.ndarray:
    """Scenes of some numbers, uint8 [n s s 3].

    Args:
        index: numbers of the scenes, int64 [n].
        seed: of the world.
        size: side of the images [pixels].
    """
    draws = _draws(seed, index)
    factors = _factors(draws)
    colours = _palette(draws, factors)
    at = ((np.arange(size) + 0.5) / size).astype(np.float32)  # pixel centres
    light = _light(factors, at)

    scene = _mix(colours["back"], colours["back_two"], _background(seed, index, factors, at))
    scale, turn = _col(factors["scale"]), _col(factors["rotation"])
    cos, sin = _f32(np.cos(turn) / scale), _f32(np.sin(turn) / scale)
    dx, dy = at - _f32(_col(factors["x"])), at[:, None] - _f32(_col(factors["y"]))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # the shape's own frame, radius 1

    pixel = _f32(1 / (size * scale))
    drop_x, drop_y = np.cos(_col(factors["light_angle"])), np.sin(_col(factors["light_angle"]))
    shadow_u = u + _f32(0.22 * scale) * (cos * _f32(drop_x) + sin * _f32(drop_y))
    shadow_v = v + _f32(0.22 * scale) * (cos * _f32(drop_y) - sin * _f32(drop_x))
    shadow = np.clip(0.5 - distance(shadow_u, shadow_v, factors["shape"]) / 0.5, 0, 1)
    scene *= (light * (1 - _f32(0.55 * _col(factors["light"])) * shadow))[..., None]

    depth = distance(u, v, factors["shape"])
    body = _mix(colours["front"], colours["front_two"], _texture(draws, factors, u, v, size))
    bevel = 0.84 + 0.16 * np.clip(-5 * depth, 0, 1)
    body *= (light * bevel)[..., None]
    cover = np.clip(0.5 - depth / pixel, 0, 1)[..., None]
    scene += (body - scene) * cover
    return np.rint(np.clip(scene, 0, 1) * 255).astype(np.uint8)


# Factors -------------------------------------------------------------------------------------


def _draws(seed: int, index: np.ndarray) -> np.ndarray:
    """Uniform numbers [n draws]."""
    return uniform(seed, index[:, None], np.arange(_DRAWS))


def _factors(u: np.ndarray) -> dict[str, np.ndarray]:
    lightness = 0.36 + 0.5 * u[:, 8]
    contrast = 0.22 + 0.16 * u[:, 9]
    darker = (u[:, 10] < 0.5) & (lightness > 0.54) | (lightness > 0.66)
    return {
        "shape": (u[:, 0] * len(SHAPES)).astype(np.int64),
        "texture": (u[:, 1] * len(TEXTURES)).astype(np.int64),
        "background": (u[:, 2] * len(BACKGROUNDS)).astype(np.int64),
        "x": 0.29 + 0.42 * u[:, 3],
        "y": 0.29 + 0.42 * u[:, 4],
        "scale": 0.2 + 0.16 * u[:, 5],
        "rotation": (2 * u[:, 6] - 1) * np.pi / 4,
        "hue": u[:, 7],
        "lightness": lightness,
        "background_hue": u[:, 11],
        "background_lightness": lightness + np.where(darker, -contrast, contrast),
        "light_angle": 2 * np.pi * u[:, 12],
        "light": 0.3 + 0.7 * u[:, 13],
    }


def _palette(u: np.ndarray, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two colours of the shape and two of the background, each [n 1 1 3]."""
    front, back = factors["lightness"], factors["background_lightness"]
    away = np.sign(front - back)  # the second colour of the shape keeps off the background
    return {
        "front": _oklch(front, 0.08 + 0.12 * u[:, 14], factors["hue"]),
        "front_two": _oklch(
            front + away * (0.1 + 0.08 * u[:, 15]),
            0.05 + 0.12 * u[:, 16],
            factors["hue"] + 0.3 * u[:, 17] - 0.15,
        ),
        "back": _oklch(back, 0.02 + 0.09 * u[:, 18], factors["background_hue"]),
        "back_two": _oklch(
            back - away * 0.16,
            0.02 + 0.1 * u[:, 18],
            factors["background_hue"] + 0.4 * u[:, 19] - 0.2,
        ),
    }


def _oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] of OKLCH (Ottosson 2020, "A perceptual color space for image processing")."""
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_rgb = [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
    # A sum of products rather than `@`, whose order of adding depends on the number of scenes.
    linear = (lms[:, None, :] ** 3 * np.array(to_rgb)).sum(axis=-1).clip(0, 1)
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return _f32(srgb[:, None, None, :])


# Pictures ------------------------------------------------------------------------------------


def _f32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _col(values: np.ndarray) -> np.ndarray:
    """[n] as [n 1 1], to go with pixels [n s s]."""
    return values[:, None, None]


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share[..., None]


def _light(factors: dict[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """Brightness [n s s], falling off away from the light."""
    angle, strength = _col(factors["light_angle"]), _col(factors["light"])
    x, y = _f32(np.cos(angle) * strength), _f32(np.sin(angle) * strength)
    return 1 + 0.4 * (x * (at - 0.5) + y * (at[:, None] - 0.5))


def _background(
    seed: int, index: np.ndarray, factors: dict[str, np.ndarray], at: np.ndarray
) -> np.ndarray:
    """Share of the second colour, [n s s]."""
    share = np.empty((len(index), len(at), len(at)), dtype=np.float32)
    for kind, paint in enumerate((_gradient, _noise, _blobs)):
        rows = np.flatnonzero(factors["background"] == kind)
        if len(rows):
            share[rows] = paint(seed, index[rows], at)
    return share


def _more_draws(seed: int, index: np.ndarray, count: int) -> np.ndarray:
    return uniform(seed, index[:, None], _DRAWS + np.arange(count))


def _gradient(seed: int, index: np.ndarray, at: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * _more_draws(seed, index, 1)[:, :, None]
    x, y = _f32(np.cos(angle)), _f32(np.sin(angle))
    return np.clip(0.5 + 0.9 * (x * (at - 0.5) + y * (at[:, None] - 0.5)), 0, 1)


def _noise(seed: int, index: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Two octaves of smooth noise: random values on lattices, interpolated."""
    values = _f32(_more_draws(seed, index, _COARSE**2 + _FINE**2))
    coarse = values[:, : _COARSE**2].reshape(-1, _COARSE, _COARSE)
    fine = values[:, _COARSE**2 :].reshape(-1, _FINE, _FINE)
    wide, narrow = _interpolation(len(at), _COARSE), _interpolation(len(at), _FINE)
    smooth = 0.6 * (wide @ coarse @ wide.T) + 0.4 * (narrow @ fine @ narrow.T)
    return np.clip(0.5 + 2 * (smooth - 0.5), 0, 1)


@lru_cache(maxsize=8)
def _interpolation(size: int, knots: int) -> np.ndarray:
    """Weights [size knots] of smoothstep interpolation along one axis."""
    place = (np.arange(size) + 0.5) / size * (knots - 1)
    left = np.minimum(place.astype(int), knots - 2)
    part = place - left
    part = part * part * (3 - 2 * part)
    weights = np.zeros((size, knots), dtype=np.float32)
    weights[np.arange(size), left] = 1 - part
    weights[np.arange(size), left + 1] = part
    return weights


def _blobs(seed: int, index: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A few soft discs that run into each other."""
    draws = _more_draws(seed, index, 3 * _BLOBS).reshape(len(index), 3, _BLOBS, 1)
    width = 0.07 + 0.09 * draws[:, 2]
    across = _f32(np.exp(-(((at - draws[:, 0]) / width) ** 2)))
    down = _f32(np.exp(-(((at - draws[:, 1]) / width) ** 2)))
    edge = np.clip((down.transpose(0, 2, 1) @ across - 0.3) * 5, 0, 1)
    return edge * edge * (3 - 2 * edge)


def _texture(
    u: np.ndarray, factors: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, size: int
) -> np.ndarray:
    """Share of the second colour on the shape, [n s s]; x, y in the shape's frame."""
    share = np.zeros_like(x)
    for kind in (1, 2, 3):
        rows = np.flatnonzero(factors["texture"] == kind)
        angle = _col(np.pi * u[rows, 20])
        waves = _col(1.5 + 1.2 * u[rows, 21])  # per radius
        cos, sin = _f32(np.cos(angle) * waves), _f32(np.sin(angle) * waves)
        a = cos * x[rows] + sin * y[rows] + _f32(_col(u[rows, 22]))
        b = cos * y[rows] - sin * x[rows] + _f32(_col(u[rows, 23]))
        pixels = _f32(_col(factors["scale"][rows]) * size / waves)  # per wave
        if kind == 1:
            share[rows] = _square_wave(a, pixels)
        elif kind == 2:
            a, b = a - np.rint(a), b - np.rint(b)
            share[rows] = np.clip((0.3 - np.sqrt(a * a + b * b)) * pixels + 0.5, 0, 1)
        else:
            a, b = _square_wave(a, pixels), _square_wave(b, pixels)
            share[rows] = a + b - 2 * a * b
    return share


def _square_wave(t: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """0 and 1 for half a period each, with edges one pixel wide."""
    return np.clip((np.abs(t - np.rint(t)) - 0.25) * pixels + 0.5, 0, 1)
