"""What `renderer` refuses, and how `render` shares work; `test_kernels` compares the views."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erg.views.masks import random_tiles
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Tiles
from erg.views.render import draw, render, renderer
from tests.views.pools import Early

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
INDEX = np.array([4, 90, 17, 3, 1000, 55, 8])
PIXELS = Pixels.pack([np.full((20 + i, 31 - i, 3), i, dtype=np.uint8) for i in range(len(INDEX))])


def test_renderer_refuses_other_numbers() -> None:
    params = draw(PIXELS, LIGHT, view=0, geometry=0, seed=2, epoch=1, index=INDEX)
    for dtype in (np.float64, np.int16, np.float16):
        out = np.empty((7, 32, 32, 3), dtype=dtype)
        with pytest.raises(ValueError, match=r"Give float32, uint16 \(for bfloat16\) or uint8"):
            renderer(PIXELS, params, LIGHT, view=0, seed=2, epoch=1, index=INDEX, mean=MEAN,
                     std=STD, out=out)  # fmt: skip


def test_memory_for_tiles_that_is_not_contiguous_is_refused() -> None:
    params = draw(PIXELS, LIGHT, view=0, geometry=0, seed=2, epoch=1, index=INDEX)
    cut = random_tiles(Tiles(grid=(3, 2), gap=0.0, jitter=0.3), 32, 2, 1, INDEX, 0)
    out = np.empty((7, 2 * 42, 7, 3), dtype=np.float32)[:, ::2]
    with pytest.raises(ValueError, match="contiguous: False"):
        renderer(PIXELS, params, LIGHT, view=0, seed=2, epoch=1, index=INDEX, mean=MEAN, std=STD,
                 out=out, cut=cut)  # fmt: skip


WORTH = 0.003


def done(
    seconds: float, views: int, count: int, pool: ThreadPoolExecutor, worth: float = WORTH
) -> tuple[list[np.ndarray], set[str]]:
    """How often each item of each view was rendered, and by whom, if a part takes so long."""
    items, by = [np.zeros(count, int) for _ in range(views)], set[str]()

    def one(view: int, part: slice) -> None:
        items[view][part] += 1
        by.add(threading.current_thread().name)
        time.sleep(seconds)

    runs = [lambda part, view=view: one(view, part) for view in range(views)]
    with pool:
        render(runs, count, pool, worth)
    return items, by


@pytest.mark.parametrize(("views", "count"), [(1, 1), (2, 1), (1, 7), (3, 64), (2, 65), (10, 5)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("seconds", "worth"), [(0.0, 0.0), (0.0, WORTH), (WORTH, WORTH)])
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, Early])
def test_every_item_of_every_view_is_rendered_once(
    kind: type[ThreadPoolExecutor], seconds: float, worth: float, views: int, count: int,
    threads: int,
) -> None:  # fmt: skip
    items, _ = done(seconds, views, count, kind(threads), worth)
    assert all((each == 1).all() for each in items)


@pytest.mark.parametrize("worth", [0.0, WORTH])
def test_others_help_where_much_is_left(worth: float) -> None:
    by = done(WORTH, views=2, count=64, pool=Early(1, "helper"), worth=worth)[1]
    assert by >= {"helper_0"}


def test_others_are_left_alone_where_little_is_left() -> None:
    by = done(0.0, views=2, count=64, pool=Early(1), worth=60.0)[1]
    assert by == {threading.current_thread().name}


class Nobody(ThreadPoolExecutor):
    """Three threads that nobody should ask."""

    def submit(self, *given: Any, **further: Any) -> Any:
        pytest.fail("a thread was asked to help with nothing")


@pytest.mark.parametrize("worth", [0.0, WORTH])
def test_nobody_is_asked_where_there_are_no_parts_for_them(worth: float) -> None:
    called: list[slice] = []
    with Nobody(3) as pool:
        render([], 5, pool, worth)
        render([called.append], 0, pool, worth)
        assert not called
        render([called.append], 1, pool, worth)
    assert called == [slice(0, 1)]


@pytest.mark.parametrize("worth", [0.0, WORTH])
def test_an_error_in_another_thread_surfaces(worth: float) -> None:
    def run(part: slice) -> None:
        time.sleep(WORTH)
        if threading.current_thread().name.startswith("helper"):
            raise ArithmeticError("in a helper")

    with Early(1, "helper") as pool, pytest.raises(ArithmeticError, match="in a helper"):
        render([run], 800, pool, worth)


class Late(ThreadPoolExecutor):
    """Its thread comes when it is waited for."""

    def submit(self, work: Callable[[], None], /) -> Any:  # type: ignore[override]
        return SimpleNamespace(result=work, cancel=lambda: False)


@pytest.mark.parametrize("worth", [0.0, 1e-9])
def test_after_an_error_no_part_is_begun(worth: float) -> None:
    called: list[slice] = []

    def run(part: slice) -> None:
        called.append(part)
        if part.start:
            raise ArithmeticError

    with Late(1) as pool, pytest.raises(ArithmeticError):
        render([run], 800, pool, worth)
    assert called == [slice(0, 100), slice(100, 200)]
