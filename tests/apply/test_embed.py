"""One pass over the data: the same vectors as with everything decoded first."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erg.apply import embed as apply_embed
from erg.apply.embed import (
    Embedder,
    _as_they_come,
    embed,
    evenly,
    in_one_pass,
    open_for,
    vectors_of,
)
from erg.data import loader
from erg.data.cache import Cache
from erg.data.manifest import default_threads
from erg.data.scenes import world
from erg.data.source import DataError, open_source
from erg.encoders import build_encoder, load_encoder, save_encoder
from erg.train import features as train_features
from erg.views.types import Views


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_encoder(build_encoder("conv", 16, width=4, stages=2), folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures in three folders, every tenth of them broken: more than one batch."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(world(300, size=32).images):
        path = folder / f"{i % 3}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        if i % 10 == 0:
            path.write_bytes(path.read_bytes()[:60])
    return folder


def test_vectors_are_those_of_everything_decoded_first(model: Path, pictures: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = embed(model, pictures, label="folder", progress=lambda n, of: seen.append((n, of)))
    encoder = load_encoder(model)
    opened = open_for(encoder, pictures, label="folder")
    wanted = vectors_of(encoder, encoder, encoder, opened, opened.rows)
    assert np.array_equal(found.vectors, wanted)
    assert np.array_equal(found.ids, opened.rows)
    assert len(found) == 270
    assert found.paths == [opened.manifest.paths[i] for i in opened.rows]
    assert found.labels is not None
    assert [str(label) for label in found.labels] == [Path(p).parent.name for p in found.paths]
    assert seen == [(256, 300), (270, 300)]


def test_too_many_broken_pictures_are_an_error(model: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="30 of 300"):
        embed(model, pictures, max_skipped=0.05)
    assert len(embed(model, pictures, max_skipped=0.1)) == 270


def test_data_to_use_an_encoder_on_may_be_broken_and_what_is_left_out_is_said(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    """However much: whoever trained on them has allowed it, and has nothing to allow it with."""
    encoder, said = load_encoder(model), []
    whole = [str(path) for path in sorted(pictures.glob("1/*.png"))[:6]]
    broken = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in broken:
        Path(path).write_bytes(b"no image")
    opened = open_for(encoder, [*whole, *broken], tell=said.append)
    assert opened.rows.tolist() == [i for i in range(6) if int(Path(whole[i]).stem) % 10]
    (text,) = said
    assert text.startswith(f"{len(opened.rows)} readable items of 10\n")
    assert "4 skipped: It is not an image of a known format." in text
    said.clear()
    open_for(encoder, [whole[i] for i in opened.rows], tell=said.append)
    assert not said
    with pytest.raises(DataError, match="none of 4 listed files can be read"):
        open_for(encoder, broken)


def test_some_rows_are_spread_over_all() -> None:
    rows = np.arange(100, 200)
    assert evenly(rows, 4).tolist() == [100, 133, 166, 199]
    assert evenly(rows, 1000).tolist() == rows.tolist()
    assert len({*evenly(rows, 99)}) == 99
    assert len(evenly(rows, 0)) == len(evenly(rows[:0], 5)) == 0


def test_vectors_are_embedded_too(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    save_encoder(build_encoder("identity", 5), tmp_path / "identity")
    assert np.array_equal(embed(tmp_path / "identity", vectors).vectors, vectors)


def test_tokens_stay_whole_numbers() -> None:
    """16,777,217 is the first whole number that float32 does not know."""
    tokens = np.array([[0, 16_777_217, -1], [16_777_217, 1, 2], [-5, 1, 2]])
    seen: list[torch.dtype] = []

    def last_bit(data: torch.Tensor) -> torch.Tensor:
        seen.append(data.dtype)
        return data % 2

    encoder = build_encoder("identity", 3)
    rows, found = in_one_pass(
        Embedder("tokens", encoder, encoder, last_bit),
        open_source(tokens),
        range(3),
        lambda _: None,
    )
    assert seen == [torch.int64]
    assert found.tolist() == [[0, 1, 1], [1, 1, 0]]
    assert [row.status for row in rows] == ["ok", "ok", "skipped"]


def settled(made: list[Any]) -> int:
    """How many there are once nothing more is begun."""
    before = -1
    while len(made) > before:
        before = len(made)
        threading.Event().wait(0.3)
    return before


@pytest.fixture
def batches_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each batch of views is made of, as they are made."""
    found: list[int] = []
    make_views = loader.make_views

    def noted(*given: Any, **how: Any) -> Views:
        found.append(len(how["index"]))
        return make_views(*given, **how)

    monkeypatch.setattr(loader, "make_views", noted)
    return found


@pytest.mark.parametrize(("device", "batches"), [("cuda", 3), ("mps", 3), ("cpu", 2)])
def test_decoding_goes_on_while_a_batch_is_embedded_and_not_without_end(
    device: str,
    batches: int,
    model: Path,
    pictures: Path,
    batches_made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of batches further on views are made too: of two for an accelerator, of one for a CPU."""
    source = open_source(pictures)
    asked: list[int] = []
    item = source.item

    def noted(i: int) -> Any:
        asked.append(i)
        return item(i)

    monkeypatch.setattr(source, "item", noted)
    views = _as_they_come(
        source, range(300), load_encoder(model), [], torch.device(device), batch=32
    )
    assert len(next(views)) == 32  # of 36 items, of which every tenth is broken
    settled(asked)
    assert batches_made == [32] * batches
    ahead = 8 * (2 * default_threads() + 2)  # blocks of 8
    assert 36 * batches < len(asked) <= 36 * batches + ahead < 300
    assert sum(len(each) for each in views) == 270 - 32
    assert len(asked) == 300
    assert batches_made == [32] * 8 + [14]


@pytest.mark.parametrize(("device", "batches"), [("cuda", 3), ("mps", 3), ("cpu", 1)])
def test_views_of_opened_images_are_made_ahead_too(
    device: str,
    batches: int,
    model: Path,
    batches_made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def features(_: Any, __: Any, views: Iterator[Views], **how: Any) -> np.ndarray:
        assert how["device"] == torch.device(device)
        next(views)
        seen.append(settled(batches_made))
        return np.zeros((sum(len(each) for each in views), 1))

    seen: list[int] = []
    encoder = load_encoder(model)
    opened = open_for(encoder, "synthetic:40")
    monkeypatch.setattr(apply_embed, "device_of", lambda _: torch.device(device))
    monkeypatch.setattr(apply_embed, "features", features)
    rows = np.resize(opened.rows, 1100)
    assert len(vectors_of(encoder, encoder, encoder, opened, rows)) == 1100 - 256
    assert seen == [batches]
    assert batches_made == [256] * 4 + [76]


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_a_gpu_copies_views_from_pinned_memory(
    device: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[bool] = []

    class Noted(loader.Loader):
        def __init__(self, *given: Any, pin: bool = False, **how: Any) -> None:
            pinned.append(pin)
            super().__init__(*given, pin=pin, **how)

    monkeypatch.setattr(train_features, "Loader", Noted)
    source, encoder = open_source("synthetic:5"), load_encoder(model)
    views = _as_they_come(source, range(5), encoder, [], torch.device(device))
    assert sum(len(each) for each in views) == 5
    assert pinned == [device == "cuda"]


def test_data_of_another_kind_are_refused_before_any_are_read(model: Path, tmp_path: Path) -> None:
    vectors, tokens = np.zeros((4, 5), np.float32), np.zeros((4, 5), np.int64)
    save_encoder(build_encoder("mlp", 7), tmp_path / "mlp")
    save_encoder(build_encoder("sequence", 5), tmp_path / "sequence")
    for given, data, said in (
        (model, vectors, "are vectors, and the encoder conv takes images"),
        (model, tokens, "are tokens, and the encoder conv takes images"),
        (tmp_path / "mlp", "synthetic:4", "are images, and the encoder mlp takes vectors"),
        (tmp_path / "mlp", vectors, "have 5 features, and the encoder mlp takes 7"),
        (tmp_path / "sequence", vectors, "are vectors, and the encoder sequence takes tokens"),
    ):
        with pytest.raises(DataError, match=said):
            embed(given, data)
        with pytest.raises(DataError, match=said):
            open_for(load_encoder(given), data)


def test_of_large_images_fewer_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, held = Cache.of, list[int]()

    def seen(images: list[np.ndarray]) -> Cache:
        held.append(len(images))
        return kept(images)

    monkeypatch.setattr(Cache, "of", seen)
    images = [np.zeros((9, 9, 3), dtype=np.uint8)] * 70
    save_encoder(build_encoder("pixels", 448), tmp_path / "encoder")
    assert len(apply_embed.embed(tmp_path / "encoder", images).vectors) == 70
    assert held == [64, 6]
