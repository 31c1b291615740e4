import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erg.report import charts
from erg.report.charts import Bar, Series

HOSTILE = "</svg><script>alert(1)</script>\"'&"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def of_class(svg: str, name: str) -> list[ElementTree.Element]:
    return [e for e in parsed(svg).iter() if name in (e.get("class") or "").split()]


def points(path: str) -> np.ndarray:
    return np.array([float(n) for n in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)


@given(
    st.floats(-1e9, 1e9, allow_nan=False),
    st.floats(1e-6, 1e9, allow_nan=False),
    st.integers(3, 8),
)
def test_ticks_are_round_and_few(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < 1e-9 * abs(low):
        return
    found = charts.ticks(low, high, count)
    assert len(found) <= count + 1
    assert all(low - 1e-6 * span <= t <= high + 1e-6 * span for t in found)
    if len(found) > 1:
        steps = np.diff(found)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6, atol=1e-9 * abs(low))
        digits = steps[0] / 10 ** np.floor(np.log10(steps[0] * (1 + 1e-9)))
        assert min(abs(digits - d) for d in (1, 2, 5, 10)) < 1e-3 + 1e-5 * abs(low) / span


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0.30000000000000004, 0.1, "0.3"),
        (1500.0, 500.0, "1.5k"),
        (3000.0, 1000.0, "3k"),
        (150.0, 50.0, "150"),
        (2e6, 1e6, "2M"),
        (1e-17, 0.1, "0"),
        (0.0005, 0.0005, "0.0005"),
        (2e-5, 1e-5, "2e-05"),
        (-2.5, 0.5, "-2.5"),
    ],
)
def test_tick_text(value: float, step: float, text: str) -> None:
    assert charts.tick_text(value, step) == text


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_thinning_keeps_extremes_and_order(n: int, seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=n)
    x = np.arange(n, dtype=float)
    a, b = charts.thin(x, y, buckets=50)
    assert len(a) <= max(100, min(n, 100))
    assert (np.diff(a) > 0).all()
    assert b.min() == y.min()
    assert b.max() == y.max()
    np.testing.assert_array_equal(b, y[a.astype(int)])


def test_smoothing_is_the_mean_of_what_is_in_the_window() -> None:
    y = np.random.default_rng(0).normal(size=23)
    expected = [y[max(0, i - 2) : i + 3].mean() for i in range(23)]
    np.testing.assert_allclose(charts.smoothed(y, 5), expected, atol=1e-12)


def test_a_line_goes_through_its_values() -> None:
    svg = charts.lines([Series("a", np.array([0.0, 10.0]), np.array([2.0, 4.0]))], label="L")
    (line,) = of_class(svg, "line")
    (x0, y0), (x1, y1) = points(line.get("d") or "")
    assert y1 < y0  # larger values are higher
    assert (x0, x1) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    grid = {g.get("d"): None for g in of_class(svg, "grid")}
    texts = [t for t in of_class(svg, "tick") if t.get("text-anchor") == "end"]
    heights = {t.text: float(t.get("y") or 0) - 4 for t in texts if t.text in ("2.0", "4.0")}
    assert y0 == pytest.approx(heights["2.0"], abs=0.11)
    assert y1 == pytest.approx(heights["4.0"], abs=0.11)
    assert grid


def test_long_lines_are_smoothed_over_the_raw_line_and_stay_small() -> None:
    x = np.arange(100_000, dtype=float)
    y = np.random.default_rng(0).normal(size=len(x))
    svg = charts.lines([Series("loss", x, y)], label="Loss", smooth=True)
    raw, mean = of_class(svg, "line")
    assert "faint" in (raw.get("class") or "")
    assert "faint" not in (mean.get("class") or "")
    assert np.ptp(points(raw.get("d") or "")[:, 1]) > 5 * np.ptp(points(mean.get("d") or "")[:, 1])
    assert len(svg) < 30_000


def test_one_spike_does_not_flatten_a_long_line() -> None:
    y = np.sin(np.arange(1000) / 50)
    y[500] = 1e30
    svg = charts.lines([Series("a", np.arange(1000.0), y)], label="L")
    heights = points(of_class(svg, "line")[0].get("d") or "")[:, 1]
    assert np.ptp(heights) > 100


def test_values_that_are_not_finite_leave_a_mark() -> None:
    y = np.array([1.0, 2.0, np.nan, np.inf])
    svg = charts.lines([Series("loss", np.arange(4.0), y)], label="Loss")
    assert "nan" not in svg.lower().replace("not finite", "")
    (mark,) = of_class(svg, "mark")
    assert "step 2: loss is not finite" in svg
    assert mark.get("d")
    assert charts.lines([Series("loss", np.arange(1.0), np.array([np.nan]))], label="L") == ""


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0, 0.0], [1e200, -1e200], [5e-324, 0.0]])
def test_odd_values_draw_without_complaint(values: list[float]) -> None:
    svg = charts.lines([Series("a", np.arange(len(values)) * 1.0, np.array(values))], label="L")
    assert "nan" not in svg
    assert "inf" not in svg
    parsed(svg)


def test_hovering_tells_the_values() -> None:
    x = np.array([0.0, 100.0, 200.0])
    series = [Series("pull", x, np.array([1.0, 2.0, 3.0])), Series("push", x, x / 1000)]
    strips = of_class(charts.lines(series, label="L"), "strip")
    assert [s[0].text for s in strips] == [
        "step 0\npull: 1\npush: 0",
        "step 100\npull: 2\npush: 0.1",
        "step 200\npull: 3\npush: 0.2",
    ]


def test_reference_and_marks() -> None:
    x = np.array([0.0, 10.0])
    svg = charts.lines(
        [Series("std", x, np.array([0.2, 0.9]))],
        label="Spread",
        reference=("before training", 0.2),
        marks=[(5.0, "Collapse")],
    )
    assert "before training" in svg
    assert len(of_class(svg, "level")) == 2
    assert "step 5: Collapse" in svg


def test_histograms_are_shares_of_their_own_values() -> None:
    rng = np.random.default_rng(0)
    series = [("matched", rng.normal(0, 1, 500)), ("mismatched", rng.normal(3, 1, 2000))]
    svg = charts.histograms(series, label="E")
    told = [e[0].text or "" for e in of_class(svg, "strip")]
    for name in ("matched", "mismatched"):
        shares = [float(re.search(rf"^{name}: ([\d.]+)", t, re.M)[1]) for t in told]  # type: ignore[index]
        assert sum(shares) == pytest.approx(100, abs=2)
    assert len(of_class(svg, "area")) == 2
    assert charts.histograms([("a", np.array([np.nan]))], label="E") == ""
    parsed(charts.histograms([("a", np.ones(5))], label="E"))


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("encoder", 0.5, 0.48, 0.52), Bar("PCA", 0.25, 0.2, 0.3)]
    rows.append(Bar("raw pixels", *[float("nan")] * 3))
    svg = charts.bars(rows, label="kNN")
    first, second = of_class(svg, "bar")
    assert float(first.get("width") or 0) == pytest.approx(
        2 * float(second.get("width") or 0), abs=0.2
    )
    assert "not measured" in svg
    assert "encoder: 50.0\u00a0% (48.0\u00a0% to 52.0\u00a0%)" in svg
    assert len(of_class(svg, "ours")) == 1


def test_text_is_escaped_and_pictures_are_named() -> None:
    x = np.arange(3.0)
    for svg in (
        charts.lines(
            [Series(HOSTILE, x, x), Series("b", x, x)], label=HOSTILE, marks=[(1, HOSTILE)]
        ),
        charts.histograms([(HOSTILE, x), ("b", x)], label=HOSTILE),
        charts.bars([Bar(HOSTILE, 0.5, 0.4, 0.6)], label=HOSTILE),
    ):
        assert "<script" not in svg
        root = parsed(svg)
        assert root.get("role") == "img"
        assert (root.get("aria-label") or "").startswith(HOSTILE)
        assert any(HOSTILE in (e.text or "") for e in root.iter("title"))
