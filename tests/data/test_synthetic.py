"""The embedded world as a source."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from erg.data.outlines import SHAPES
from erg.data.scenes import BACKGROUNDS, TEXTURES, world
from erg.data.source import DataError, open_source


def test_source() -> None:
    source = open_source("synthetic:150", label="shape")
    assert (len(source), source.spec, source.kind) == (150, "synthetic:150", "image")
    made = world(150)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(source.read, range(149, -1, -1)))
    np.testing.assert_array_equal(images[::-1], made.images)
    assert [source.label(i) for i in range(9)] == [SHAPES[k] for k in made.factors["shape"][:9]]
    assert open_source("synthetic:2", label="texture").label(0) in TEXTURES
    assert open_source("synthetic:2", label="background").label(0) in BACKGROUNDS
    assert open_source("synthetic:2").label(0) is None
    assert len(open_source("synthetic")) == 5000
    with pytest.raises(DataError, match=r"no label .hue.\. Use one of shape, texture, background"):
        open_source("synthetic:5", label="hue")
