"""PSNR, SSIM and fillings against loops, scikit-image and images whose filling is known."""

import math

import numpy as np
import pytest
from skimage import metrics, restoration

from erg.evaluate.restoration import biharmonic_fill, median_fill, psnr, ssim


def images(seed: int = 0, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    original = random.uniform(size=(side, side + 3, 3))
    return original, (original + 0.1 * random.normal(size=original.shape)).clip(0, 1)


def test_psnr_counts_in_decibels() -> None:
    original = np.full((4, 5, 3), 0.5)
    assert psnr(original, original + 0.1) == pytest.approx(20)
    assert psnr(original, original) == math.inf
    other = original.copy()
    other[1, 2] += 0.01
    where = np.zeros((4, 5), dtype=bool)
    where[1, 2] = True
    assert psnr(original, other, where) == pytest.approx(40)
    assert psnr(original, other) == pytest.approx(40 + 10 * math.log10(20))
    with pytest.raises(ValueError, match="no pixel"):
        psnr(original, other, np.zeros((4, 5), dtype=bool))
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(original, other[:3])


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    taps = [math.exp(-(i**2) / 4.5) for i in range(-5, 6)]
    window = np.array([[a * b for b in taps] for a in taps])
    window /= window.sum()
    found = []
    for c in range(x.shape[2]):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                both = (window * (a - ma) * (b - mb)).sum()
                light = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
                found.append(light * (2 * both + 9e-4) / (va + vb + 9e-4))
    return float(np.mean(found))


def test_ssim_is_that_of_a_loop() -> None:
    original, noisy = images()
    assert ssim(original, noisy) == pytest.approx(naive_ssim(original, noisy), abs=1e-9)
    assert ssim(original, original) == pytest.approx(1)
    assert ssim(original, 1 - original) < 0
    with pytest.raises(ValueError, match="no window"):
        ssim(original[:10], noisy[:10])


def test_measures_are_those_of_scikit_image() -> None:
    original, noisy = images(1, 24)
    wanted = metrics.structural_similarity(
        original, noisy, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(original, noisy) == pytest.approx(wanted, abs=1e-9)
    wanted = metrics.peak_signal_noise_ratio(original, noisy, data_range=1)
    assert psnr(original, noisy) == pytest.approx(wanted, abs=1e-9)


def test_median_fill_is_that_of_a_loop() -> None:
    image, _ = images(2)
    hidden = np.random.default_rng(3).uniform(size=image.shape[:2]) < 0.4
    hidden[:9, :9] = True  # its middle sees nothing within two pixels
    filled = median_fill(image, hidden)
    grown = 0
    for i, j in zip(*np.nonzero(hidden), strict=True):
        radius = 2
        while True:
            near = np.s_[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            if not hidden[near].all():
                break
            radius += 1
        grown += radius > 2
        for c in range(3):
            wanted = np.median(image[..., c][near][~hidden[near]])
            assert filled[i, j, c] == pytest.approx(wanted)
    assert grown > 5
    assert np.array_equal(filled[~hidden], image[~hidden])


@pytest.mark.parametrize("fill", [median_fill, biharmonic_fill])
def test_what_is_hidden_is_not_looked_at(fill) -> None:
    image, other = images(4)
    hidden = np.zeros(image.shape[:2], dtype=bool)
    hidden[5:9, 4:10] = True
    other = np.where(hidden[..., None], other, image)
    assert not np.array_equal(other, image)
    assert np.array_equal(fill(image, hidden), fill(other, hidden))
    assert np.array_equal(fill(image, np.zeros_like(hidden)), image)
    with pytest.raises(ValueError, match="every pixel"):
        fill(image, np.ones_like(hidden))


def test_a_ramp_is_filled_as_if_nothing_were_missing() -> None:
    """A plane bends nowhere, so it is its own biharmonic filling; the median keeps its middle."""
    y, x = np.mgrid[:20, :20] / 40
    image = np.stack([x, y, (x + y) / 2], axis=-1)
    hidden = np.zeros((20, 20), dtype=bool)
    hidden[7:12, 8:13] = True
    assert biharmonic_fill(image, hidden) == pytest.approx(image, abs=1e-9)
    assert median_fill(image, hidden)[9, 10] == pytest.approx(image[9, 10], abs=0.02)


def bending(image: np.ndarray) -> float:
    """Sum of squared Laplacians, by a loop."""
    height, width, channels = image.shape
    total = 0.0
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                value = 0.0
                for y, x in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= y < height and 0 <= x < width:
                        value += image[i, j, c] - image[y, x, c]
                total += value**2
    return total


def test_biharmonic_filling_bends_least() -> None:
    """Any change of a hidden pixel, at the border too, bends more."""
    image, _ = images(5, 6)
    random = np.random.default_rng(6)
    hidden = random.uniform(size=image.shape[:2]) < 0.4
    assert hidden[0].any()
    filled = biharmonic_fill(image, hidden)
    least = bending(filled)
    for i, j in zip(*np.nonzero(hidden), strict=True):
        for change in (-0.01, 0.01):
            other = filled.copy()
            other[i, j] += change
            assert bending(other) > least


def test_biharmonic_filling_is_that_of_scikit_image_away_from_the_border() -> None:
    y, x = np.mgrid[:24, :24] / 24
    image = np.stack([np.sin(5 * x) * y, x * y, np.cos(4 * y)], axis=-1) / 4 + 0.5
    hidden = np.zeros((24, 24), dtype=bool)
    hidden[8:13, 9:15] = hidden[15:18, 6:8] = True
    wanted = restoration.inpaint_biharmonic(
        np.where(hidden[..., None], 0, image), hidden, channel_axis=-1
    )
    assert biharmonic_fill(image, hidden) == pytest.approx(wanted, abs=1e-6)
