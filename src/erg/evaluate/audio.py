"""How clean a sound is, and what classical denoising makes of it.

Letters in shapes: t samples, f frequencies, n frames.
"""

import numpy as np
from jaxtyping import Float

SEGMENT = (-10.0, 35.0)
"""Range that the ratio of a segment is cut to [dB] (Hansen & Pellom 1998)."""


def si_sdr(clean: Float[np.ndarray, " t"], estimate: Float[np.ndarray, " t"]) -> float:
    """Scale-invariant signal-to-distortion ratio [dB] (Le Roux et al. 2019, eq. 3).

    10 log10(||a s||^2 / ||a s - e||^2) with a = <e, s> / ||s||^2: the part of the estimate along
    the clean sound against the rest. Louder or softer is neither better nor worse; a silent
    estimate has nothing of the clean sound, and minus infinity.

    Args:
        clean: s.
        estimate: e.

    Raises:
        ValueError: the clean sound is silent, or the lengths differ.
    """
    s, e = _pair(clean, estimate)
    target = (e @ s) / (s @ s) * s
    rest = e - target
    if not target.any():
        return -np.inf
    with np.errstate(divide="ignore"):
        return float(10 * np.log10((target @ target) / (rest @ rest)) if rest.any() else np.inf)


def segmental_snr(
    clean: Float[np.ndarray, " t"], estimate: Float[np.ndarray, " t"], *, segment: int
) -> float:
    """Mean over segments of 10 log10(||s||^2 / ||s - e||^2), cut to [-10, 35] dB.

    Segments in which the clean sound is silent have no ratio and do not count, and neither does
    what is left at the end.

    Args:
        clean: s.
        estimate: e, at the level of s.
        segment: length of a segment [samples]; 20 to 32 ms are usual.

    Raises:
        ValueError: no segment has sound, or the lengths differ.
    """
    s, e = _pair(clean, estimate)
    count = len(s) // segment
    s, e = (x[: count * segment].reshape(count, segment) for x in (s, e))
    signal, rest = np.square(s).sum(axis=1), np.square(s - e).sum(axis=1)
    heard = signal > 0
    if not heard.any():
        raise ValueError(f"no segment of {segment} samples has sound. Give longer sounds.")
    with np.errstate(divide="ignore"):
        ratio = 10 * np.log10(signal[heard] / rest[heard])
    return float(ratio.clip(*SEGMENT).mean())


def _pair(clean: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if clean.shape != estimate.shape:
        raise ValueError(
            f"a clean sound of {len(clean)} samples and an estimate of {len(estimate)} cannot be "
            "compared. Cut them to the same length."
        )
    if not clean.any():
        raise ValueError("the clean sound is silent, so there is no ratio. Leave it out.")
    return clean.astype(np.float64), estimate.astype(np.float64)


def quietest(power: Float[np.ndarray, "f n"], *, share: float = 0.2) -> Float[np.ndarray, " f"]:
    """Mean over the quietest frames: the noise, as far as a noisy sound itself tells it.

    Args:
        power: squared magnitudes of the noisy sound.
        share: of the frames that are taken for noise alone; one at least.
    """
    count = max(1, int(share * power.shape[1]))
    return power[:, np.argsort(power.sum(axis=0), kind="stable")[:count]].mean(axis=1)


def spectral_subtraction(
    power: Float[np.ndarray, "f n"],
    noise: Float[np.ndarray, " f"],
    *,
    over: float = 2.0,
    floor: float = 0.01,
) -> Float[np.ndarray, "f n"]:
    """Gain of power spectral subtraction (Berouti et al. 1979).

    G = sqrt(max(P - over N, floor N) / P), at most 1.

    Args:
        power: P, squared magnitudes of the noisy sound.
        noise: N, mean squared magnitudes of the noise.
        over: how many times the noise is subtracted.
        floor: what is left of it at least.
    """
    level = noise[:, None]
    left = np.maximum(power - over * level, floor * level)
    return np.sqrt(np.divide(left, power, out=np.ones_like(left), where=power > left))


def wiener(
    power: Float[np.ndarray, "f n"],
    noise: Float[np.ndarray, " f"],
    *,
    smoothing: float = 0.98,
    floor: float = 10**-2.5,
) -> Float[np.ndarray, "f n"]:
    """Gain of the Wiener filter, G = xi / (1 + xi), with the decision-directed estimate of xi.

    xi_n = smoothing G_{n-1}^2 P_{n-1} / N + (1 - smoothing) max(P_n / N - 1, 0), at least `floor`
    (Ephraim & Malah 1984, eq. 51; Scalart & Filho 1996).

    Args:
        power: P, squared magnitudes of the noisy sound.
        noise: N, mean squared magnitudes of the noise.
        smoothing: weight of the frame before.
        floor: smallest xi.
    """
    ratio = power / np.maximum(noise, 1e-12 * noise.max(initial=1e-30))[:, None]
    gain = np.empty_like(ratio)
    before = np.maximum(ratio[:, 0] - 1, 0)
    for n in range(ratio.shape[1]):
        now = np.maximum(ratio[:, n] - 1, 0)
        xi = np.maximum(smoothing * before + (1 - smoothing) * now, floor)
        gain[:, n] = xi / (1 + xi)
        before = gain[:, n] ** 2 * ratio[:, n]
    return gain
