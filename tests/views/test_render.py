"""What `render` refuses; the views it makes are compared with others in `test_kernels`."""

import numpy as np
import pytest

from erg.views.masks import random_tiles
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Tiles
from erg.views.render import draw, render

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
INDEX = np.array([4, 90, 17, 3, 1000, 55, 8])
PIXELS = Pixels.pack([np.full((20 + i, 31 - i, 3), i, dtype=np.uint8) for i in range(len(INDEX))])


def test_render_refuses_other_numbers() -> None:
    params = draw(PIXELS, LIGHT, view=0, geometry=0, seed=2, epoch=1, index=INDEX)
    for dtype in (np.float64, np.int16, np.float16):
        out = np.empty((7, 32, 32, 3), dtype=dtype)
        with pytest.raises(ValueError, match=r"Give float32, uint16 \(for bfloat16\) or uint8"):
            render(PIXELS, params, LIGHT, view=0, seed=2, epoch=1, index=INDEX, mean=MEAN, std=STD,
                   out=out)  # fmt: skip


def test_memory_for_tiles_that_is_not_contiguous_is_refused() -> None:
    params = draw(PIXELS, LIGHT, view=0, geometry=0, seed=2, epoch=1, index=INDEX)
    cut = random_tiles(Tiles(grid=(3, 2), gap=0.0, jitter=0.3), 32, 2, 1, INDEX, 0)
    out = np.empty((7, 2 * 42, 7, 3), dtype=np.float32)[:, ::2]
    with pytest.raises(ValueError, match="contiguous: False"):
        render(PIXELS, params, LIGHT, view=0, seed=2, epoch=1, index=INDEX, mean=MEAN, std=STD,
               out=out, cut=cut)  # fmt: skip
