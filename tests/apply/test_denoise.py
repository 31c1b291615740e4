"""Mixtures, training, and what it makes of sounds it has not heard."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from erg.apply import denoise
from erg.apply.denoise import (
    draw_spectrograms,
    held_mixture,
    learn_to_denoise,
    mixtures,
    restored,
    score_denoiser,
    train_denoiser,
    varied,
)  # fmt: skip
from erg.apply.denoiser import Denoiser
from erg.apply.restorer import seeded
from erg.data import audio
from erg.data.audio import Clips, open_clips, read_wav, write_wav
from erg.evaluate.audio import si_sdr


def voice(seed: int, seconds: float = 0.4, rate: int = 8000) -> np.ndarray:
    """A few harmonics of a gliding tone that rise and fall."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = random.uniform(90, 250) * (1 + 0.3 * np.sin(2 * np.pi * random.uniform(1, 3) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = sum(random.uniform(0.2, 1) * np.sin(k * phase) for k in range(1, 8))
    return (0.1 * sound * np.hanning(len(t))).astype(np.float32)


def hiss(seed: int, seconds: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    white = random.normal(size=round(seconds * 8000))
    return np.convolve(white, random.normal(size=4), mode="same").astype(np.float32)


SPEECH = [voice(seed) for seed in range(40)]
NOISE = [hiss(seed) for seed in range(10)]


@pytest.fixture
def network() -> Denoiser:
    seeded(0)
    return Denoiser(width=16, blocks=4).eval()


def test_mixtures_are_a_function_of_seed_and_step() -> None:
    def draw(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return mixtures(SPEECH, NOISE, seed=seed, step=step, batch=40, length=4800)

    noisy, clean = draw(0, 5)
    assert all(torch.equal(a, b) for a, b in zip((noisy, clean), draw(0, 5), strict=True))
    assert not torch.equal(clean, draw(1, 5)[1])
    assert not torch.equal(clean, draw(0, 6)[1])
    ratio = 10 * (clean.square().sum(1) / (noisy - clean).square().sum(1)).log10()
    assert -5.01 < ratio.min() < -2
    assert 12 < ratio.max() < 15.01


def test_varied_moves_the_pitch_and_filters() -> None:
    sound = np.sin(2 * np.pi * 0.05 * np.arange(4000)).astype(np.float32)
    for number, speed in ((0.0, 3 / 4), (0.5, 1.0), (1.0, 4 / 3)):
        played = varied(sound, [number, 0.5, 0.5, 0.5, 0.5])
        assert len(played) == pytest.approx(4000 / speed, abs=2)
        peak = np.abs(np.fft.rfft(played * np.hanning(len(played)))).argmax() / len(played)
        assert peak == pytest.approx(0.05 * speed, abs=1e-3)
    taps = [0.9, 0.1, 0.6, 0.3]
    wanted = np.convolve(sound[:-1], [0.32, -0.32, 1, 0.08, -0.16], mode="same")
    assert varied(sound, [0.5, *taps]) == pytest.approx(wanted, abs=1e-5)


def test_the_baselines_help_and_all_ways_keep_the_length(network: Denoiser) -> None:
    speech, noise = Clips(["a"], [SPEECH[0]]), Clips(["b"], [NOISE[0]])
    clean, added = held_mixture(speech, noise, 0, 5.0, 0)
    ways = restored(network, clean + added, added)
    assert list(ways) == list(denoise.WAYS)
    assert {len(sound) for sound in ways.values()} == {len(clean)}
    assert si_sdr(clean, ways["noisy"]) == pytest.approx(5, abs=0.5)
    for way in denoise.WAYS[1:5]:
        assert si_sdr(clean, ways[way]) > 6


def test_training_learns_and_repeats_itself() -> None:
    """Made-up voices in hiss: 4 dB gained on others not heard; twice the same weights."""
    seen: list[int] = []
    trained = train_denoiser(SPEECH, NOISE, steps=40, seed=1, progress=lambda n, of: seen.append(n))
    assert seen == list(range(1, 41))
    first, second = (train_denoiser(SPEECH, NOISE, steps=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    held = Clips(list("abcd"), [voice(seed) for seed in range(100, 104)])
    noises = Clips(list("ef"), [hiss(seed) for seed in range(100, 102)])
    scores = score_denoiser(trained, held, noises, ratios=(0,))
    found = scores["ratios"]["0"]["si_sdr"]
    assert scores["clips"] == 4
    assert found["mean"]["noisy"] == pytest.approx(0, abs=0.3)
    gain = found["gain"]["erg"]
    assert gain["value"] == pytest.approx(found["mean"]["erg"] - found["mean"]["noisy"])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] > 4


def test_the_picture_shows_a_tone_where_it_is(network: Denoiser, tmp_path: Path) -> None:
    t = np.arange(8000)
    tone = np.sin(2 * np.pi * t / 8).astype(np.float32)  # 1000 Hz, a quarter up
    tone[4000:] = 0
    picture = denoise.spectrogram(network, tone, loudest=64).sum(axis=2, dtype=int)
    assert picture.shape == (200, 300)
    brightest = picture[:, 50].argmax()
    assert 140 < brightest < 160
    assert picture[brightest, 50] > 500
    assert picture[:, 250].max() == picture.min() == 4
    draw_spectrograms(network, tmp_path / "a.png", {"before": tone, "after": 0 * tone})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_holds_all_there_is_to_see_and_hear(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(denoise, "BATCH", 2)
    for kind, sounds in (("speech", SPEECH[:10]), ("noise", NOISE[:5])):
        for i, sound in enumerate(sounds):
            place = tmp_path / kind / str(i % 5)
            place.mkdir(parents=True, exist_ok=True)
            write_wav(place / f"{i}.wav", sound / 8, 8000)
    told: list[str] = []
    scores = learn_to_denoise(
        tmp_path / "speech", tmp_path / "noise", tmp_path / "out", hold="folder=3", steps=2,
        tell=told.append,
    )  # fmt: skip
    assert "Training on 8 clips with 4 noises; held out are 2 and 1." in told
    out = tmp_path / "out"
    assert json.loads((out / "scores.json").read_text()) == json.loads(json.dumps(scores))
    names = {"config.json", "model.safetensors", "scores.json", "spectrograms.png"}
    assert {p.name for p in out.iterdir()} == names | {"noisy.wav", "denoised.wav", "clean.wav"}
    clean, _ = read_wav(out / "clean.wav")
    assert clean == pytest.approx(read_wav(tmp_path / "speech/3/3.wav")[0], abs=1e-4)


def test_the_shortest_clip_has_a_ratio_at_every_rate(network: Denoiser) -> None:
    """It is as long as a frame at least, which is a segment of the segmental ratio."""
    for rate in range(1000, 48001, 7):
        assert 4 * round(0.008 * rate) <= audio.SHORTEST * rate
    held = Clips(["a"], [voice(0, audio.SHORTEST)])
    found = score_denoiser(network, held, Clips(["b"], NOISE[:1]), ratios=(0,))
    assert found["clips"] == 1


@pytest.mark.slow
def test_a_speaker_and_noises_not_heard_gain_three_decibels(shared_data: Path) -> None:
    speech, held = open_clips(
        shared_data / "fsdd_speech8k.parquet", rate=8000, hold="speaker=george"
    )
    noise, others = open_clips(shared_data / "esc10_noise8k.parquet", rate=8000, hold="fold=5")
    network = train_denoiser(speech.sounds, noise.sounds, steps=300)
    found = score_denoiser(network, held, others, ratios=(0,), clips=100)["ratios"]["0"]
    assert found["si_sdr"]["gain"]["erg"]["low"] > 3
