import numpy as np
import pytest

from erg.data.outlines import SHAPES, distance


def test_outlines_have_the_sizes_of_their_geometry() -> None:
    """Areas by counting points, against the formulas of the figures."""
    side = np.linspace(-1.5, 1.5, 1500)
    u, v = np.meshgrid(side, side)
    area = {
        name: (distance(u[None], v[None], np.array([kind]))[0] < 0).mean() * 9
        for kind, name in enumerate(SHAPES)
    }
    notch = 0.46
    expected = {
        "circle": np.pi * 0.85**2,
        "square": 1.5**2,
        "triangle": 3 * np.sqrt(3) * 0.55**2,  # of its inscribed circle's radius
        "star": 10 * 0.5 * notch * np.sin(np.pi / 5),  # ten triangles: centre, tip, notch
        "ring": np.pi * (0.9**2 - 0.46**2),
        "cross": 2 * 1.8 * 0.6 - 0.6**2,
        "bar": 2.1 * 0.64,
    }
    for name, value in expected.items():
        assert area[name] == pytest.approx(value, rel=0.01), name
    assert 0.3 < area["crescent"] < np.pi * 0.92**2 / 1.5
