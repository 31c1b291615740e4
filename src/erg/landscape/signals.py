"""Figures of what is taken away from signals: noise from sounds, text and holes from pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_sample_image

from erg.apply import denoise, inpaint
from erg.data.audio import mix
from erg.data.cache import Cache
from erg.evaluate.audio import si_sdr
from erg.evaluate.restoration import psnr
from erg.landscape.draw import Canvas, Figure
from erg.views.random import uniform

RATE = 8000
"""Of the sounds [Hz]."""

SHOWN = ("corrupted", "median", "biharmonic", "erg")
"""Ways of inpainting that half a minute of training can be set beside."""


@dataclass(frozen=True, eq=False)
class Speech(Figure):
    """Spectrograms of a noisy sound, of what a trained mask leaves of it, and of the clean one.

    The voices are made: gliding harmonics under two moving resonances, in syllables. For speech
    and noise of yours there is `erg denoise`.
    """

    size = (13.0, 4.4)
    sounds: dict[str, np.ndarray]
    levels: dict[str, np.ndarray]
    seconds: float
    ratios: dict[str, float]

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 250) -> "Speech":
        voices = [voice(seed, i) for i in range(60)]
        noises = [hiss(seed, i) for i in range(20)]
        network = denoise.train_denoiser(
            voices[:50], noises[:15], rate=RATE, steps=steps, seed=seed
        )
        found: dict[str, list[float]] = {"noisy": [], "Wiener": [], "erg": []}
        sounds: dict[str, np.ndarray] = {}
        for i, clean in enumerate(voices[50:]):
            noisy = mix(clean, noises[15 + i % 5], 0.0).astype(np.float32)
            ways = denoise.restored(network, noisy, noisy - clean)
            for name, ratios in found.items():
                ratios.append(si_sdr(clean, ways[name]))
            if not i:
                sounds = {"noisy, 0 dB": noisy, "denoised": ways["erg"], "clean": clean}
        levels = {
            name: network.spectrum(torch.from_numpy(sound.astype(np.float32))[None])[0]
            .abs()
            .numpy()
            for name, sound in sounds.items()
        }
        return cls(
            sounds, levels, len(voices[50]) / RATE,
            {name: float(np.mean(ratios)) for name, ratios in found.items()},
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        return {f"SI-SDR of new voices [dB], {name}": ratio for name, ratio in self.ratios.items()}

    def draw(self, canvas: Canvas) -> None:
        panels = canvas.panels(1, 3, sharey=True)[0]
        loudest = max(float(levels.max()) for levels in self.levels.values())
        images = [
            ax.imshow(
                20 * np.log10(levels / loudest + 1e-6), origin="lower", aspect="auto",
                extent=(0, self.seconds, 0, RATE / 2000), cmap="magma", vmin=-60, vmax=0,
            )
            for ax, levels in zip(panels, self.levels.values(), strict=True)
        ]  # fmt: skip
        for ax, name in zip(panels, self.levels, strict=True):
            ax.set(xlabel="time [s]", title=name)
        gain = self.ratios["erg"] - self.ratios["noisy"]
        panels[1].set_title(
            f"denoised: mean SI-SDR {gain:+.1f} dB (Wiener: {self.over_wiener:+.1f})"
        )
        panels[0].set_ylabel("frequency [kHz]")
        canvas.picture.colorbar(images[0], ax=panels, label="level [dB]", pad=0.01)

    @property
    def over_wiener(self) -> float:
        """What a Wiener filter gains [dB]."""
        return self.ratios["Wiener"] - self.ratios["noisy"]


def voice(seed: int, i: int, seconds: float = 1.2) -> np.ndarray:
    """Syllables of a made voice: harmonics of a gliding pitch, louder at two resonances."""
    u = uniform(seed, 1, i, np.arange(40))
    t = np.arange(round(seconds * RATE)) / RATE
    knots = np.linspace(0, seconds, 6)

    def gliding(low: float, high: float, first: int) -> np.ndarray:
        return np.interp(t, knots, low + (high - low) * u[first : first + 6])

    base = 90 + 150 * u[0]
    pitch = base * (1 + 0.25 * (gliding(0, 1, 1) - 0.5))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    centres = gliding(300, 900, 7), gliding(1000, 2600, 13)
    sound = np.zeros_like(t)
    for n in range(1, int(3600 / base)):
        near = sum(np.exp(-(((n * pitch - centre) / 200) ** 2) / 2) for centre in centres)
        sound += (near + 0.02) * np.sin(n * phase) / np.sqrt(n)
    syllables = np.clip(3 * np.sin(2 * np.pi * (2.5 + 2 * u[19]) * t + 6 * u[20]) + 0.5, 0, 1)
    sound *= syllables
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def hiss(seed: int, i: int, seconds: float = 1.2) -> np.ndarray:
    """Noise of a random colour, in gusts."""
    u, n = uniform(seed, 2, i, np.arange(9)), round(seconds * RATE)
    drawn = np.random.default_rng([seed, i]).normal(size=n)
    frequencies = np.fft.rfftfreq(n, 1 / RATE)
    gain = np.interp(frequencies, np.linspace(0, RATE / 2, 5), 0.1 + u[:5])
    sound = np.fft.irfft(np.fft.rfft(drawn) * gain, n)
    gusts = np.interp(np.arange(n), np.linspace(0, n, 4), 0.4 + u[5:])
    return (0.1 * gusts * sound / sound.std()).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Overlay(Figure):
    """Text and holes over pieces of a photograph, before and after; median, smooth filling and
    network are told where they are. For pictures of yours there is `erg inpaint`."""

    size = (9.6, 7.8)
    shown: list[dict[str, np.ndarray]]
    quality: dict[str, float]

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 250, side: int = 32) -> "Overlay":
        pieces = cut_up(side)
        last = len(pieces) // 8
        rows = np.arange(len(pieces))
        network = inpaint.train_inpainter(
            Cache.of(pieces), rows[last:], size=side, steps=steps, seed=seed
        )
        shown: list[dict[str, np.ndarray]] = []
        found: dict[str, list[float]] = {way: [] for way in SHOWN}
        for kind in inpaint.KINDS:
            hidden, colours = inpaint.overlays(rows[:last], side, seed=seed, step=0, kind=kind)
            for i in range(last):
                y = pieces[i].astype(np.float32) / 255
                where, colour = hidden[i, 0].numpy(), colours[i, :, 0, 0].numpy()
                ways = inpaint.restored(network, y, where, colour)
                for way, each in found.items():
                    each.append(min(inpaint.CAP, psnr(y, ways[way])))
                if i % (last // 2) == last // 4:
                    shown.append({way: ways[way] for way in SHOWN} | {"original": y})
        return cls(shown, {way: float(np.mean(each)) for way, each in found.items()})

    def facts(self) -> dict[str, float]:
        return {f"PSNR of new pieces [dB], {way}": value for way, value in self.quality.items()}

    def draw(self, canvas: Canvas) -> None:
        panels = canvas.panels(len(self.shown), len(self.shown[0]))
        for row, images in zip(panels, self.shown, strict=True):
            for ax, image in zip(row, images.values(), strict=True):
                canvas.image(ax, image.clip(0, 1))
        for ax, name in zip(panels[0], self.shown[0], strict=True):
            value = f": {self.quality[name]:.1f} dB" if name in self.quality else ""
            ax.set_title(f"{name}{value}")


def cut_up(side: int) -> list[np.ndarray]:
    """Squares of two photographs, uint8 [side side 3], without the flat ones: first those of the
    right of the first."""
    found: list[np.ndarray] = []
    for name in ("china.jpg", "flower.jpg"):
        picture = load_sample_image(name)
        h, w = picture.shape[:2]
        corners = [(y, x) for x in range(w - side, -1, -side) for y in range(0, h - side, side)]
        found += [np.ascontiguousarray(picture[y : y + side, x : x + side]) for y, x in corners]
    return [piece for piece in found if piece.std() > 25]
