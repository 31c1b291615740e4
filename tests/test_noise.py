"""Noise inside methods: the hash against that of the views, statistics, what it depends on."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from erg import noise
from erg.views import random

INDEX = torch.arange(400)


@pytest.mark.parametrize("first", [0, 7, -3, 2**63 + 5])
def test_bits_are_those_of_the_views(first: int) -> None:
    """Two implementations, one in signed and one in unsigned integers."""
    rows, draws = np.array([0, 5, -1, 2**40], dtype=np.int64), np.arange(3)
    wanted = random.bits(first, 11, rows[:, None], draws)
    found = noise.bits(first, 11, torch.from_numpy(rows)[:, None], torch.from_numpy(draws))
    assert found.shape == (4, 3)
    assert found.numpy().view(np.uint64).tolist() == wanted.tolist()


def test_normal_numbers_are_normal_and_independent() -> None:
    x = noise.normal(INDEX, 10, 5, purpose="latent", step=3)
    assert x.shape == (400, 10, 5)
    assert x.dtype == torch.float32
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01
    columns = np.corrcoef(x.flatten(1).numpy(), rowvar=False)
    assert np.abs(columns - np.eye(50)).max() < 4.5 / np.sqrt(400)
    rows = np.corrcoef(x.flatten(1)[:40].numpy())
    assert np.abs(rows - np.eye(40)).max() < 4.5 / np.sqrt(50)
    # Uncorrelated is not yet independent: the two numbers of a pair come from one hash.
    pair = x.flatten(1)[:, :2].square().numpy()
    assert abs(np.corrcoef(pair, rowvar=False)[0, 1]) < 4.5 / np.sqrt(400)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    x = noise.uniform(INDEX, 10, 5, purpose="restart", step=3)
    assert x.shape == (400, 10, 5)
    assert x.dtype == torch.float32
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert stats.kstest(x.flatten().numpy(), "uniform").pvalue > 0.01
    columns = np.corrcoef(x.flatten(1).numpy(), rowvar=False)
    assert np.abs(columns - np.eye(50)).max() < 4.5 / np.sqrt(400)


def test_signs_are_fair_and_independent() -> None:
    x = noise.signs(INDEX, 3, 43, purpose="directions", step=3)
    assert x.shape == (400, 3, 43)
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    flat = x.flatten(1)
    assert abs(float(flat.mean())) < 4.5 / np.sqrt(flat.numel())
    products = flat.T @ flat / 400  # [129 129]
    assert float((products - torch.eye(129)).abs().max()) < 5 / np.sqrt(400)


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform, noise.signs])
def test_noise_depends_on_image_purpose_and_step_only(draw) -> None:
    def of(index: Tensor, purpose: str = "latent", step: int = 3) -> Tensor:
        return draw(index, 66, purpose=purpose, step=step)

    everything = of(INDEX)
    assert torch.equal(of(INDEX), everything)
    order = torch.tensor([17, 3, 399])
    assert torch.equal(of(order), everything[order])  # whatever else is in the batch
    for other in (of(INDEX + 400), of(INDEX, "bits"), of(INDEX, step=4)):
        same = (other == everything).float().mean()
        assert same < 0.6  # signs agree by chance
    assert torch.equal(draw(INDEX, 66, purpose="latent", step=3), everything)
    state = torch.random.get_rng_state()
    of(INDEX)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sizes() -> None:
    assert noise.normal(INDEX[:2], 3, purpose="latent", step=0).shape == (2, 3)
    # A longer draw begins with the shorter one.
    longer = noise.normal(INDEX[:2], 8, purpose="latent", step=0)
    assert torch.equal(noise.normal(INDEX[:2], 3, purpose="latent", step=0), longer[:, :3])
    assert noise.signs(INDEX[:0], 3, purpose="latent", step=0).shape == (0, 3)
