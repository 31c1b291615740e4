"""The loader: every step's views from the number of the step alone."""

import threading

import numpy as np
import pytest
import torch

from erg.data.loader import Loader
from erg.train.fit import InMemory
from erg.views.plan import SIMCLR_SMALL, two_views

PLAN = two_views(SIMCLR_SMALL)
IMAGES = InMemory(list(np.random.default_rng(0).integers(0, 256, (32, 9, 8, 3), dtype=np.uint8)))


def test_loader_order_covers_every_image_once_an_epoch() -> None:
    loader = Loader(
        InMemory([np.zeros((4, 4, 3), np.uint8)] * 11), np.arange(100, 111) - 100, PLAN, batch=4,
        seed=0, image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    assert loader.steps_per_epoch == 2
    first = np.concatenate([loader.rows_of(step) for step in (0, 1)])
    second = np.concatenate([loader.rows_of(step) for step in (2, 3)])
    assert len(set(first)) == len(set(second)) == 8
    assert set(first) != set(second), "other images are left out in each epoch"
    assert not np.array_equal(first, second)
    assert np.array_equal(loader.rows_of(1), first[4:]), "any step can be asked for at any time"


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world: int) -> None:
    def loader(rank: int, world: int) -> Loader:
        return Loader(
            InMemory([np.full((4, 4, 3), i, np.uint8) for i in range(24)]), np.arange(24), PLAN,
            batch=12, seed=0, image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3, rank=rank, world=world,
        )  # fmt: skip

    alone = loader(0, 1).views(1)
    for rank in range(world):
        mine = loader(rank, world).views(1)
        assert torch.equal(mine.index, alone.index[rank::world])
        assert torch.equal(mine.main[0].data, alone.main[0].data[rank::world])


def test_an_error_in_the_views_thread_is_raised_here() -> None:
    class Broken:
        def pixels(self, rows):
            raise OSError("the disk went away")

    loader = Loader(
        Broken(), np.arange(8), PLAN, batch=4, seed=0, image_size=4,
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    with pytest.raises(OSError, match="went away"):
        next(loader.ahead(0, 10, depth=2))


def test_views_made_ahead_are_the_same_and_the_thread_ends() -> None:
    loader = Loader(
        IMAGES, np.arange(32), PLAN, batch=8, seed=0, image_size=8,
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    for step, (views,) in loader.ahead(0, 6, depth=2):
        assert torch.equal(views.main[0].data, loader.views(step).main[0].data)
        if step == 2:
            break
    assert not [t for t in threading.enumerate() if t.name == "erg-views" and t.is_alive()]
