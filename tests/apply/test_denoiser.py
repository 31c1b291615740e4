"""The network that denoises: its transform, its mask and its energy."""

import numpy as np
import pytest
import torch

from erg.apply import denoiser
from erg.apply.denoiser import Denoiser
from erg.apply.restorer import seeded

TIME = np.arange(4000) / 8000
SOUND = (0.2 * np.sin(2 * np.pi * (150 + 300 * TIME) * TIME) * np.hanning(4000)).astype(np.float32)


@pytest.fixture
def network() -> Denoiser:
    seeded(0)
    return Denoiser(width=16, blocks=4).eval()


def test_the_transform_is_undone(network: Denoiser) -> None:
    for length in (1, 100, 4000, 4033):
        sound = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
        again = network.sounds(network.spectrum(sound), length)
        torch.testing.assert_close(again, sound, atol=1e-5, rtol=0)


def test_the_transform_is_that_of_a_loop(network: Denoiser) -> None:
    sound = torch.from_numpy(SOUND[:1000])
    found = network.spectrum(sound[None])[0]
    padded = np.pad(SOUND[:1000].astype(np.float64), 128)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    for n in (0, 3, 15):
        frame = np.fft.rfft(padded[64 * n : 64 * n + 256] * hann)
        np.testing.assert_allclose(found[:, n].numpy(), frame, atol=1e-5)
    assert found.shape == (129, 16)


def test_the_energy_is_its_formula(network: Denoiser) -> None:
    clean = torch.from_numpy(np.stack([SOUND, -SOUND, SOUND[::-1]]))
    noisy = clean + 0.1 * torch.randn(3, 4000, generator=torch.Generator().manual_seed(0))
    x, y = network.spectrum(noisy), network.spectrum(clean)
    mask = network.mask(x).detach().double().numpy()
    assert (mask > 0).all()
    assert (mask < 1).all()
    for i, found in enumerate(network.energy(x, y).tolist()):
        left = mask[i] * x[i].numpy().astype(np.complex128) - y[i].numpy()
        wanted = np.log((np.abs(left) ** 2).sum() / (np.abs(y[i].numpy()) ** 2).sum())
        assert found == pytest.approx(wanted, abs=1e-4)


def test_louder_makes_no_difference(network: Denoiser) -> None:
    sound = SOUND + 0.1 * np.random.default_rng(0).normal(size=4000).astype(np.float32)
    assert network.denoise(20 * sound) == pytest.approx(20 * network.denoise(sound), abs=1e-4)
    assert np.array_equal(network.denoise(np.zeros(300, dtype=np.float32)), np.zeros(300))


def test_long_sounds_in_pieces_are_as_in_one(network: Denoiser, monkeypatch) -> None:
    sound = np.tile(SOUND, 3)
    whole = network.denoise(sound)
    monkeypatch.setattr(denoiser, "CHUNK", 37)
    assert network.denoise(sound) == pytest.approx(whole, abs=1e-5)
    network.reach -= 3  # the pieces do have to overlap so much
    assert np.abs(network.denoise(sound) - whole).max() > 1e-5
