"""The network that denoises sounds: a mask over the spectrogram.

As an energy: F(x, y) = log(||m(x) x - y||^2 / ||y||^2), where x and y are the spectra of a noisy
and a clean sound and m the mask. It is a denoising autoencoder whose decoder can only take away
(Lu et al. 2013 predict the clean spectrum itself): the corruption and the bounds of the mask keep
F from being low everywhere. Magnitudes alone are changed, so the phase stays that of the noisy
sound, and m is fitted to what helps under that phase (Erdogan et al. 2015).

It is no `Method`: there is no encoder to keep, and a pair comes from two sets of sounds.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from erg.apply.restorer import Restorer, within
from erg.energy import at_least_float32
from erg.parts.conv import Residual

CHUNK = 4096  # frames of a long sound that are looked at together


class Denoiser(Restorer):
    """m(x) in [0, 1] for every frequency and frame of a noisy spectrum x.

    log(|x| / rms + 0.01), and how far it is above its own floor (its 0.2 quantile over time), both
    standardised per frequency, go through residual convolutions over time with frequencies as
    channels, dilated 1, 2, 4, 8 and again, and a sigmoid. Louder or softer makes no difference.

    Args:
        rate: of the sounds [Hz].
        window: of a frame, Hann [samples]; 32 ms.
        hop: from frame to frame [samples]; 8 ms.
        width: channels inside.
        blocks: residual convolutions.
    """

    command = "denoise"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        rate: int = 8000,
        window: int = 256,
        hop: int = 64,
        width: int = 128,
        blocks: int = 8,
    ) -> None:
        super().__init__()
        self.arguments = {
            "rate": within("rate", rate, 1000, 48000),
            "window": within("window", window, 16, 4096),
            "hop": within("hop", hop, 1, window // 2),
            "width": within("width", width, 1, 1024),
            "blocks": within("blocks", blocks, 0, 32),
        }
        self.rate, self.window, self.hop = rate, window, hop
        bands = window // 2 + 1
        self.register_buffer("mean", torch.zeros(2 * bands, 1))
        self.register_buffer("std", torch.ones(2 * bands, 1))
        dilations = [2 ** (i % 4) for i in range(blocks)]
        self.reach = 2 + sum(dilations)
        self.network = nn.Sequential(
            nn.Conv1d(2 * bands, width, 3, padding=1), nn.ReLU(),
            *(Residual(_convolution(width, dilation)) for dilation in dilations),
            nn.Conv1d(width, bands, 3, padding=1),
        )  # fmt: skip

    def spectrum(self, sounds: Float[Tensor, "b t"]) -> Complex[Tensor, "b f n"]:
        """Short-time Fourier transform, Hann, the first frame around the first sample."""
        return torch.stft(
            sounds, self.window, self.hop, window=self._hann(sounds), center=True,
            pad_mode="constant", return_complex=True,
        )  # fmt: skip

    def sounds(self, spectrum: Complex[Tensor, "b f n"], length: int) -> Float[Tensor, "b t"]:
        """The inverse of `spectrum`, by weighted overlapping and adding."""
        return torch.istft(
            spectrum, self.window, self.hop, window=self._hann(spectrum), center=True,
            length=length,
        )  # fmt: skip

    def _hann(self, like: Tensor) -> Tensor:
        dtype = like.real.dtype if like.is_complex() else like.dtype
        return torch.hann_window(self.window, dtype=dtype, device=like.device)

    def features(self, x: Complex[Tensor, "b f n"]) -> Float[Tensor, "b two_f n"]:
        """log(|x| / rms + 0.01), rms over each whole sound, and its height over the floor."""
        magnitude = x.abs()
        rms = magnitude.square().mean(dim=(1, 2), keepdim=True).sqrt()
        level = (magnitude / rms.clamp_min(1e-8) + 0.01).log()
        floor = level.kthvalue(1 + level.shape[2] // 5, dim=2, keepdim=True).values
        return torch.cat([level, level - floor], dim=1)

    def mask(self, x: Complex[Tensor, "b f n"]) -> Float[Tensor, "b f n"]:
        """m(x). Long sounds are looked at in pieces that overlap by what the network sees."""
        given = (self.features(x) - self.mean) / self.std
        if given.shape[2] <= CHUNK:
            return self.network(given).sigmoid()
        found = []
        for start in range(0, given.shape[2], CHUNK):
            first = max(0, start - self.reach)
            piece = self.network(given[:, :, first : start + CHUNK + self.reach])
            found.append(piece[:, :, start - first : start - first + CHUNK].sigmoid())
        return torch.cat(found, dim=2)

    def energy(
        self, x: Complex[Tensor, "b f n"], y: Complex[Tensor, "b f n"]
    ) -> Float[Tensor, " b"]:
        """F(x, y) = log(||m(x) x - y||^2 / ||y||^2)."""
        error = (at_least_float32(self.mask(x)) * x - y).abs().square().sum(dim=(1, 2))
        return (error / y.abs().square().sum(dim=(1, 2)) + 1e-8).log()

    def standardise(self, x: Complex[Tensor, "b f n"]) -> None:
        """Take mean and standard deviation per frequency from noisy spectra."""
        given = self.features(x)
        self.mean.copy_(given.mean(dim=(0, 2))[:, None])
        self.std.copy_(given.std(dim=(0, 2))[:, None].clamp_min(1e-3))

    @torch.no_grad()
    def denoise(self, sound: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """A sound of this model's rate without its noise."""
        x = self.spectrum(torch.from_numpy(sound.astype(np.float32)).to(self.mean.device)[None])
        return self.sounds(self.mask(x) * x, len(sound))[0].cpu().numpy()


def _convolution(width: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
    )
