"""Colours: Lab from the primaries of sRGB, its bins and what is shared among them, by loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from erg.encoders import IMAGENET_MEAN, IMAGENET_STD, build_encoder
from erg.parts.colours import ColourHead, lab, lightness
from erg.views.types import View


def by_hand(rgb: list[float]) -> list[float]:
    """Lab of one colour, with the matrix that the primaries and white D65 imply."""
    primaries = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
    columns = np.stack([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries], axis=1)
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    matrix = columns * np.linalg.solve(columns, white)
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    f = []
    for value in matrix @ linear / white:
        cube = value > (6 / 29) ** 3
        f.append(value ** (1 / 3) if cube else value * (29 / 6) ** 2 / 3 + 4 / 29)
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def a_head(**arguments: Any) -> ColourHead:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return ColourHead(encoder, **{"width": 8, **arguments}).double()


def pictures(n: int = 3, seed: int = 0) -> View:
    unit = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return View((unit - mean) / std, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_lab_is_that_of_the_primaries() -> None:
    rgb = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).double()
    rgb[0], rgb[1], rgb[2], rgb[3:5] = 0.0, 1.0, 0.002, torch.eye(3)[:2]
    found = lab(rgb[:, :, None, None])[:, :, 0, 0]
    wanted = torch.tensor([by_hand(row) for row in rgb.tolist()])
    assert float((found - wanted).abs().max()) < 0.05  # the standard's matrix has four decimals
    assert torch.allclose(found[1], torch.tensor([100.0, 0, 0]).double(), atol=1e-9)
    grey = lab(torch.full((1, 3, 1, 1), 0.3))[0, 1:]
    assert float(grey.abs().max()) < 1e-4


def test_lab_has_finite_gradients_everywhere() -> None:
    rgb = torch.zeros(1, 3, 2, 2).requires_grad_()
    lab(rgb).sum().backward()
    assert rgb.grad is not None
    assert torch.isfinite(rgb.grad).all()


@pytest.mark.parametrize("step", [10.0, 20.0])
def test_bins_are_those_that_srgb_reaches(step: float) -> None:
    bins = {(int(a), int(b)) for a, b in a_head(step=step).bins.tolist()}
    levels = [k / 16 for k in range(17)]  # half as fine as the method's: a subset
    reached = set()
    for r in levels:
        for g in levels:
            for b in levels:
                _, first, second = by_hand([r, g, b])
                near = [v / step - math.floor(v / step) for v in (first, second)]
                if all(abs(v - 0.5) > 0.01 for v in near):
                    reached.add((int(step * round(first / step)), int(step * round(second / step))))
    assert reached <= bins
    assert len(bins) < 1.35 * len(reached)
    assert (0, 0) in bins


def test_targets_share_each_colour_among_the_five_nearest_bins() -> None:
    head, y = a_head(), pictures()
    found = head.target(y.data)
    colours = lab(y.unit())[:, 1:]
    bins = head.bins.tolist()
    n = 0
    for image in colours:
        for i in range(4):
            for j in range(4):
                cell = image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1).mean(1).tolist()
                squared = [(cell[0] - a) ** 2 + (cell[1] - b) ** 2 for a, b in bins]
                near = sorted(range(len(bins)), key=lambda q: squared[q])[:5]
                shares = {q: math.exp(-squared[q] / (2 * 10**2)) for q in near}
                wanted = [shares.get(q, 0.0) / sum(shares.values()) for q in range(len(bins))]
                assert found[n].tolist() == pytest.approx(wanted, abs=1e-9)
                n += 1
    assert n == len(found)


def test_lightness_is_a_grey_image_normalised_as_the_coloured_one() -> None:
    y = pictures()
    found = y.with_data(lightness(y.data, y.mean, y.std)).unit()
    for k in range(3):
        assert torch.allclose(found[:, k], lab(y.unit())[:, 0] / 100, atol=1e-12)
    half = lightness(y.data.bfloat16(), y.mean, y.std)
    assert half.dtype == torch.bfloat16
