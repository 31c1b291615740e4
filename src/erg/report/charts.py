"""Charts as inline SVG, made of text alone: no script, no network, sharp in print.

Colours come from CSS custom properties of the page (classes s0 to s5), so that light and dark both
look right. All text is escaped by `Markup.format`. Charts are narrow (360 units wide) because SVG
text shrinks with its picture: on a phone they keep their size, on a desk they stand side by side.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, PLOT = 360, 190  # of the picture, and height of the plotting area with its axis labels
LEFT, RIGHT, ABOVE, BELOW = 46, 8, 8, 34  # margins of the plotting area
COLOURS = 6
BUCKETS = 150  # a line keeps two points per bucket, about one per device pixel
STRIPS = 60  # places where hovering tells the values
CHARACTER = 6.1  # mean advance of a character at 11 units; generous for narrow fonts
HUGE = 1e100  # larger magnitudes are drawn at the edge, so that spans stay finite


class Series(NamedTuple):
    """A named line: y [n] against x [n] ascending; what is not finite is not drawn."""

    name: str
    x: np.ndarray
    y: np.ndarray


class Bar(NamedTuple):
    """A named value with its interval, all in [0, 1]."""

    name: str
    value: float
    low: float
    high: float


class _Frame(NamedTuple):
    """The plotting area: ranges of the axes and where it begins."""

    x: tuple[float, float]
    y: tuple[float, float]
    top: float

    @property
    def bottom(self) -> float:
        return self.top + PLOT - ABOVE - BELOW

    def across(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.x
        share = (np.asarray(values, float) - low) / (high - low)
        return np.asarray(LEFT + share * (WIDTH - LEFT - RIGHT))

    def up(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self.y
        share = (np.clip(np.asarray(values, float), low, high) - low) / (high - low)
        return np.asarray(self.bottom - share * (self.bottom - self.top))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], at most about `count`, a step of 1, 2 or 5 times 10^k apart."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A tick as short text: 0.25, 1.5k, 2e-05."""
    if abs(value) < step / 1e6:
        return "0"
    if step >= 1e9 or step < 1e-4:
        return f"{value:.3g}"
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and step >= unit / 10:
            return f"{value / unit:g}{letter}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def number(value: float) -> str:
    """A value as text with four digits that matter."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def percent(share: float, digits: int | None = None) -> str:
    """A share as per cent, with as many digits as it has or as are asked for."""
    text = f"{100 * share:g}" if digits is None else f"{100 * share:.{digits}f}"
    return f"{text}\u00a0%"


def thin(x: np.ndarray, y: np.ndarray, buckets: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """A long line as the smallest and the largest value of each bucket, in their order.

    Unlike every n-th point this keeps every spike.
    """
    if len(x) <= 2 * buckets:
        return x, y
    edges = np.linspace(0, len(x), buckets + 1).astype(int)
    kept: list[int] = []
    for start, stop in pairwise(edges):
        part = y[start:stop]
        kept += sorted({start + int(part.argmin()), start + int(part.argmax())})
    return x[kept], y[kept]


def smoothed(y: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean [n]; near the ends over the part of the window that is there."""
    weight = np.ones(window)
    return np.convolve(y, weight, "same") / np.convolve(np.ones(len(y)), weight, "same")


def lines(
    series: Sequence[Series],
    *,
    label: str,
    smooth: bool = False,
    reference: tuple[str, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """A line chart over optimiser steps.

    Args:
        series: the lines.
        label: what the chart shows, for those who cannot see it.
        smooth: draw long lines faintly, and a moving mean over them.
        reference: name and value of a dashed level.
        marks: steps to mark with a vertical line, with the reason.
    """
    drawn = [_finite(s) for s in series]
    drawn = [s for s in drawn if len(s.x)]
    if not drawn:
        return Markup("")
    names = [s.name for s in drawn] if len(drawn) > 1 else []
    legend, top = _legend(names + ([reference[0]] if reference else []), bool(reference))
    marks = [*marks, *_losses(series)]
    level = [] if reference is None else [reference[1]]
    frame = _Frame(_range_x(drawn, marks), _range_y(drawn, level), top)
    parts = [legend, _axes(frame, "step")]
    for step, why in marks:
        line = _tag("path", class_="mark", d=_upright(frame, step))
        parts.append(_tag("g", _title(f"step {step:,.0f}: {why}") + line))
    if reference is not None:
        y = float(frame.up(reference[1]))
        parts.append(_tag("path", class_="level", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"))
    parts += [_line(s, frame, f"s{i % COLOURS}", smooth) for i, s in enumerate(drawn)]
    parts.append(_strips(drawn, frame))
    return _picture(label, _last_values(drawn), parts, frame.bottom + BELOW)


def histograms(series: Sequence[tuple[str, np.ndarray]], *, label: str, bins: int = 32) -> Markup:
    """Overlaid histograms, each as a share of its own values, on common bins.

    Values beyond the half per cent at either end are counted in the outermost bins.
    """
    finite = [(name, values[np.isfinite(values)]) for name, values in series]
    finite = [(name, np.clip(values, -HUGE, HUGE)) for name, values in finite if len(values)]
    if not finite:
        return Markup("")
    pooled = np.concatenate([values for _, values in finite])
    low, high = _widened(*np.quantile(pooled, [0.005, 0.995]))
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(np.clip(v, low, high), edges)[0] / len(v) for _, v in finite]
    legend, top = _legend([name for name, _ in finite], False)
    frame = _Frame((low, high), (0.0, 1.08 * max(float(s.max()) for s in shares)), top)
    parts = [legend, _axes(frame, "energy", shares=True)]
    across = frame.across(edges)
    for i, ((name, _), share) in enumerate(zip(finite, shares, strict=True)):
        steps = "".join(
            f"V{y:.1f}H{x:.1f}" for y, x in zip(frame.up(share), across[1:], strict=True)
        )
        path = f"M{across[0]:.1f} {frame.bottom:.1f}{steps}V{frame.bottom:.1f}Z"
        parts.append(_tag("path", _title(name), class_=f"area s{i}", d=path))
    for k in range(bins):
        told = [f"{n}: {percent(float(s[k]), 1)}" for (n, _), s in zip(finite, shares, strict=True)]
        text = "\n".join([f"energy {number(edges[k])} to {number(edges[k + 1])}", *told])
        parts.append(_strip(across[k], across[k + 1], frame, text))
    return _picture(label, "", parts, frame.bottom + BELOW)


def bars(rows: Sequence[Bar], *, label: str) -> Markup:
    """Horizontal bars with intervals; the first is ours and stands out.

    A row whose value is not finite keeps its place, as "not measured".
    """
    known = [row for row in rows if all(math.isfinite(v) for v in row[1:])]
    if not known:
        return Markup("")
    left, right, height = 104, 52, 30
    top = max(max(row.value, row.high) for row in known)
    limit = min(1.0, max(1.05 * top, 0.02))
    scale = (WIDTH - left - right) / limit
    bottom = height * len(rows) + 6
    marks = ticks(0.0, limit, 4)
    parts: list[Markup] = []
    for t in marks:
        x = left + t * scale
        parts.append(_tag("path", class_="grid", d=f"M{x:.1f} 2V{bottom}"))
        parts.append(_text(percent(t), x, bottom + 15, "tick", "middle"))
    for i, row in enumerate(rows):
        y = 4 + i * height
        name = _text(_short(row.name, 15), left - 8, y + 14, "label", "end")
        if row not in known:
            parts.append(name + _text("not measured", left + 6, y + 14, "tick"))
            continue
        end, low, high = (left + min(max(v, 0.0), limit) * scale for v in row[1:])
        caps = f"M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 6}v8M{high:.1f} {y + 6}v8"
        inner = [
            _title(f"{row.name}: {_span(row)}"),
            name,
            _tag("rect", class_="bar", x=left, y=y, width=max(end - left, 0.5), height=20, rx=2),
            _tag("path", class_="halo", d=caps),
            _tag("path", class_="whisker", d=caps),
            _text(percent(row.value, 1), max(high, end) + 6, y + 14, "value"),
        ]
        parts.append(_tag("g", Markup("").join(inner), class_="ours" if i == 0 else "other"))
    told = "; ".join(f"{row.name} {percent(row.value, 1)}" for row in known)
    return _picture(label, told, parts, bottom + 20)


def _finite(series: Series) -> Series:
    fine = np.isfinite(series.y)
    return Series(series.name, series.x[fine], np.clip(series.y[fine], -HUGE, HUGE))


def _span(row: Bar) -> str:
    value, low, high = (percent(v, 1) for v in row[1:])
    return f"{value} ({low} to {high})"


def _losses(series: Sequence[Series]) -> list[tuple[float, str]]:
    """Where a line is no longer finite for the first time."""
    bad = [(s, np.flatnonzero(~np.isfinite(s.y))) for s in series]
    return [(float(s.x[at[0]]), f"{s.name} is not finite") for s, at in bad if len(at)]


def _widened(low: float, high: float) -> tuple[float, float]:
    low, high = float(low), float(high)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = 0.05 * abs(high) or 0.5
        return low - margin, high + margin
    return low, high


def _range_x(series: Sequence[Series], marks: Sequence[tuple[float, str]]) -> tuple[float, float]:
    all_x = [*(s.x[0] for s in series), *(s.x[-1] for s in series), *(step for step, _ in marks)]
    return _widened(min(all_x), max(all_x))


def _range_y(series: Sequence[Series], levels: Sequence[float]) -> tuple[float, float]:
    """The values without the rarest of long lines: one spike must not flatten everything."""
    ends = [np.quantile(s.y, [0.004, 0.996] if len(s.y) > 250 else [0, 1]) for s in series]
    levels = [level for level in levels if math.isfinite(level)]
    low = min([*(e[0] for e in ends), *levels])
    high = max([*(e[1] for e in ends), *levels])
    low, high = _widened(low, high)
    margin = 0.06 * (high - low)
    return (0.0 if 0 <= low < 0.4 * high else low - margin), high + margin


def _axes(frame: _Frame, name: str, *, shares: bool = False) -> Markup:
    parts: list[Markup] = []
    marks = ticks(*frame.y, count=5)
    step = marks[1] - marks[0] if len(marks) > 1 else abs(frame.y[1] - frame.y[0])
    for t in marks:
        text = percent(t) if shares else tick_text(t, step)
        y = float(frame.up(t))
        parts.append(_tag("path", class_="grid", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"))
        parts.append(_text(text, LEFT - 6, y + 4, "tick", "end"))
    marks = ticks(*frame.x, count=5)
    step = marks[1] - marks[0] if len(marks) > 1 else abs(frame.x[1] - frame.x[0])
    for t in marks:
        x = float(frame.across(t))
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(_text(tick_text(t, step), x, frame.bottom + 15, "tick", anchor))
    parts.append(_tag("path", class_="axis", d=f"M{LEFT} {frame.bottom:.1f}H{WIDTH - RIGHT}"))
    parts.append(_text(name, WIDTH - RIGHT, frame.bottom + 29, "tick", "end"))
    return Markup("").join(parts)


def _line(series: Series, frame: _Frame, colour: str, smooth: bool) -> Markup:
    parts: list[Markup] = []
    faint = smooth and len(series.x) >= 40
    raw = _path(*thin(series.x, series.y), frame)
    parts.append(_tag("path", class_=f"line {colour}{' faint' if faint else ''}", d=raw))
    if faint:
        mean = smoothed(series.y, max(5, len(series.y) // 40 | 1))
        parts.append(_tag("path", class_=f"line {colour}", d=_path(*thin(series.x, mean), frame)))
    if len(series.x) <= 30:
        dots = "".join(
            f"M{x:.1f} {y:.1f}h0"
            for x, y in zip(frame.across(series.x), frame.up(series.y), strict=True)
        )
        parts.append(_tag("path", class_=f"dots {colour}", d=dots))
    return Markup("").join(parts)


def _path(x: np.ndarray, y: np.ndarray, frame: _Frame) -> str:
    points = zip(frame.across(x), frame.up(y), strict=True)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def _strips(series: Sequence[Series], frame: _Frame) -> Markup:
    """Invisible columns that tell the values under the pointer."""
    steps = np.unique(np.concatenate([s.x for s in series]))
    at = steps[np.unique(np.linspace(0, len(steps) - 1, STRIPS).round().astype(int))]
    edges = np.concatenate([at[:1], (at[1:] + at[:-1]) / 2, at[-1:]])
    across = np.clip(frame.across(edges), LEFT, WIDTH - RIGHT)
    if len(at) == 1:
        across = np.array([LEFT, WIDTH - RIGHT], float)
    parts: list[Markup] = []
    for k, step in enumerate(at):
        told = [f"{s.name}: {number(float(s.y[np.abs(s.x - step).argmin()]))}" for s in series]
        text = "\n".join([f"step {step:,.0f}", *told])
        parts.append(_strip(across[k], across[k + 1], frame, text))
    return Markup("").join(parts)


def _strip(left: float, right: float, frame: _Frame, text: str) -> Markup:
    height = frame.bottom - frame.top
    width = max(right - left, 0.1)
    return _tag(
        "rect", _title(text), class_="strip", x=left, y=frame.top, width=width, height=height
    )


def _legend(names: Sequence[str], dashed_last: bool) -> tuple[Markup, float]:
    """Swatches and names in as many rows as they need, and where the plot may begin."""
    if not names:
        return Markup(""), float(ABOVE)
    parts: list[Markup] = []
    x, y = 6.0, 14
    for i, name in enumerate(names):
        shown = _short(name, 40)
        width = 22 + CHARACTER * len(shown) + 12
        if x > 6 and x + width > WIDTH:
            x, y = 6.0, y + 17
        kind = "level" if dashed_last and i == len(names) - 1 else f"key s{i % COLOURS}"
        swatch = _tag("path", class_=kind, d=f"M{x:.1f} {y - 4}h14")
        parts.append(_tag("g", _title(name) + swatch + _text(shown, x + 20, y, "label")))
        x += width
    return Markup("").join(parts), float(y + 10)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _last_values(series: Sequence[Series]) -> str:
    return "; ".join(f"{s.name} ends at {number(s.y[-1])}" for s in series)


def _picture(label: str, told: str, parts: Sequence[Markup], height: float) -> Markup:
    spoken = f"{label}. {told}." if told else f"{label}."
    body = Markup("").join(parts)
    box = f"0 0 {WIDTH} {height:.0f}"
    return _tag("svg", body, class_="chart", viewBox=box, role="img", aria_label=spoken)


def _upright(frame: _Frame, step: float) -> str:
    return f"M{float(frame.across(step)):.1f} {frame.top:.1f}V{frame.bottom:.1f}"


def _title(text: str) -> Markup:
    return _tag("title", text)


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> Markup:
    return _tag("text", text, class_=kind, x=x, y=y, text_anchor=anchor)


def _tag(name: str, inside: str = "", **attributes: str | float) -> Markup:
    """An element; text and attributes are escaped, numbers rounded to a tenth of a unit.

    Attributes are written as Python can: class_ for class, text_anchor for text-anchor.
    """
    parts = [Markup("<{}").format(name)]
    for key, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else value
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text))
    parts.append(Markup(">{}</{}>").format(inside, name))
    return Markup("").join(parts)
