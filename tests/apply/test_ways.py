"""What encoders are compared with."""

import pytest

from erg.apply import ways
from erg.apply.embed import open_for
from erg.apply.ways import pixels_of
from erg.encoders import build_encoder


def test_raw_pixels_are_as_sharp_as_the_largest_set_and_the_encoder_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "LARGEST", 100 * 32 * 32 * 12)
    opened = open_for(build_encoder("conv", 32, width=4, stages=2), "synthetic:120")
    assert pixels_of(opened, opened.rows[:99], 32).shape == (99, 3 * 32 * 32)
    assert pixels_of(opened, opened.rows, 32).shape == (120, 3 * 16 * 16)
    assert pixels_of(opened, opened.rows[:9], 32, most=120).shape == (9, 3 * 16 * 16)
    assert pixels_of(opened, opened.rows, 8, most=2000).shape == (120, 3 * 8 * 8), "no sharper"
