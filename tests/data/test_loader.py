"""The loader: every step's views from the number of the step alone."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erg.data.cache import Cache
from erg.data.loader import Images, Loader
from erg.data.manifest import build_manifest
from erg.data.source import DataError, open_source
from erg.data.stream import Stream
from erg.views import kernels
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, SIMCLR_SMALL, WHOLE, Augmentation, Masking, Plan, two_views
from erg.views.types import Output

PLAN = two_views(SIMCLR_SMALL)
IMAGES = Cache.of(list(np.random.default_rng(0).integers(0, 256, (32, 9, 8, 3), dtype=np.uint8)))


def test_loader_order_covers_every_image_once_an_epoch() -> None:
    loader = Loader(
        Cache.of([np.zeros((4, 4, 3), np.uint8)] * 11), np.arange(100, 111) - 100, PLAN, batch=4,
        seed=0, image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    assert loader.steps_per_epoch == 2
    first = np.concatenate([loader.rows_of(step) for step in (0, 1)])
    second = np.concatenate([loader.rows_of(step) for step in (2, 3)])
    assert len(set(first)) == len(set(second)) == 8
    assert set(first) != set(second), "other images are left out in each epoch"
    assert not np.array_equal(first, second)
    assert np.array_equal(loader.rows_of(1), first[4:]), "any step can be asked for at any time"


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_global_batch(world: int) -> None:
    def loader(rank: int, world: int) -> Loader:
        return Loader(
            Cache.of([np.full((4, 4, 3), i, np.uint8) for i in range(24)]), np.arange(24), PLAN,
            batch=12, seed=0, image_size=4, mean=(0.5,) * 3, std=(0.5,) * 3, rank=rank, world=world,
        )  # fmt: skip

    alone = loader(0, 1).views(1)
    for rank in range(world):
        mine = loader(rank, world).views(1)
        assert torch.equal(mine.index, alone.index[rank::world])
        assert torch.equal(mine.main[0].data, alone.main[0].data[rank::world])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_the_strata_of_the_global_batch(accumulate: int) -> None:
    masking = Masking(grid=(5, 4), ratio=0.5, spread=0.4, masked=0.5, stratified=True)
    hiding = Plan(main=(replace(LIGHT, mask=masking),) * 2, pairs="itself")

    def masks(rank: int, world: int) -> list[torch.Tensor]:
        loader = Loader(
            IMAGES, np.arange(32), hiding, batch=24, seed=0, image_size=4, mean=(0.5,) * 3,
            std=(0.5,) * 3, rank=rank, world=world, accumulate=accumulate,
        )  # fmt: skip
        found = [view.mask for views in loader.batches(1) for view in views.main]
        return [mask.hidden[:, 0] for mask in found if mask is not None]

    alone, first, second = masks(0, 1), masks(0, 2), masks(1, 2)
    assert len(alone) == 2 * accumulate
    for whole, even, odd in zip(alone, first, second, strict=True):
        assert torch.equal(whole[0::2], even)
        assert torch.equal(whole[1::2], odd)
        counts = sorted(n for n in whole.sum(dim=1).tolist() if n)
        strata = len(whole) // 2
        assert len(counts) == strata
        for k, n in enumerate(counts):  # 2 to 18 patches, in equal parts
            assert 2 + 16 * k / strata - 0.5 <= n <= 2 + 16 * (k + 1) / strata + 0.5


def a_loader(
    images: Images | np.ndarray, rows: int = 32, plan: Plan = PLAN, **changed: Any
) -> Loader:
    arguments: dict[str, Any] = {"batch": 8, "seed": 0, "image_size": 8}
    arguments |= {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Loader(images, np.arange(rows), plan, **(arguments | changed))


def test_every_process_has_a_part_of_every_micro_batch() -> None:
    a_loader(IMAGES, rows=7, world=7)
    with pytest.raises(ValueError, match="micro-batches of 7 images leave some of 8 processes"):
        a_loader(IMAGES, rows=7, world=8)
    with pytest.raises(ValueError, match="micro-batches of 4 images leave some of 5 processes"):
        a_loader(IMAGES, world=5, accumulate=2)
    with pytest.raises(ValueError, match="7 cannot be cut into 2 equal micro-batches"):
        a_loader(IMAGES, batch=7, accumulate=2)
    with pytest.raises(ValueError, match="3 cannot be cut into 4 equal micro-batches"):
        a_loader(IMAGES, rows=3, accumulate=4)


def test_a_set_smaller_than_a_batch_is_cut_into_equal_micro_batches() -> None:
    loader = a_loader(IMAGES, rows=10, batch=16, accumulate=4)
    assert (loader.batch, loader.steps_per_epoch) == (8, 1)
    assert [len(views) for views in loader.batches(0)] == [2] * 4
    assert a_loader(IMAGES, rows=7, accumulate=2).batch == 6


def threads() -> list[str]:
    """Threads that make views ahead, alive."""
    return [t.name for t in threading.enumerate() if t.name.startswith("erg-ahead")]


class Failing:
    """Images of which one cannot be had."""

    def __init__(self, row: int) -> None:
        self.row = row

    def pixels(self, rows: np.ndarray) -> Pixels:
        if self.row in rows:
            raise OSError(f"photos/{self.row}.png went away")
        return IMAGES.pixels(rows)


def test_signed_integers_are_tokens_and_all_other_numbers_vectors() -> None:
    tokens = np.arange(64).reshape(32, 2) - 1
    plain = Plan(main=(WHOLE,), pairs="alone")
    loader = a_loader(tokens.astype(np.int32), plan=plain)
    views = loader.views(1)
    (view,) = views.main
    assert view.data.dtype == torch.int64
    assert view.data.tolist() == tokens[loader.rows_of(1)].tolist()
    assert torch.equal(views.index, torch.from_numpy(loader.rows_of(1)))
    for other in (np.uint8, np.float64):
        (view,) = a_loader((tokens + 1).astype(other), plan=plain).views(1).main
        assert view.data.dtype == torch.float32
        assert view.data.tolist() == (tokens[loader.rows_of(1)] + 1).tolist()


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_an_error_in_the_views_thread_is_raised_in_its_step(depth: int) -> None:
    rows = a_loader(IMAGES).rows_of(2)
    loader = a_loader(Failing(int(rows[3])))
    seen = []
    with pytest.raises(OSError, match=rf"photos/{rows[3]}\.png went away"):  # noqa: PT012
        for step, _ in loader.ahead(0, 4, depth):
            seen.append(step)
    assert seen == [0, 1]
    assert not threads()


def test_an_error_while_decoding_names_the_file(tmp_path: Path) -> None:
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)):
        Image.fromarray(image).save(tmp_path / f"photo {i}.png")
    source = open_source(tmp_path)
    images = Stream(source, build_manifest(source), threads=2)
    loader = a_loader(images, 8, batch=2)
    gone = source.path(int(loader.rows_of(2)[1]))
    (tmp_path / gone).write_bytes(b"no image")
    seen = []
    with pytest.raises(DataError, match=re.escape(gone)):  # noqa: PT012
        for step, _ in loader.ahead(0, 4):
            seen.append(step)
    assert seen == [0, 1]
    images.close()


def test_an_error_in_the_threads_of_the_kernels_is_raised_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room for scratch")

    monkeypatch.setattr(kernels, "render_batch", broken)
    loader = a_loader(IMAGES, threads=2)
    with pytest.raises(MemoryError, match="no room for scratch"):
        next(loader.ahead(0, 4))
    loader.close()


def test_an_error_about_pixels_names_the_row() -> None:
    class Tall:
        """Says of one image that it is larger than it is."""

        def pixels(self, rows: np.ndarray) -> Pixels:
            pixels = IMAGES.pixels(rows)
            return pixels._replace(height=np.where(rows == 5, 10_000, pixels.height))

    with pytest.raises(ValueError, match="row 5 of the manifest"):
        list(a_loader(Tall()).ahead(0, 4))


def test_views_made_ahead_are_the_same_and_the_thread_ends() -> None:
    loader = a_loader(IMAGES, accumulate=2)
    for step, views in loader.ahead(0, 6, depth=2):
        assert threads() == ["erg-ahead_0"]
        assert len(views) == 2
        for micro, made in enumerate(views):
            assert torch.equal(made.main[0].data, loader.views(step, micro).main[0].data)
        if step == 2:
            break
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_ahead_than_asked_for(depth: int) -> None:
    class Counting:
        """Tells how often it was asked."""

        def __init__(self) -> None:
            self.asked = threading.Semaphore(0)

        def pixels(self, rows: np.ndarray) -> Pixels:
            self.asked.release()
            return IMAGES.pixels(rows)

    images = Counting()
    steps = a_loader(images).ahead(0, 10, depth)
    for step, further in ((0, 1 + depth), (1, 1)):
        assert next(steps)[0] == step
        for _ in range(further):
            assert images.asked.acquire(timeout=60)
        assert not images.asked.acquire(timeout=0.2)


def test_fewer_steps_than_asked_ahead() -> None:
    assert [step for step, _ in a_loader(IMAGES).ahead(2, 4, depth=7)] == [2, 3]
    assert list(a_loader(IMAGES).ahead(4, 4)) == []


def test_an_error_of_the_caller_ends_the_thread() -> None:
    loader = a_loader(IMAGES, threads=2)
    with pytest.raises(RuntimeError, match="diverged"):  # noqa: PT012
        for _ in loader.ahead(0, 10):
            raise RuntimeError("diverged")
    assert not threads()
    loader.close()


def test_close_ends_the_thread_of_an_iterator_that_is_still_held() -> None:
    before = threading.active_count()
    loader = a_loader(IMAGES, threads=2)
    held = loader.ahead(0, 10)
    assert next(held)[0] == 0
    assert threads() == ["erg-ahead_0"]
    assert threading.active_count() == before + 2
    loader.close()
    assert threading.active_count() == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends itself a POSIX signal")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("depth", [0, 1])
def test_an_interrupt_ends_the_threads(depth: int) -> None:
    class Interrupting:
        """Ctrl-C comes while the second step is made."""

        def __init__(self) -> None:
            self.asked = 0

        def pixels(self, rows: np.ndarray) -> Pixels:
            self.asked += 1
            if self.asked == 2:
                time.sleep(0.2)  # the caller waits by now
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.2)
            return IMAGES.pixels(rows)

    images = Interrupting()
    before = threading.active_count()
    loader = a_loader(images, threads=2)
    seen = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for step, _ in loader.ahead(0, 100, depth):
            seen.append(step)
    assert seen == [0]
    assert images.asked == 2, "nothing is begun after the interrupt"
    assert not threads()
    loader.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("output", ["float32", "bfloat16", "uint8"])
def test_views_come_in_the_form_asked_for(output: Output) -> None:
    full = a_loader(IMAGES).views(3).main[1]
    made = a_loader(IMAGES, output=output, threads=2).views(3).main[1]
    assert made.data.dtype == getattr(torch, output)
    assert made.raw == (output == "uint8")
    arrived = made.to("cpu", torch.float32)
    assert torch.allclose(arrived.data, full.data, atol=0.51 / 255 / 0.25, rtol=2**-8)


def test_views_with_noise_come_in_float32_instead_of_bytes() -> None:
    plan = Plan(main=(LIGHT, Augmentation(noise=0.2, same_as=0)))
    clean, noisy = a_loader(IMAGES, plan=plan, output="uint8").views(0).main
    assert clean.raw
    assert noisy.data.dtype == torch.float32


def test_vectors_are_float32_whatever_is_asked_for() -> None:
    vectors = np.random.default_rng(0).normal(size=(32, 5))
    loader = a_loader(vectors, plan=Plan(main=(WHOLE,), kind="array"), output="uint8")
    data = loader.views(1).main[0].data
    assert data.dtype == torch.float32
    assert np.array_equal(data, vectors[loader.rows_of(1)].astype(np.float32))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_pinning_without_a_gpu_changes_nothing() -> None:
    plain, pinned = (a_loader(IMAGES, pin=pin).views(1).main[0].data for pin in (False, True))
    assert torch.equal(plain, pinned)


@pytest.mark.parametrize("output", ["float32", "bfloat16", "uint8"])
def test_views_are_rendered_into_pinned_memory(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocated so and never copied; ordinary memory stands for it, as there may be no GPU."""
    expected = a_loader(IMAGES, output=output).views(1)
    rendered: list[int] = []
    pinned: list[int] = []
    allocate = torch.empty

    def empty(*shape: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
        made = allocate(*shape, **how)
        if pin_memory:
            rendered.append(made.data_ptr())
        return made

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    views = a_loader(IMAGES, pin=True, output=output).views(1)
    assert [view.data.data_ptr() for view in views.main] == rendered
    assert {*rendered, views.index.data_ptr()} < set(pinned)
    for mine, other in zip(views.main, expected.main, strict=True):
        assert torch.equal(mine.data, other.data)
