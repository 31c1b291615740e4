"""Ratios and gains against loops, closed forms and what they must do to known sounds."""

import math

import numpy as np
import pytest

from erg.evaluate.audio import quietest, segmental_snr, si_sdr, spectral_subtraction, wiener


def pair(seed: int = 0, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    clean = random.normal(size=n)
    return clean, 0.7 * clean + 0.4 * random.normal(size=n)


def test_si_sdr_is_a_function_of_the_angle() -> None:
    """||a s||^2 / ||a s - e||^2 = cot^2 of the angle between s and e."""
    clean, estimate = pair()
    cos = clean @ estimate / np.linalg.norm(clean) / np.linalg.norm(estimate)
    wanted = 10 * math.log10(cos**2 / (1 - cos**2))
    assert si_sdr(clean, estimate) == pytest.approx(wanted, abs=1e-9)
    assert si_sdr(clean, -3 * estimate) == pytest.approx(wanted, abs=1e-9)
    assert si_sdr(100 * clean, estimate) == pytest.approx(wanted, abs=1e-9)


def test_si_sdr_of_orthogonal_noise_is_the_signal_to_noise_ratio() -> None:
    t = np.arange(400) * 2 * np.pi / 400
    clean, noise = np.sin(5 * t), np.cos(9 * t)
    assert si_sdr(clean, clean + 0.1 * noise) == pytest.approx(20, abs=1e-9)
    assert si_sdr(clean, clean) == math.inf
    assert si_sdr(clean, noise) < -200


def test_segmental_snr_is_that_of_a_loop() -> None:
    clean, estimate = pair()
    clean[64:96] = 0  # silent: does not count
    estimate[128:160] = clean[128:160]  # perfect: counts 35
    estimate[192:224] += 100  # hopeless: counts -10
    ratios = []
    for start in range(0, 480, 32):
        s, e = clean[start : start + 32], estimate[start : start + 32]
        signal, rest = sum(v * v for v in s), sum((v - w) ** 2 for v, w in zip(s, e, strict=True))
        if signal > 0:
            ratio = 10 * math.log10(signal / rest) if rest else math.inf
            ratios.append(min(35.0, max(-10.0, ratio)))
    assert len(ratios) == 14
    assert {-10.0, 35.0} <= set(ratios)
    found = segmental_snr(clean, estimate, segment=32)
    assert found == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)


def test_what_has_no_ratio_is_refused() -> None:
    clean, _ = pair()
    with pytest.raises(ValueError, match="silent"):
        si_sdr(np.zeros(5), np.ones(5))
    with pytest.raises(ValueError, match="500 samples and an estimate of 499"):
        segmental_snr(clean, clean[:-1], segment=10)
    with pytest.raises(ValueError, match="no segment of 501"):
        segmental_snr(clean, clean, segment=501)


def spectra() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.exponential(size=(6, 9)) * 3, random.uniform(0.2, 2, size=6)


def test_the_quietest_frames_are_those_of_a_loop() -> None:
    power, _ = spectra()
    loud = sorted((sum(power[:, n]), n) for n in range(9))
    wanted = [(power[f, loud[0][1]] + power[f, loud[1][1]]) / 2 for f in range(6)]
    assert quietest(power, share=0.25) == pytest.approx(wanted)
    assert quietest(power, share=0.01) == pytest.approx(power[:, loud[0][1]])


def test_spectral_subtraction_is_that_of_a_loop() -> None:
    power, noise = spectra()
    power[2, 3] = 0
    gain = spectral_subtraction(power, noise, over=1.5, floor=0.02)
    for f in range(6):
        for n in range(9):
            p = power[f, n]
            left = max(p - 1.5 * noise[f], 0.02 * noise[f])
            wanted = 1.0 if left >= p else math.sqrt(left / p)
            assert gain[f, n] == pytest.approx(wanted, abs=1e-12)
    # Without noise nothing is taken away.
    assert spectral_subtraction(power, np.zeros(6)) == pytest.approx(1.0)


def test_wiener_is_that_of_a_loop() -> None:
    power, noise = spectra()
    gain = wiener(power, noise, smoothing=0.9, floor=0.01)
    for f in range(6):
        before = max(power[f, 0] / noise[f] - 1, 0.0)
        for n in range(9):
            gamma = power[f, n] / noise[f]
            xi = max(0.9 * before + 0.1 * max(gamma - 1, 0), 0.01)
            assert gain[f, n] == pytest.approx(xi / (xi + 1), abs=1e-12)
            before = (xi / (xi + 1)) ** 2 * gamma


def test_wiener_of_a_steady_sound_is_the_textbook_filter() -> None:
    """Where P stays at S + N and all weight is on the present, G = S / (S + N)."""
    signal, noise = np.array([4.0, 1.0, 0.25]), np.array([1.0, 1.0, 0.5])
    power = np.tile((signal + noise)[:, None], (1, 20))
    gain = wiener(power, noise, smoothing=0.0, floor=1e-6)
    assert gain == pytest.approx(np.tile((signal / (signal + noise))[:, None], (1, 20)))
    assert wiener(power, np.zeros(3)) == pytest.approx(1.0)


@pytest.mark.parametrize("gain", [spectral_subtraction, wiener])
def test_known_white_noise_becomes_less(gain) -> None:
    """A tone in white noise: the noise bins lose most of their power, the tone keeps its own."""
    random = np.random.default_rng(2)
    noise = random.exponential(size=(40, 200))
    power = noise.copy()
    power[7] += 200
    kept = gain(power, np.ones(40)) ** 2 * power
    assert kept[7].mean() > 0.95 * power[7].mean()
    others = np.delete(np.arange(40), 7)
    assert kept[others].mean() < 0.25 * power[others].mean()


def test_silence_has_nothing_of_the_clean_sound() -> None:
    clean, _ = pair()
    assert si_sdr(clean, np.zeros(500)) == -math.inf
