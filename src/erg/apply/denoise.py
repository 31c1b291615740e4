"""Audio denoising: training on clean sounds with noise added, what it is worth, and pictures."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from erg.apply.denoiser import Denoiser
from erg.apply.embed import evenly
from erg.apply.pictures import sheet
from erg.apply.restorer import descend, put, save_restorer, seeded
from erg.data.audio import Clips, cut, mix, open_clips, write_wav
from erg.durable import explained, write_atomically
from erg.evaluate.audio import quietest, segmental_snr, si_sdr, spectral_subtraction, wiener
from erg.evaluate.intervals import difference
from erg.train.run import Optimiser
from erg.views.random import uniform

OPTIMISER = Optimiser(lr=2e-3, weight_decay=0.01, clip=5.0)
BATCH, SECONDS = 16, 0.6
SNR = (-5.0, 15.0)
"""Range of the signal-to-noise ratio in training [dB]."""

TAP = 0.4
"""Largest tap of the random filters beside the middle one."""

RATIOS = (-5, 0, 5, 10, 15)
"""Signal-to-noise ratios of the test [dB]."""

WAYS = ("noisy", "spectral subtraction", "Wiener", "told: subtraction", "told: Wiener", "erg")
"""What is compared. The baselines take the noise from the quietest frames; where told, they know
the mean spectrum of the very noise in a sound, which nobody has in life."""

Progress = Callable[[int, int], None]


# Training ------------------------------------------------------------------------------------


def mixtures(
    speech: Sequence[np.ndarray],
    noise: Sequence[np.ndarray],
    *,
    seed: int,
    step: int,
    batch: int,
    length: int,
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Noisy and clean sounds of a step: which, where and how loud is a function of its number.

    Args:
        speech: clean clips; a short one stands somewhere in silence, of a long one a piece is cut.
        noise: clips of noise, none of them silent.
        seed: of the draws.
        step: its number.
        batch: pairs.
        length: of each sound [samples].
    """
    drawn = uniform(seed, step, np.arange(batch)[:, None], np.arange(15))  # [b 15]
    clean = np.zeros((batch, length), dtype=np.float32)
    noisy = np.empty_like(clean)
    for i, (which, where, other, start, loud, *rest) in enumerate(drawn):
        clip = varied(speech[int(which * len(speech))], rest[:5])
        if len(clip) >= length:
            clean[i] = cut(clip, length, where)
        else:
            first = round(where * (length - len(clip)))
            clean[i, first : first + len(clip)] = clip
        piece = cut(varied(noise[int(other * len(noise))], rest[5:]), length, start)
        noisy[i] = mix(clean[i], piece, SNR[0] + loud * (SNR[1] - SNR[0]))
    return torch.from_numpy(noisy), torch.from_numpy(clean)


def varied(clip: Float[np.ndarray, " t"], numbers: Sequence[float]) -> Float[np.ndarray, " u"]:
    """A clip as another voice and another microphone might give it.

    Played up to a third faster or slower, which moves the pitch as well, and through a filter of
    five taps, random ones around a 1: few speakers are to stand for many.

    Args:
        clip: of any length.
        numbers: five numbers in [0, 1), the speed and the four taps around the middle.
    """
    speed, *taps = numbers
    step = (4 / 3) ** (2 * speed - 1)
    played = np.interp(np.arange(0, len(clip) - 1, step), np.arange(len(clip)), clip)
    around = [TAP * (2 * tap - 1) for tap in taps]
    kernel = [*around[:2], 1.0, *around[2:]]
    return np.convolve(played, kernel, mode="same").astype(np.float32)


def train_denoiser(
    speech: Sequence[np.ndarray],
    noise: Sequence[np.ndarray],
    *,
    rate: int = 8000,
    steps: int = 2000,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Denoiser:
    """A denoiser of sounds like these; the same one again under the same seed.

    Args:
        speech: clean clips [samples in -1 to 1], none of them silent.
        noise: clips of noise, none of them silent.
        rate: of both [Hz].
        steps: of 16 mixtures of 0.6 s each, at -5 to 15 dB.
        seed: of weights and mixtures.
        device: cpu or cuda.
        progress: called with (steps done, steps).

    Raises:
        ValueError: there is no such device.
        Diverged: the loss is not finite.
    """
    seeded(seed)
    window = 4 * round(0.008 * rate)  # 32 ms
    network = put(Denoiser(rate=rate, window=window, hop=window // 4), device)

    def spectra(step: int, batch: int) -> list[Tensor]:
        length = round(SECONDS * rate)
        pair = mixtures(speech, noise, seed=seed, step=step, batch=batch, length=length)
        return [network.spectrum(sounds.to(device)) for sounds in pair]

    def loss(step: int) -> Tensor:
        x, y = spectra(step, BATCH)
        return network.energy(x, y).mean()

    network.standardise(spectra(steps, 8 * BATCH)[0])  # a step that training does not come to
    descend(network, loss, OPTIMISER, steps, progress=progress)
    return network


# What it is worth ----------------------------------------------------------------------------


def restored(
    network: Denoiser, noisy: Float[np.ndarray, " t"], noise: Float[np.ndarray, " t"]
) -> dict[str, np.ndarray]:
    """A noisy sound as it is, and as the baselines and the network restore it, by way.

    Args:
        network: the denoiser, which sees the noisy sound alone.
        noisy: a sound.
        noise: what is noise in it, for the baselines that are told.
    """
    sounds = torch.from_numpy(np.stack([noisy, noise]).astype(np.float32))
    spectra = network.spectrum(sounds.to(network.mean.device)).cpu()
    power = spectra.abs().square().double().numpy()
    gains = [
        gain(power[0], floor)
        for floor in (quietest(power[0]), power[1].mean(axis=1))
        for gain in (spectral_subtraction, wiener)
    ]
    made = [
        network.sounds(torch.from_numpy(gain).float() * spectra[:1], len(noisy))[0].numpy()
        for gain in gains
    ]
    return dict(zip(WAYS, [noisy, *made, network.denoise(noisy)], strict=True))


def held_mixture(
    speech: Clips, noise: Clips, i: int, ratio: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Clean clip i, and the noise it is mixed with at a ratio [dB], at its level."""
    clean = speech.sounds[i]
    other, start = uniform(seed, i, np.arange(2))
    piece = cut(noise.sounds[int(other * len(noise))], len(clean), float(start))
    return clean, mix(clean, piece, ratio) - clean


def score_denoiser(
    network: Denoiser,
    speech: Clips,
    noise: Clips,
    *,
    ratios: Sequence[float] = RATIOS,
    clips: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """SI-SDR and segmental SNR [dB] of every way, on sounds that training has not seen.

    Args:
        network: the denoiser.
        speech: clean clips.
        noise: clips of noise.
        ratios: signal-to-noise ratios to test at [dB].
        clips: at most so many of the speech, evenly spread.
        seed: which noise meets which clip, and of the intervals.
        progress: called with (mixtures done, mixtures).

    Returns:
        By ratio: for every way the mean of both measures, of their gain over the noisy sound,
        and how much more the network gains than each baseline, with 95 % intervals over clips.
    """
    rows = evenly(np.arange(len(speech)), clips)
    segment = network.window
    found: dict[str, Any] = {}
    for place, ratio in enumerate(ratios):
        values = {way: np.zeros((len(rows), 2)) for way in WAYS}
        for n, i in enumerate(rows):
            clean, noise_in_it = held_mixture(speech, noise, int(i), ratio, seed)
            ways = restored(network, clean + noise_in_it, noise_in_it)
            for way, sound in ways.items():
                values[way][n] = (
                    si_sdr(clean, sound), segmental_snr(clean, sound, segment=segment),
                )  # fmt: skip
            if progress is not None:
                progress(place * len(rows) + n + 1, len(ratios) * len(rows))
        found[f"{ratio:g}"] = {
            measure: _summary({way: values[way][:, k] for way in WAYS}, seed)
            for k, measure in enumerate(("si_sdr", "segmental_snr"))
        }
    return {"format": 1, "clips": len(rows), "ratios": found}


def _summary(values: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    mine, noisy = values["erg"], values["noisy"]
    return {
        "mean": {way: float(each.mean()) for way, each in values.items()},
        "gain": {
            way: asdict(difference(each, noisy, seed=seed))
            for way, each in values.items() if way != "noisy"
        },
        "ahead": {
            way: asdict(difference(mine, each, seed=seed))
            for way, each in values.items() if way not in ("noisy", "erg")
        },
    }  # fmt: skip


# Pictures and folders ------------------------------------------------------------------------


_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])


def spectrogram(
    network: Denoiser,
    sound: Float[np.ndarray, " t"],
    *,
    loudest: float,
    size: tuple[int, int] = (200, 300),
) -> np.ndarray:
    """A picture uint8 [h w 3] of magnitudes: frequencies upwards, time to the right.

    Args:
        network: whose spectrum it is.
        sound: to be drawn.
        loudest: magnitude that is brightest; 60 dB below it all is dark.
        size: height and width [pixels].
    """
    x = network.spectrum(torch.from_numpy(sound.astype(np.float32)).to(network.mean.device)[None])
    level = 20 * np.log10(x[0].abs().cpu().numpy()[::-1] / loudest + 1e-6)
    lines, columns = (
        np.linspace(0, n - 1, wanted).round().astype(int)
        for n, wanted in zip(level.shape, size, strict=True)
    )
    unit = (level[lines][:, columns] / 60 + 1).clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = [np.interp(unit, stops, _COLOURS[:, c]) for c in range(3)]
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def draw_spectrograms(network: Denoiser, path: Path, sounds: dict[str, np.ndarray]) -> None:
    """One picture of several sounds of one length, each under its name, one loudness for all."""
    first = next(iter(sounds.values()))
    x = network.spectrum(torch.from_numpy(first.astype(np.float32)).to(network.mean.device)[None])
    loudest = max(float(x.abs().max()), 1e-8)
    cells = [spectrogram(network, sound, loudest=loudest) for sound in sounds.values()]
    write_atomically(path, sheet(cells, len(cells), list(sounds)))


def learn_to_denoise(
    speech: str | Path,
    noise: str | Path,
    out: Path,
    *,
    hold: str | None = None,
    hold_noise: str | None = None,
    rate: int = 8000,
    steps: int = 2000,
    seed: int = 0,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda _: None,
    counting: Callable[[str], Any] = lambda _: nullcontext(None),
) -> dict[str, Any]:
    """Train on two sets of sounds, test on what was held out of both, and leave it in a folder.

    The folder gets config.json, model.safetensors, scores.json, spectrograms.png and an example
    as noisy.wav, denoised.wav and clean.wav.

    Args:
        speech: clean sounds (see `open_clips`).
        noise: noises.
        out: the folder.
        hold: which speech is held out, COLUMN=VALUE or folder=NAME; a fifth if not given.
        hold_noise: which noise is held out.
        rate: to work at [Hz].
        steps: of training.
        seed: of everything random.
        device: cpu or cuda.
        tell: called with lines worth printing.
        counting: gives a context with a callback (done, in all), by what is counted.

    Returns:
        What is in scores.json.

    Raises:
        ValueError: the data cannot be used.
        Unwritable: there can be no such folder.
        Diverged: the loss is not finite.
    """
    with explained(out):  # what cannot be kept need not be learned
        out.mkdir(parents=True, exist_ok=True)
    with counting("Reading speech") as progress:
        train, held = open_clips(speech, rate=rate, hold=hold, progress=progress)
    with counting("Reading noise") as progress:
        noises, held_noises = open_clips(noise, rate=rate, hold=hold_noise, progress=progress)
    for clips in (train, noises):
        for name, reason in list(clips.skipped.items())[:5]:
            tell(f"Left out: {name}: {reason}")
    tell(
        f"Training on {len(train)} clips with {len(noises)} noises; held out are {len(held)} and "
        f"{len(held_noises)}."
    )
    with counting("Training") as progress:
        network = train_denoiser(
            train.sounds, noises.sounds, rate=rate, steps=steps, seed=seed, device=device,
            progress=progress,
        )  # fmt: skip
    save_restorer(network, out)
    with counting("Testing") as progress:
        scores = score_denoiser(network, held, held_noises, seed=seed, progress=progress)
    scores |= {
        "speech": str(speech)[:200], "noise": str(noise)[:200], "hold": hold,
        "hold_noise": hold_noise, "steps": steps, "seed": seed,
    }  # fmt: skip
    write_atomically(out / "scores.json", json.dumps(scores, indent=1).encode())
    clean, added = held_mixture(held, held_noises, 0, 0, seed)
    ways = restored(network, clean + added, added)
    draw_spectrograms(network, out / "spectrograms.png", {
        "noisy, 0 dB": ways["noisy"], "Wiener": ways["Wiener"], "erg": ways["erg"], "clean": clean,
    })  # fmt: skip
    for name, sound in (("noisy", clean + added), ("denoised", ways["erg"]), ("clean", clean)):
        write_wav(out / f"{name}.wav", sound, rate)
    return scores
