"""The compiled part of view making: draw the parameters of views, render them.

Rules of this file, each learned from something that broke: no parallel loops inside (the threading
layers of numba abort the process when called from several threads or after a fork), no fastmath
(other bits on other processors), exactly one signature per function, all compiled functions in
this one file (a cached caller would keep an old callee of another file), nothing compiled at
import. For the same reason the hash and the purposes of `random.py` are repeated here; a test
compares them. exp, log, sine and cosine are ours: those of the C libraries differ in the last bit.

A view is rendered in planes [3, side * side] of float32 that are transposed: pixel (y, x) of the
crop stands at x * side + y. So both resize passes run along contiguous memory; the last step, which
interleaves the channels anyway, turns the image back, together with flip and quarter turns. Colours
and blur do not care: each works alike on both axes. The same last step chooses the form of the
numbers that leave: float32, bfloat16 (numba has none: its bits, in uint16) or uint8.
"""

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

TOP, LEFT, HEIGHT, WIDTH, FLIP, TURNS = range(6)
JITTER, FIRST, SECOND, THIRD, FOURTH = range(6, 11)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(11, 15)
GREY, BLUR, SIGMA, SOLARISE = range(15, 19)
CUT, CUT_TOP, CUT_LEFT, CUT_HEIGHT, CUT_WIDTH = range(19, 24)
BACKGROUND, COLUMNS = range(24, 26)
"""Columns of the parameters, float64 [b COLUMNS]: box [source pixels]; flip 0 or 1; quarter turns
counter-clockwise 0 to 3; jitter 0 or 1; the four steps in order (0 brightness, 1 contrast, 2
saturation, 3 hue); three factors, and the hue's shift [turns of the colour circle]; grey 0 or 1;
blur 0 or 1 and its standard deviation [pixels of the view]; solarise 0 or 1; cut-out 0 or 1, where
it stands [share of the room that its size leaves] and its size [share of the view's side];
background 0 or 1, whether it is removed where there is a mask."""

# The purposes of random.Purpose that are used here.
_CROP, _FLIP, _TURNS, _JITTER, _GREY, _BLUR, _SOLARISE, _NOISE, _ZEROED = range(1, 10)
_CUTOUT, _TILES, _BACKGROUND = 13, 14, 16

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31, _32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))
_LOW = np.uint64(0xFFFFFFFF)
_LN2_HIGH = 0.693147180369123816490  # ln 2 in two parts: the first has trailing zeros, so that
_LN2_LOW = 1.90821492927058770002e-10  # k * high is exact
_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX, _HALF = (np.float32(v) for v in (0, 1, 2, 3, 4, 6, 0.5))
_GREY_R, _GREY_G, _GREY_B = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_FIXED = np.float32(2.0**20)  # one in fixed point
_BYTE = np.float32(255)
_UNDER_HALF, _16, _LOWEST = np.uint32(0x7FFF), np.uint32(16), np.uint32(1)  # of 16 bits

_KERNELS: list[tuple[Any, str]] = []
_LOCK = threading.Lock()
_READY = threading.Event()


def _kernel(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Mark a function to be compiled with this one signature, by `compile_kernels`."""

    def mark(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
        _KERNELS.append((dispatcher, signature))
        return dispatcher

    return mark


def compile_kernels(progress: Callable[[int, int], None] | None = None) -> None:
    """Compile all kernels, or load them from numba's cache; once per process.

    Called by everything that uses them. Where no folder for the cache can be written they are
    compiled anew in each process.

    Args:
        progress: called with (kernels ready, kernels in all) after each that was in no cache.
    """
    if _READY.is_set():
        return
    with _LOCK:
        for ready, (dispatcher, signature) in enumerate(_KERNELS, 1):
            if dispatcher.signatures:
                continue
            try:
                dispatcher.enable_caching()
            except RuntimeError as error:
                if "cannot cache" not in str(error):
                    raise
            dispatcher.compile(signature)
            dispatcher.disable_compile()
            if progress is not None and not dispatcher.stats.cache_hits:
                progress(ready, len(_KERNELS))
        _READY.set()


def kept_in() -> str | None:
    """The folder of the cache, once kernels are compiled; None where no folder can be written."""
    return _KERNELS[0][0].stats.cache_path


# Numbers


@_kernel("uint64(uint64, uint64)")
def chain(h, word):
    """The hash of random.py, one word further."""
    h = (h ^ word) + _GOLDEN
    h = (h ^ (h >> _30)) * _MIX_1
    h = (h ^ (h >> _27)) * _MIX_2
    return h ^ (h >> _31)


@_kernel("uint64(uint64, uint64, uint64, uint64)")
def key(seed, epoch, index, view):
    """Hash of what all random numbers of a view have in common."""
    h = chain(np.uint64(0), seed)  # 0 ^ seed: the start of the chain
    return chain(chain(chain(h, epoch), index), view)


@_kernel("float64(uint64)")
def _unit(h):
    return np.float64(np.int64(h >> _11)) * 2.0**-53


@_kernel("float64(uint64, int64, int64)")
def _uniform(h, purpose, number):
    return _unit(chain(chain(h, np.uint64(purpose)), np.uint64(number)))


@_kernel("float64(float64)")
def exp(x):
    """e^x for |x| < 700, to 1e-15 of its value."""
    k = np.floor(x / _LN2_HIGH + 0.5)
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    total = 1.0
    for n in range(14, 0, -1):  # Taylor, |r| < 0.35
        total = 1.0 + total * r * (1.0 / n)
    return total * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@_kernel("float64(float64)")
def log(x):
    """Natural logarithm of a positive normal number, to 1e-15."""
    word = np.float64(x).view(np.int64)
    exponent = (word >> 52) - 1023
    m = np.int64((word & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)  # in [1, 2)
    large = m > 1.4142135623730951
    m = m * 0.5 if large else m
    k = np.float64(exponent + 1 if large else exponent)
    s = (m - 1.0) / (m + 1.0)
    s2 = s * s
    total = 1.0 / 21.0
    for n in range(19, 0, -2):  # 2 atanh(s), |s| < 0.172
        total = total * s2 + 1.0 / n
    return k * _LN2_HIGH + (k * _LN2_LOW + 2.0 * s * total)


@_kernel("UniTuple(float64, 2)(float64)")
def circle(u):
    """Cosine and sine of u turns, u in [0, 1), to 1e-15."""
    a = (u - 0.5) * 1.5707963267948966  # a quarter of the angle from -pi to pi
    a2 = a * a
    s, c = 1.0, 1.0
    for n in range(8, 0, -1):  # Taylor, |a| < pi / 4
        s = 1.0 - s * a2 * (1.0 / (2 * n * (2 * n + 1)))
        c = 1.0 - c * a2 * (1.0 / (2 * n * (2 * n - 1)))
    s = s * a
    s, c = 2.0 * s * c, 1.0 - 2.0 * s * s
    s, c = 2.0 * s * c, 1.0 - 2.0 * s * s
    return -c, -s  # half a turn further


# Draw


@_kernel("void(float64[::1], int64, int64, uint64, float64[::1])")
def _draw_crop(settings, height, width, h, row):
    """The box, as torchvision's RandomResizedCrop draws it."""
    low, high, ratio_low, ratio_high = settings[1], settings[2], settings[3], settings[4]
    log_low, log_high = log(ratio_low), log(ratio_high)
    for attempt in range(10):
        area = height * width * (low + (high - low) * _uniform(h, _CROP, 4 * attempt))
        ratio = exp(log_low + (log_high - log_low) * _uniform(h, _CROP, 4 * attempt + 1))
        box_h, box_w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
        if 0 < box_w <= width and 0 < box_h <= height:
            row[TOP] = np.floor(_uniform(h, _CROP, 4 * attempt + 2) * (height - box_h + 1))
            row[LEFT] = np.floor(_uniform(h, _CROP, 4 * attempt + 3) * (width - box_w + 1))
            row[HEIGHT], row[WIDTH] = box_h, box_w
            return
    box_h, box_w = np.float64(height), np.float64(width)
    if width / height < ratio_low:
        box_h = max(np.rint(width / ratio_low), 1.0)
    elif width / height > ratio_high:
        box_w = max(np.rint(height * ratio_high), 1.0)
    row[TOP], row[LEFT] = np.floor((height - box_h) / 2), np.floor((width - box_w) / 2)
    row[HEIGHT], row[WIDTH] = box_h, box_w


@_kernel("float64(float64, uint64, int64)")
def _factor(strength, h, number):
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * _uniform(h, _JITTER, number)


@_kernel("void(float64[::1], uint64, float64[::1])")
def _draw_colour(settings, h, row):
    row[JITTER] = _uniform(h, _JITTER, 0) < settings[7]
    for i in range(4):
        row[FIRST + i] = i
    for i in range(3):  # Fisher-Yates
        j = i + np.int64(_uniform(h, _JITTER, 1 + i) * (4 - i))
        row[FIRST + i], row[FIRST + j] = row[FIRST + j], row[FIRST + i]
    row[BRIGHTNESS] = _factor(settings[8], h, 4)
    row[CONTRAST] = _factor(settings[9], h, 5)
    row[SATURATION] = _factor(settings[10], h, 6)
    row[HUE] = settings[11] * (2.0 * _uniform(h, _JITTER, 7) - 1.0)
    row[GREY] = _uniform(h, _GREY, 0) < settings[12]
    row[BLUR] = _uniform(h, _BLUR, 0) < settings[13]
    row[SIGMA] = settings[14] + (settings[15] - settings[14]) * _uniform(h, _BLUR, 1)
    row[SOLARISE] = _uniform(h, _SOLARISE, 0) < settings[16]


@_kernel("void(float64[::1], uint64, float64[::1])")
def _draw_cut(settings, h, row):
    """A rectangle that fits into the view; after ten that do not, none, as torchvision has it."""
    row[CUT : CUT_WIDTH + 1] = 0.0
    if not _uniform(h, _CUTOUT, 0) < settings[17]:
        return
    low, high = settings[18], settings[19]
    log_low, log_high = log(settings[20]), log(settings[21])
    for attempt in range(10):
        area = low + (high - low) * _uniform(h, _CUTOUT, 4 * attempt + 1)
        ratio = exp(log_low + (log_high - log_low) * _uniform(h, _CUTOUT, 4 * attempt + 2))
        cut_h, cut_w = np.sqrt(area / ratio), np.sqrt(area * ratio)
        if cut_h < 1.0 and cut_w < 1.0:
            row[CUT], row[CUT_HEIGHT], row[CUT_WIDTH] = 1.0, cut_h, cut_w
            row[CUT_TOP] = _uniform(h, _CUTOUT, 4 * attempt + 3)
            row[CUT_LEFT] = _uniform(h, _CUTOUT, 4 * attempt + 4)
            return


@_kernel(
    "void(float64[::1], int64[::1], int64[::1], uint64, uint64, int64[::1], uint64, uint64, "
    "float64[:, ::1])"
)
def draw_batch(settings, height, width, seed, epoch, index, view, geometry, out):
    """Parameters of every item; settings as `render.settings` orders them."""
    for i in range(len(index)):
        row = out[i]
        shared = key(seed, epoch, np.uint64(index[i]), geometry)
        own = key(seed, epoch, np.uint64(index[i]), view)
        if settings[0] > 0:
            _draw_crop(settings, height[i], width[i], shared, row)
        else:
            box = min(height[i], width[i])
            row[TOP], row[LEFT] = (height[i] - box) // 2, (width[i] - box) // 2
            row[HEIGHT], row[WIDTH] = box, box
        row[FLIP] = _uniform(shared, _FLIP, 0) < settings[5]
        turns = settings[6]
        row[TURNS] = turns if turns >= 0 else np.floor(4.0 * _uniform(own, _TURNS, 0))
        _draw_colour(settings, shared, row)
        _draw_cut(settings, own, row)
        row[BACKGROUND] = _uniform(shared, _BACKGROUND, 0) < settings[22]


# Background


@_kernel(
    "void(Array(uint8, 1, 'C', readonly=True), int64, Array(uint8, 1, 'C', readonly=True), int64, "
    "int64, int64, int64, float32[::1], uint8[::1])"
)
def _remove_background(flat, begin, masks, other, pitch, height, width, mean, front):
    """Copy a box of a source image: the mean colour where the mask is dark, mixed where it is
    grey, rounded to bytes."""
    for c in range(3):
        colour = np.int64(mean[c] * _BYTE + _HALF)
        for y in range(height):
            for x in range(width):
                j = y * pitch + 3 * x + c
                kept = np.int64(masks[other + j])
                mixed = kept * np.int64(flat[begin + j]) + (255 - kept) * colour
                front[3 * (y * width + x) + c] = (mixed + 127) // 255


# Resize


@_kernel("void(int64, int64, float64, int64[::1], int64[::1], float32[:, ::1])")
def _taps(source, side, scale, start, count, weight):
    """Triangle filter of an antialiased bilinear resize: where each target pixel reads, and how
    much of it. Counts are made even by a tap of weight 0, since the passes below take two."""
    ratio = source / side
    support = max(ratio, 1.0)
    for i in range(side):
        centre = ratio * (i + 0.5)
        first = max(np.int64(centre - support + 0.5), 0)
        n = min(np.int64(centre + support + 0.5), source) - first
        total = 0.0
        for k in range(n):
            total += max(1.0 - abs(first + k - centre + 0.5) / support, 0.0)
        for k in range(n):
            w = max(1.0 - abs(first + k - centre + 0.5) / support, 0.0)
            weight[i, k] = w / total * scale
        if n % 2:
            weight[i, n] = 0
        start[i], count[i] = first, n


# The inner loops take whole arrays and places in them: slices cost more than the work at 32 px,
# and unsigned indices spare numba's check for negative ones, without which LLVM can vectorise.


@_kernel(
    "void(Array(uint8, 1, 'C', readonly=True), uint64, uint64, float32, float32, int64, "
    "float32[:, ::1], int64)"
)
def _two_rows(flat, a, b, weight_a, weight_b, length, lines, u):
    for i in range(length):
        j = np.uint64(i)
        lines[u, i] = weight_a * np.float32(flat[a + j]) + weight_b * np.float32(flat[b + j])


@_kernel(
    "void(Array(uint8, 1, 'C', readonly=True), uint64, uint64, float32, float32, int64, "
    "float32[:, ::1], int64)"
)
def _add_two_rows(flat, a, b, weight_a, weight_b, length, lines, u):
    for i in range(length):
        j = np.uint64(i)
        lines[u, i] += weight_a * np.float32(flat[a + j]) + weight_b * np.float32(flat[b + j])


@_kernel(
    "void(Array(uint8, 1, 'C', readonly=True), int64, int64, int64, int64[::1], int64[::1], "
    "float32[:, ::1], float32[:, ::1], float32[:, ::1])"
)
def _resize_rows(flat, begin, pitch, length, start, count, weight, lines, tall):
    """Source rows to target rows, stored transposed: tall [length, side rounded up to 4]."""
    side = len(start)
    for y in range(0, side, 4):  # four lines at a time: transposing is 2.5 times as fast
        for u in range(min(4, side - y)):
            n = count[y + u]
            first = begin + start[y + u] * pitch
            last = first + (n - 1) * pitch
            for k in range(0, n, 2):
                a = first + k * pitch
                b = np.uint64(min(a + pitch, last))
                wa, wb = weight[y + u, k], weight[y + u, k + 1]
                if k == 0:
                    _two_rows(flat, np.uint64(a), b, wa, wb, length, lines, u)
                else:
                    _add_two_rows(flat, np.uint64(a), b, wa, wb, length, lines, u)
        for j in range(length):
            for u in range(4):
                tall[j, y + u] = lines[u, j]


@_kernel("void(float32[:, ::1], int64, int64, float32, float32, float32[:, :, ::1], int64, int64)")
def _two_columns(tall, a, b, weight_a, weight_b, planes, c, x):
    for i in range(planes.shape[2]):
        planes[c, x, i] = weight_a * tall[a, i] + weight_b * tall[b, i]


@_kernel("void(float32[:, ::1], int64, int64, float32, float32, float32[:, :, ::1], int64, int64)")
def _add_two_columns(tall, a, b, weight_a, weight_b, planes, c, x):
    for i in range(planes.shape[2]):
        planes[c, x, i] += weight_a * tall[a, i] + weight_b * tall[b, i]


@_kernel("void(float32[:, ::1], int64[::1], int64[::1], float32[:, ::1], float32[:, :, ::1])")
def _resize_columns(tall, start, count, weight, planes):
    for c in range(3):
        for x in range(len(start)):
            for k in range(0, count[x], 2):
                a = start[x] + k
                b = min(a + 1, start[x] + count[x] - 1)
                wa, wb = weight[x, k], weight[x, k + 1]
                if k == 0:
                    _two_columns(tall, 3 * a + c, 3 * b + c, wa, wb, planes, c, x)
                else:
                    _add_two_columns(tall, 3 * a + c, 3 * b + c, wa, wb, planes, c, x)


# Colours: the formulas of torchvision for float images, clipped to [0, 1] after each


@_kernel("void(float32[::1], float32, float32)")
def _scale_shift(values, factor, shift):
    for i in range(len(values)):
        values[i] = min(max(values[i] * factor + shift, _ZERO), _ONE)


@_kernel("float32(float32[::1], float32[::1], float32[::1])")
def _mean_grey(r, g, b):
    total = np.int64(0)  # fixed point: integer sums are exact in any order, so they vectorise
    for i in range(len(r)):
        grey = _GREY_R * r[i] + _GREY_G * g[i] + _GREY_B * b[i]
        total += np.int64(np.int32(grey * _FIXED + _HALF))
    return np.float32(total / (2.0**20 * len(r)))


@_kernel("void(float32[::1], float32[::1], float32[::1], float32)")
def _saturate(r, g, b, factor):
    rest = _ONE - factor
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        grey = rest * (_GREY_R * red + _GREY_G * green + _GREY_B * blue)
        r[i] = min(max(red * factor + grey, _ZERO), _ONE)
        g[i] = min(max(green * factor + grey, _ZERO), _ONE)
        b[i] = min(max(blue * factor + grey, _ZERO), _ONE)


@_kernel("float32(float32, float32, float32, float32)")
def _hue_channel(hue, place, high, chroma):
    """Value of the channel whose colour stands at `place` sixths; both in sixths of a turn."""
    k = hue + place
    k = k - _SIX if k >= _SIX else k
    return high - chroma * max(min(min(k, _FOUR - k), _ONE), _ZERO)


@_kernel("void(float32[::1], float32[::1], float32[::1], float32)")
def _shift_hue(r, g, b, shift):
    """Through HSV, without branches; shift in [-3, 3] sixths of a turn."""
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        high = max(max(red, green), blue)
        chroma = high - min(min(red, green), blue)
        inverse = _ONE / (chroma if chroma > _ZERO else _ONE)
        is_red, is_green = high == red, high == green
        difference = red - green
        difference = blue - red if is_green else difference
        difference = green - blue if is_red else difference
        sector = _TWO if is_green else _FOUR
        sector = _ZERO if is_red else sector
        hue = sector + difference * inverse + shift  # [-4, 8)
        hue = hue + _SIX if hue < _ZERO else hue
        hue = hue - _SIX if hue >= _SIX else hue
        r[i] = _hue_channel(hue, np.float32(5), high, chroma)
        g[i] = _hue_channel(hue, _THREE, high, chroma)
        b[i] = _hue_channel(hue, _ONE, high, chroma)


@_kernel("void(float32[::1], float64[::1])")
def _jitter(everything, row):
    n = len(everything) // 3
    r, g, b = everything[:n], everything[n : 2 * n], everything[2 * n :]
    for place in range(FIRST, FOURTH + 1):
        step = np.int64(row[place])
        value = np.float32(row[BRIGHTNESS + step])
        if step == 0 and value != _ONE:
            _scale_shift(everything, value, _ZERO)
        elif step == 1 and value != _ONE:
            _scale_shift(everything, value, (_ONE - value) * _mean_grey(r, g, b))
        elif step == 2 and value != _ONE:
            _saturate(r, g, b, value)
        elif step == 3 and value != _ZERO:
            _shift_hue(r, g, b, _SIX * value)


@_kernel("void(float32[::1], float32[::1], float32[::1])")
def _to_grey(r, g, b):
    for i in range(len(r)):
        grey = _GREY_R * r[i] + _GREY_G * g[i] + _GREY_B * b[i]
        r[i] = grey
        g[i] = grey
        b[i] = grey


@_kernel("void(float32[::1])")
def _solarise(values):
    for i in range(len(values)):
        values[i] = _ONE - values[i] if values[i] >= _HALF else values[i]


# Blur


@_kernel("int64(int64, int64)")
def _reflect(i, n):
    """Index i of a line of n pixels that is mirrored about its ends."""
    i = abs(i)
    return max(min(i, 2 * (n - 1) - i), 0)


@_kernel("int64(float64, int64, float32[::1])")
def _gauss(sigma, radius, weight):
    """Fill half a normalised Gaussian, from its centre, and zeros to the end; give the radius that
    float32 can see."""
    total, reach = 1.0, 0
    for k in range(1, radius + 1):
        t = k * k / (2.0 * sigma * sigma)
        if not t < 17.0:  # e^-17 < 2^-24
            break
        total += 2.0 * exp(-t)
        reach = k
    for k in range(reach + 1):
        weight[k] = exp(-k * k / (2.0 * sigma * sigma)) / total if k else 1.0 / total
    for k in range(reach + 1, len(weight)):
        weight[k] = 0
    return reach


# Four taps in a call, where one would spend its time on loading and storing sums; weights beyond
# the reach are 0.


@_kernel("void(float32[:, :, ::1], int64, int64, float32[::1], float32[:, ::1])")
def _slow_first(source, c, x, weight, target):
    """The centre and three pairs about it, along the slow axis."""
    side = source.shape[2]
    a1, b1 = _reflect(x - 1, side), _reflect(x + 1, side)
    a2, b2 = _reflect(x - 2, side), _reflect(x + 2, side)
    a3, b3 = _reflect(x - 3, side), _reflect(x + 3, side)
    w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
    for i in range(side):
        target[x, i] = (
            w0 * source[c, x, i]
            + w1 * (source[c, a1, i] + source[c, b1, i])
            + w2 * (source[c, a2, i] + source[c, b2, i])
            + w3 * (source[c, a3, i] + source[c, b3, i])
        )


@_kernel("void(float32[:, :, ::1], int64, int64, int64, float32[::1], float32[:, ::1])")
def _slow_more(source, c, x, k, weight, target):
    """Four pairs more, from the k-th."""
    side = source.shape[2]
    a0, b0 = _reflect(x - k, side), _reflect(x + k, side)
    a1, b1 = _reflect(x - k - 1, side), _reflect(x + k + 1, side)
    a2, b2 = _reflect(x - k - 2, side), _reflect(x + k + 2, side)
    a3, b3 = _reflect(x - k - 3, side), _reflect(x + k + 3, side)
    w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
    for i in range(side):
        target[x, i] += (
            w0 * (source[c, a0, i] + source[c, b0, i])
            + w1 * (source[c, a1, i] + source[c, b1, i])
            + w2 * (source[c, a2, i] + source[c, b2, i])
            + w3 * (source[c, a3, i] + source[c, b3, i])
        )


@_kernel("void(float32[::1], uint64, float32[::1], float32[:, :, ::1], int64, int64)")
def _fast_first(line, at, weight, target, c, x):
    """The centre and three pairs about it, along a line that begins at `at`."""
    a1, a2, a3 = at - np.uint64(1), at - np.uint64(2), at - np.uint64(3)
    b1, b2, b3 = at + np.uint64(1), at + np.uint64(2), at + np.uint64(3)
    w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
    for i in range(target.shape[2]):
        j = np.uint64(i)
        target[c, x, i] = (
            w0 * line[at + j]
            + w1 * (line[a1 + j] + line[b1 + j])
            + w2 * (line[a2 + j] + line[b2 + j])
            + w3 * (line[a3 + j] + line[b3 + j])
        )


@_kernel("void(float32[::1], uint64, int64, float32[::1], float32[:, :, ::1], int64, int64)")
def _fast_more(line, at, k, weight, target, c, x):
    """Four pairs more, from the k-th."""
    w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
    a0, b0 = at - np.uint64(k), at + np.uint64(k)
    a1, a2, a3 = a0 - np.uint64(1), a0 - np.uint64(2), a0 - np.uint64(3)
    b1, b2, b3 = b0 + np.uint64(1), b0 + np.uint64(2), b0 + np.uint64(3)
    for i in range(target.shape[2]):
        j = np.uint64(i)
        target[c, x, i] += (
            w0 * (line[a0 + j] + line[b0 + j])
            + w1 * (line[a1 + j] + line[b1 + j])
            + w2 * (line[a2 + j] + line[b2 + j])
            + w3 * (line[a3 + j] + line[b3 + j])
        )


@_kernel("void(float32[:, :, ::1], float32[:, ::1], float32[::1], int64, float32[::1])")
def _blur(planes, spare, weight, reach, line):
    """Separable blur in place: along the slow axis into `spare` [side side], then, a line at a
    time, mirrored at its ends, along the fast axis."""
    side = planes.shape[2]
    if reach == 0:
        return
    last = reach // 4 * 4 + 3  # of the taps that the calls below read
    at = np.uint64(last)
    for c in range(3):
        for x in range(side):
            _slow_first(planes, c, x, weight, spare)
            for k in range(4, reach + 1, 4):
                _slow_more(planes, c, x, k, weight, spare)
        for x in range(side):
            for i in range(side):
                line[at + np.uint64(i)] = spare[x, i]
            for k in range(1, last + 1):
                line[last - k] = spare[x, _reflect(-k, side)]
                line[last + side - 1 + k] = spare[x, _reflect(side - 1 + k, side)]
            _fast_first(line, at, weight, planes, c, x)
            for k in range(4, reach + 1, 4):
                _fast_more(line, at, k, weight, planes, c, x)


# Cut-out, noise and output


@_kernel("UniTuple(int64, 2)(float64, float64, int64)")
def _span(size, place, side):
    """First pixel and number of pixels of one edge of a cut-out, at least one."""
    n = max(np.int64(np.rint(size * side)), 1)
    return np.int64(place * (side - n + 1)), n


@_kernel("void(float32[:, :, ::1], float64[::1], float32[::1])")
def _cut(planes, row, mean):
    """Fill the rectangle, which is drawn for the turned and flipped view, in planes that are
    neither: turn it back, then flip it back."""
    side = planes.shape[2]
    top, height = _span(row[CUT_HEIGHT], row[CUT_TOP], side)
    left, width = _span(row[CUT_WIDTH], row[CUT_LEFT], side)
    for _ in range(np.int64(row[TURNS])):
        top, left = left, side - top - height
        height, width = width, height
    if row[FLIP] > 0:
        left = side - left - width
    for c in range(3):
        planes[c, left : left + width, top : top + height] = mean[c]


@_kernel("void(float32[::1], float64, uint64)")
def _add_noise(values, deviation, h):
    """Box and Muller: each hash gives two normal numbers, one for each half of an even number of
    values."""
    h = chain(h, np.uint64(_NOISE))
    half = len(values) // 2
    left, right = values[:half], values[half:]
    for i in range(half):
        word = chain(h, np.uint64(i))
        u = (np.float64(np.int64(word >> _32)) + 0.5) * 2.0**-32
        radius = deviation * np.sqrt(-2.0 * log(u))
        cosine, sine = circle(np.float64(np.int64(word & _LOW)) * 2.0**-32)
        left[i] += np.float32(radius * cosine)
        right[i] += np.float32(radius * sine)


@_kernel("void(float32[::1], float32, float64, uint64)")
def _zero_pixels(plane, mean, probability, h):
    for i in range(len(plane)):
        drawn = _unit(chain(h, np.uint64(i)))
        plane[i] = mean if drawn < probability else plane[i]


@_kernel("UniTuple(int64, 3)(int64, int64, int64)")
def _walk(flip, turns, side):
    """Turn back, flip, turn: the view's pixel (i, j) is place + i * down + j * across."""
    last = side - 1
    place, along = (last * side, -side) if flip else (0, side)  # the crop's (0, 0); to x + 1
    if turns == 1:
        return place + last * along, -along, 1
    if turns == 2:
        return place + last * along + last, -1, -along
    if turns == 3:
        return place + last, along, -1
    return place, 1, along


# The view is written in strips of columns, so that what is read stays in cache.


@_kernel("void(float32[::1], int64, int64, float32[::1], float32[::1], float32[:, :, ::1])")
def _write(everything, flip, turns, mean, std, out):
    """The view in float32, normalised."""
    side = out.shape[0]
    place, down, across = _walk(flip, turns, side)
    green, blue = np.uint64(side * side), np.uint64(2 * side * side)
    mean_r, mean_g, mean_b = mean[0], mean[1], mean[2]
    scale_r, scale_g, scale_b = _ONE / std[0], _ONE / std[1], _ONE / std[2]
    for strip in range(0, side, 32):
        for i in range(side):
            for j in range(strip, min(strip + 32, side)):
                p = np.uint64(place + i * down + j * across)
                out[i, j, 0] = (everything[p] - mean_r) * scale_r
                out[i, j, 1] = (everything[p + green] - mean_g) * scale_g
                out[i, j, 2] = (everything[p + blue] - mean_b) * scale_b


@_kernel("uint16(float32)")
def _bfloat16(value):
    """The upper half of the bits of a float32, rounded to nearest, ties to even."""
    word = np.float32(value).view(np.uint32)
    return np.uint16((word + _UNDER_HALF + ((word >> _16) & _LOWEST)) >> _16)


@_kernel("void(float32[::1], int64, int64, float32[::1], float32[::1], uint16[:, :, ::1])")
def _write_bfloat16(everything, flip, turns, mean, std, out):
    """The view in bfloat16: what `_write` writes, rounded."""
    side = out.shape[0]
    place, down, across = _walk(flip, turns, side)
    green, blue = np.uint64(side * side), np.uint64(2 * side * side)
    mean_r, mean_g, mean_b = mean[0], mean[1], mean[2]
    scale_r, scale_g, scale_b = _ONE / std[0], _ONE / std[1], _ONE / std[2]
    for strip in range(0, side, 32):
        for i in range(side):
            for j in range(strip, min(strip + 32, side)):
                p = np.uint64(place + i * down + j * across)
                out[i, j, 0] = _bfloat16((everything[p] - mean_r) * scale_r)
                out[i, j, 1] = _bfloat16((everything[p + green] - mean_g) * scale_g)
                out[i, j, 2] = _bfloat16((everything[p + blue] - mean_b) * scale_b)


@_kernel("uint8(float32)")
def _byte(value):
    return np.uint8(np.int32(min(max(value, _ZERO), _ONE) * _BYTE + _HALF))


@_kernel("void(float32[::1], int64, int64, uint8[:, :, ::1])")
def _write_bytes(everything, flip, turns, out):
    """The view in uint8, not normalised."""
    side = out.shape[0]
    place, down, across = _walk(flip, turns, side)
    green, blue = np.uint64(side * side), np.uint64(2 * side * side)
    for strip in range(0, side, 32):
        for i in range(side):
            for j in range(strip, min(strip + 32, side)):
                p = np.uint64(place + i * down + j * across)
                out[i, j, 0] = _byte(everything[p])
                out[i, j, 1] = _byte(everything[p + green])
                out[i, j, 2] = _byte(everything[p + blue])


# Tiles


@_kernel("void(float32[::1], int64, int64, int64, int64, int64, float32[::1], int64)")
def _tile(everything, side, flip, turns, top, left, tile, n):
    """Cut n x n pixels out of the turned and flipped view, into planes that are neither."""
    place, down, across = _walk(flip, turns, side)
    for c in range(3):
        for x in range(n):
            first = c * side * side + place + top * down + (left + x) * across
            for y in range(n):
                tile[(c * n + x) * n + y] = everything[first + y * down]


@_kernel("void(float32[::1], int64, float32[::1], float32[::1], uint64)")
def _drop(tile, kept, mean, spare, h):
    """Leave one channel; the two others become the mean colour with noise of a hundredth of the
    deviation of the one that stays."""
    n = len(tile) // 3
    total, squares = 0.0, 0.0
    for i in range(kept * n, (kept + 1) * n):
        value = np.float64(tile[i])
        total += value
        squares += value * value
    deviation = np.sqrt(max(squares / n - (total / n) * (total / n), 0.0))
    for i in range(2 * n):
        spare[i] = 0
    _add_noise(spare, 0.01 * deviation, h)
    for k in range(2):
        c = (kept + 1 + k) % 3
        for i in range(n):
            tile[c * n + i] = mean[c] + spare[k * n + i]


@_kernel("void(float32[:, :, ::1], float32[:, ::1], float64[::1], float32[::1], float32[::1])")
def _colours(planes, spare, row, gauss, padded):
    """Jitter, grey, blur, solarise, as far as they are on; in place."""
    n = planes.shape[1] * planes.shape[2]
    everything = planes.reshape(-1)
    if row[JITTER] > 0:
        _jitter(everything, row)
    if row[GREY] > 0:
        _to_grey(everything[:n], everything[n : 2 * n], everything[2 * n :])
    if row[BLUR] > 0:
        _blur(planes, spare, gauss, _gauss(row[SIGMA], len(gauss) - 4, gauss), padded)
    if row[SOLARISE] > 0:
        _solarise(everything)


@_kernel(
    "void(Array(uint8, 1, 'C', readonly=True), int64[::1], int64[::1], "
    "Array(uint8, 1, 'C', readonly=True), int64[::1], float64[:, ::1], uint64, uint64, "
    "int64[::1], uint64, float64, float64, float32[::1], float32[::1], int64, int64[:, :, ::1], "
    "uint8[:, :, :, :, ::1])"
)
def render_batch(
    flat, offset, width, masks, mask_offset, params, seed, epoch, index, view, noise, zeroed, mean,
    std, side, places, out,
):  # fmt: skip
    """Render every item of a slice; scratch is allocated once.

    The mask of an image is an image of its size in `masks`; its offset is -1 where there is none.
    `out` is the memory of [b 1 s s 3] as bytes, or of p tiles, [b p t t 3], that are cut out of
    views of `side` at `places` [b p 3] (as in `masks.Cut`). How many bytes a number has tells its
    form: 4 float32, 2 bfloat16, 1 uint8.
    """
    box_h, box_w, room = np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(index)):
        box_h = max(box_h, np.int64(params[i, HEIGHT]))
        box_w = max(box_w, np.int64(params[i, WIDTH]))
        if params[i, BACKGROUND] > 0 and mask_offset[i] >= 0:
            room = max(room, np.int64(3 * params[i, HEIGHT] * params[i, WIDTH]))
    weight = np.empty((side, 2 * (max(box_h, box_w) // side) + 6), np.float32)
    start, count = np.empty(side, np.int64), np.empty(side, np.int64)
    lines = np.zeros((4, 3 * box_w), np.float32)
    tall = np.empty((3 * box_w, (side + 3) // 4 * 4), np.float32)
    buffer = np.zeros(3 * side * side + side % 2, np.float32)  # even, as noise wants it
    everything = buffer[: 3 * side * side]
    planes = everything.reshape((3, side, side))
    spare, front = np.empty((side, side), np.float32), np.empty(room, np.uint8)
    radius = max(side // 10 // 2, 1)  # kernel side // 10 made odd, at least 3
    gauss, padded = np.empty(radius + 4, np.float32), np.empty(side + 2 * radius + 6, np.float32)
    n, size, cut = out.shape[2], out.shape[4] // 3, places.shape[1] > 0
    tile, dropped = np.empty(3 * n * n, np.float32), np.empty(2 * n * n, np.float32)
    for i in range(len(index)):
        row = params[i]
        box_h, box_w, pitch = np.int64(row[HEIGHT]), np.int64(row[WIDTH]), 3 * width[i]
        first = np.int64(row[TOP]) * pitch + 3 * np.int64(row[LEFT])
        begin = offset[i] + first
        _taps(box_h, side, 1.0 / 255.0, start, count, weight)
        if row[BACKGROUND] > 0 and mask_offset[i] >= 0:
            other = mask_offset[i] + first
            _remove_background(flat, begin, masks, other, pitch, box_h, box_w, mean, front)
            _resize_rows(front, 0, 3 * box_w, 3 * box_w, start, count, weight, lines, tall)
        else:
            _resize_rows(flat, begin, pitch, 3 * box_w, start, count, weight, lines, tall)
        _taps(box_w, side, 1.0, start, count, weight)
        _resize_columns(tall, start, count, weight, planes)
        _colours(planes, spare, row, gauss, padded)
        if row[CUT] > 0:
            _cut(planes, row, mean)
        h = key(seed, epoch, np.uint64(index[i]), view)
        if noise > 0:
            _add_noise(buffer, noise, h)
        if zeroed > 0:
            for c in range(3):
                plane = everything[c * side * side : (c + 1) * side * side]
                _zero_pixels(plane, mean[c], zeroed, chain(h, np.uint64(_ZEROED)))
        flip, turns = np.int64(row[FLIP]), np.int64(row[TURNS])
        for k in range(out.shape[1]):
            piece, flipped, turned = everything, flip, turns
            if cut:
                top, left, kept = places[i, k, 0], places[i, k, 1], places[i, k, 2]
                _tile(everything, side, flip, turns, top, left, tile, n)
                if kept >= 0:
                    word = chain(chain(h, np.uint64(_TILES)), np.uint64(k))
                    _drop(tile, kept, mean, dropped, word)
                piece, flipped, turned = tile, 0, 0
            if size == 4:
                _write(piece, flipped, turned, mean, std, out[i, k].view(np.float32))
            elif size == 2:
                _write_bfloat16(piece, flipped, turned, mean, std, out[i, k].view(np.uint16))
            else:
                _write_bytes(piece, flipped, turned, out[i, k])
