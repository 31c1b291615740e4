"""The network that inpaints: what it may change, its energy, and large images."""

import math

import numpy as np
import pytest
import torch

from erg.apply import inpainter
from erg.apply.inpainter import Inpainter, smooth_fill
from erg.apply.restorer import seeded
from erg.evaluate.restoration import biharmonic_fill


@pytest.fixture
def network() -> Inpainter:
    seeded(0)
    return Inpainter(width=8).eval()


@pytest.fixture
def awake(network: Inpainter) -> Inpainter:
    """A network whose last layer is not zero, as after some training."""
    torch.nn.init.normal_(network.last[0].weight, std=0.3)
    return network


def test_only_what_is_told_changes(awake: Inpainter) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 32, 32, generator=random)
    told = torch.zeros(2, 1, 32, 32)
    told[0, :, 5:9, 3:20] = 1
    out, logit = awake.find(x, told)
    assert torch.equal(out, awake.restore(x, told))
    changed = (out != x).any(dim=1, keepdim=True)
    assert torch.equal(changed[0], told[0] > 0)
    assert changed[1].float().mean() > 0.9, "the gate decides where nothing is told"
    smooth = smooth_fill(x, told)
    added = awake(smooth, told)
    torch.testing.assert_close(out[0, :, 6, 7], smooth[0, :, 6, 7] + added[0, :3, 6, 7])
    gate = logit[1].sigmoid()
    torch.testing.assert_close(out[1], (1 - gate) * x[1] + gate * (x[1] + added[1, :3]))


def test_smooth_filling_is_that_of_a_loop() -> None:
    x = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(2))
    told = torch.zeros(1, 1, 9, 12)
    told[0, 0, 2:7, 0:6] = 1
    filled = x[0, 0].numpy().astype(np.float64)
    known = told[0, 0].numpy() == 0
    for _ in range(4):
        before, seen = filled.copy(), known.copy()
        for i, j in zip(*np.nonzero(told[0, 0].numpy()), strict=True):
            near = np.s_[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            if seen[near].any():
                filled[i, j] = before[near][seen[near]].mean()
                known[i, j] = True
    assert known.all()
    found = smooth_fill(x, told, rounds=4, bends=0)
    np.testing.assert_allclose(found[0, 0].numpy(), filled, atol=1e-6)
    assert torch.equal(smooth_fill(x, 0 * told), x)


def test_smooth_filling_goes_to_the_biharmonic_one() -> None:
    """At the border too; after the usual number of steps strokes are as good as there."""
    x = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(5))
    told = torch.zeros(1, 1, 20, 24)
    told[..., 5:7, :13] = told[..., 12:, 20] = 1
    wanted = biharmonic_fill(x[0].permute(1, 2, 0).numpy(), told[0, 0].numpy() > 0)
    for bends, near in ((48, 0.05), (1500, 1e-3)):
        found = smooth_fill(x, told, bends=bends)[0].permute(1, 2, 0).numpy()
        assert np.abs(found - wanted).max() < near


def test_an_untrained_network_fills_smoothly(network: Inpainter) -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    told = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(4)) < 0.2).float()
    torch.testing.assert_close(network.restore(x, told), smooth_fill(x, told))


def test_what_is_under_a_told_overlay_is_not_looked_at(awake: Inpainter) -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    told = torch.zeros(1, 1, 32, 32)
    told[..., 8:16, 8:16] = 1
    other = torch.where(told > 0, 0.123, x)
    torch.testing.assert_close(
        awake.restore(x, told)[0, :, 12], awake.restore(other, told)[0, :, 12]
    )


def test_the_energy_is_the_log_of_a_sum_over_pixels(awake: Inpainter) -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.rand(3, 3, 16, 16, generator=random)
    hidden = torch.rand(3, 1, 16, 16, generator=random) < 0.3
    hidden[2] = False
    x = torch.where(hidden, 0.9, y)
    told = hidden.float()
    out = awake.restore(x, told).detach()
    for i, found in enumerate(awake.energy(x, y, hidden.float(), told).tolist()):
        total = sum(
            float(out[i, c, r, s] - y[i, c, r, s]) ** 2
            for c in range(3) for r in range(16) for s in range(16)
        )  # fmt: skip
        wanted = math.log(total / max(1, 3 * int(hidden[i].sum())) + 1e-5)
        assert found == pytest.approx(wanted, rel=1e-4)
    logit = awake.find(x, told)[1].detach().double()
    p = logit.sigmoid().numpy()
    seen = -np.where(hidden.numpy(), np.log(p), np.log(1 - p)).mean()
    loss = awake.loss(x, y, hidden.float(), told)
    wanted = awake.energy(x, y, hidden.float(), told).mean() + seen
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_large_images_in_pieces_are_as_in_one(awake: Inpainter, monkeypatch, told: bool) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (150, 303, 3)).astype(np.uint8)
    hidden = random.uniform(size=(150, 303)) < 0.2 if told else None
    monkeypatch.setattr(inpainter, "TILE", 1024)
    whole = awake.inpaint(image, hidden)
    assert whole.shape == image.shape
    monkeypatch.setattr(inpainter, "TILE", 64)
    pieces = awake.inpaint(image, hidden)
    assert np.abs(pieces.astype(int) - whole).max() <= 1  # rounding of the last bit
    if hidden is not None:
        assert np.array_equal(pieces[~hidden], image[~hidden])
        assert np.array_equal(awake.inpaint(image, np.zeros_like(hidden)), image)
