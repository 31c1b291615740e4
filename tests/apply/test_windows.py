"""Energies of windows, a few at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from erg.apply import normal, windows
from erg.apply.embed import Opened, open_for
from erg.apply.windows import localised
from erg.encoders import build_encoder, save_encoder
from erg.train.checkpoint import state_hash

NORMAL, ASKED = (
    np.random.default_rng(seed).integers(0, 256, size=(5, 12, 16, 3), dtype=np.uint8)
    for seed in (0, 1)
)
WHERE = {"window": 8, "stride": 4}
"""Six windows of each image."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_encoder(build_encoder("pixels", 8, side=4), tmp_path)
    return tmp_path


def test_windows_are_looked_at_a_few_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = localised(folder, ASKED, normal=NORMAL, **WHERE)
    seen: list[tuple[int, int]] = []

    def look(used: normal.Used, opened: Opened, most: int) -> normal.Looks:
        seen.append((len(opened.rows), most))
        return normal.looked(used, opened, most)

    monkeypatch.setattr(windows, "looked", look)
    monkeypatch.setattr(windows, "WINDOWS_AT_ONCE", 4)
    monkeypatch.setattr(windows, "IMAGES_AT_ONCE", 2)
    parts = localised(folder, ASKED, normal=NORMAL, **WHERE)
    # Normal ones two images at a time, the others four windows of these at most; pixels of all are
    # of one size, whatever their number.
    assert [n for n, _ in seen] == [12, 12, 6, 4, 4, 4, 4, 4, 4, 4, 2]
    assert {most for _, most in seen} == {windows.WINDOWS}
    assert [m.shape for m in parts.maps["neighbours"]] == [(12, 16)] * 5
    for name in ("neighbours", "pixels, PCA"):  # the others draw at random from rows in their order
        np.testing.assert_allclose(
            parts.energies[name], whole.energies[name], rtol=1e-3, atol=1e-5
        )  # fmt: skip


def test_a_few_windows_of_many_normal_ones_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def look(used: normal.Used, opened: Opened, most: int) -> normal.Looks:
        seen.append(len(opened.rows))
        return normal.looked(used, opened, most)

    monkeypatch.setattr(windows, "looked", look)
    monkeypatch.setattr(windows, "WINDOWS", 10)
    monkeypatch.setattr(windows, "IMAGES_AT_ONCE", 2)
    localised(folder, ASKED, normal=NORMAL, **WHERE)
    assert seen[:3] == [4, 4, 2]  # of 12, 12 and 6


def test_vectors_of_whole_images_are_not_taken_for_those_of_windows(folder: Path) -> None:
    used = normal.Used.of(folder)
    opened = open_for(used.encoder, ASKED)
    known = {state_hash(used.module): np.zeros((len(ASKED), used.encoder.dim), dtype=np.float32)}
    found = localised(folder, replace(opened, known=known), normal=NORMAL, **WHERE)
    wanted = localised(folder, opened, normal=NORMAL, **WHERE)
    for name, energy in wanted.energies.items():
        assert np.array_equal(found.energies[name], energy)


def test_vectors_have_no_windows(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 48)).astype(np.float32)
    save_encoder(build_encoder("identity", 48), tmp_path)
    with pytest.raises(ValueError, match="vectors have no windows"):
        localised(tmp_path, vectors, normal=vectors, **WHERE)
