"""The running mean of a teacher's outputs, and the temperature of its codes."""

import math

import pytest
import torch

from erg.parts.centre import Centre, Sharpening


def test_moves_towards_the_mean_of_the_batch() -> None:
    centre, generator = Centre(3, 0.7).double(), torch.Generator().manual_seed(0)
    wanted = [0.0, 0.0, 0.0]
    for b in (4, 1, 7):
        t = torch.randn(b, 3, generator=generator, dtype=torch.float64)
        centre.update(t)
        for k in range(3):
            wanted[k] = 0.7 * wanted[k] + 0.3 * sum(row[k] for row in t.tolist()) / b
        assert centre.mean.tolist() == pytest.approx(wanted, rel=1e-12)


def test_is_saved_in_its_own_precision_and_without_gradient() -> None:
    centre, other = Centre(2, 0.9), Centre(2, 0.9)
    centre.update(torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True))
    assert centre.mean.dtype == torch.float32
    assert not centre.mean.requires_grad
    other.load_state_dict(centre.state_dict())
    assert torch.equal(other.mean, centre.mean)
    assert centre.mean.tolist() == pytest.approx([0.1, 0.1])


def test_codes_are_centred_before_they_are_sharpened() -> None:
    centre = Centre(3, 0.9).double()
    centre.mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    t = torch.tensor([[0.5, 0.1, 0.2], [-0.3, 0.4, 0.0]], dtype=torch.float64)
    for row, found in zip(t.tolist(), centre.codes(t, 0.05).tolist(), strict=True):
        e = [math.exp((v - c) / 0.05) for v, c in zip(row, centre.mean.tolist(), strict=True)]
        assert found == pytest.approx([v / sum(e) for v in e], rel=1e-12)
    assert centre.codes(t.bfloat16(), 0.05).dtype == torch.float32


def test_temperature_moves_in_a_straight_line_until_it_is_warm() -> None:
    temperature = Sharpening(0.04, 0.08, 0.2)
    found = [temperature(progress) for progress in (0.0, 0.05, 0.1, 0.2, 0.7, 1.0)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.08, 0.08, 0.08])
    assert Sharpening(0.04, 0.08, 0.0)(0.0) == 0.08
    assert Sharpening(0.04, 0.08, 1.0)(0.5) == pytest.approx(0.06)
