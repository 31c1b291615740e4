"""Anomalies: made-up ones whose place is known, and real ones."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.apply import normal
from erg.apply.anomalies import Anomalies, anomalies, of_embeddings, picture
from erg.apply.embed import Opened, embed, open_for, vectors_of
from erg.apply.windows import localised
from erg.data.cache import Cache
from erg.encoders import build_encoder, save_encoder
from erg.explore.anomaly import Maps, overlaid, places, windows
from erg.methods.pca import PCA
from erg.train.fit import fit
from erg.train.fitted import Fitted
from erg.train.run import Run

SIDE = 32


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def waves(n: int, seed: int, *, spots: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stripes of any phase with a little noise; the last `spots` images have a bright square."""
    random = np.random.default_rng(seed)
    across = np.arange(SIDE) / 4 + random.uniform(0, 6, size=(n, 1))
    images = 128 + 60 * np.sin(across)[:, None, :] + random.normal(0, 4, size=(n, SIDE, SIDE))
    masks = np.zeros((n, SIDE, SIDE), dtype=bool)
    for i in range(n - spots, n):
        y, x = random.integers(0, SIDE - 6, size=2)
        masks[i, y : y + 6, x : x + 6] = True
        images[i][masks[i]] = random.choice([0, 255], size=36)
    grey = images.clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), masks


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """60 images without a label "spot", 15 with it; and the masks."""
    images, masks = waves(75, 1, spots=15)
    path = tmp_path_factory.mktemp("data") / "waves.parquet"
    columns = {
        "image": [png(image) for image in images],
        "label": ["plain"] * 60 + ["spot"] * 15,
        "mask": [png(255 * m.astype(np.uint8)) if m.any() else None for m in masks],
    }
    pq.write_table(pa.table(columns), path)
    return path, masks


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The plane of the normal images: closed form, no network."""
    run = Run(
        method="PCA", method_args={"k": 6}, encoder="pixels", encoder_args={"side": 16},
        image_size=16, batch=32, steps=2, precision="32",
    )  # fmt: skip
    return fit(run, waves(120, 0)[0], out=tmp_path_factory.mktemp("runs") / "pca")


def test_images_that_do_not_belong_have_the_highest_energies(
    fitted: Fitted, table: tuple[Path, np.ndarray]
) -> None:
    found = anomalies(
        fitted, str(table[0]), normal=str(table[0]), label="label", normal_class="plain"
    )
    assert next(iter(found.energies)) == found.first == "energy"
    assert found.normal is not None
    assert found.normal.tolist() == [True] * 60 + [False] * 15
    assert set(found.order()[:15]) == set(range(60, 75))
    scores = found.judged()["energy"]
    assert scores["auroc"].value == scores["aupr"].value == scores["aupr_normal"].value == 1.0
    # The energy is that of the method on the image as evaluation sees it.
    opened, encoder = open_for(fitted.encoder, str(table[0])), fitted.encoder
    y = vectors_of(encoder, encoder, encoder, opened, opened.rows).astype(np.float64)
    plane = fitted.method
    assert isinstance(plane, PCA)
    w, mean = (t.detach().numpy().astype(np.float64) for t in (plane.down, plane.mean))
    rest = (y - mean) - (y - mean) @ w.T @ w
    np.testing.assert_allclose(found.energies["energy"], (rest**2).sum(axis=1), rtol=1e-3)


def test_a_folder_with_an_encoder_has_distances_only(
    table: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    save_encoder(build_encoder("pixels", 16, side=8), tmp_path)
    found = anomalies(tmp_path, str(table[0]), normal=str(table[0]))
    assert "energy" not in found.energies
    assert found.first == "neighbours"
    assert found.normal is None
    assert (found.energies["neighbours"] > 0).all(), "no image is its own neighbour"
    with pytest.raises(ValueError, match="known to be normal"):
        found.judged()
    with pytest.raises(ValueError, match="no energy 'nonsense'"):
        found.order("nonsense")


def test_embeddings_give_the_same_distances(table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    save_encoder(build_encoder("pixels", 16, side=8), tmp_path)
    vectors = embed(tmp_path, str(table[0]), label="label")
    mine = of_embeddings(vectors, vectors, normal_class="plain")
    given = {"normal": str(table[0]), "label": "label", "normal_class": "plain"}
    theirs = anomalies(tmp_path, str(table[0]), **given)
    for name, energy in mine.energies.items():
        np.testing.assert_allclose(energy, theirs.energies[name], rtol=1e-4, atol=1e-5)
    assert mine.judged()["neighbours"] == theirs.judged()["neighbours"]
    with pytest.raises(ValueError, match="same encoder"):
        of_embeddings(vectors, replace(vectors, vectors=vectors.vectors[:, :5]))


def test_maps_say_where(fitted: Fitted, table: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, masks = table
    found = localised(
        fitted, str(path), window=8, stride=4, normal=waves(60, 3)[0],
    )  # fmt: skip
    shown = found.maps["pixels, PCA"]
    assert [m.shape for m in shown] == [(SIDE, SIDE)] * 75
    assert found.energies["pixels, PCA"].tolist() == [float(m.max()) for m in shown]
    given = [m if m.any() else None for m in masks]
    scores = found.located(given)
    assert scores["pixels, PCA"].value > 0.9
    assert scores["pixels, PCA"].low <= scores["pixels, PCA"].value
    # Masks may be finer than maps.
    fine = [None if m is None else np.kron(m, np.ones((2, 2), dtype=bool)) for m in given]
    assert found.located(fine)["pixels, PCA"].value == pytest.approx(
        scores["pixels, PCA"].value, abs=0.02
    )
    rows = picture(found, open_for(fitted.encoder, str(path)), tmp_path / "sheet.webp",
                   by="pixels, PCA", items=6)  # fmt: skip
    assert rows == found.order("pixels, PCA")[:6].tolist()
    with Image.open(tmp_path / "sheet.webp") as sheet:
        assert sheet.size == (8 * 96, 2 * 96)
    with pytest.raises(ValueError, match="3 masks for 75 items"):
        found.located([None] * 3)


def test_a_sound_image_counts_as_many_pixels_as_with_a_black_mask() -> None:
    where = places(4, 4, 2, 2)
    maps = Maps([np.array([0.0, 0, 0, 2]), np.full(4, 3.0)], [where] * 2, 2, [(4, 4)] * 2)
    found = Anomalies(np.arange(2), ["a", "b"], {"pixels": np.zeros(2)}, maps={"pixels": maps})
    mask, black = np.zeros((40, 40), dtype=bool), np.zeros((40, 40), dtype=bool)
    mask[20:, 20:] = True
    assert found.located([mask, None]) == found.located([mask, black])
    assert found.located([mask, None])["pixels"].value < 0.6, "1,600 of 2,800 are above"


def test_what_is_written_is_what_was_found(tmp_path: Path) -> None:
    energies = {"energy": np.array([0.5, 2.0]), "k-means": np.array([1.0, 3.0])}
    found = Anomalies(np.array([3, 5]), ["a", "b"], energies, np.array([True, False]))
    found.save(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.to_pylist() == [
        {"id": 3, "path": "a", "normal": True, "energy": 0.5, "k-means": 1.0},
        {"id": 5, "path": "b", "normal": False, "energy": 2.0, "k-means": 3.0},
    ]
    assert table.schema.metadata[b"format"] == b"1"


def test_what_is_normal_has_to_be_known(
    fitted: Fitted, table: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--normal"):
        anomalies(fitted, str(table[0]))  # trained on an array, which has no name
    with pytest.raises(ValueError, match="Give both"):
        anomalies(fitted, str(table[0]), normal=str(table[0]), label="label")
    given = {"normal": str(table[0]), "label": "label", "normal_class": "plane"}
    with pytest.raises(ValueError, match="0 normal items have the label 'plane'"):
        anomalies(fitted, str(table[0]), **given)


def test_motorbikes_among_other_things(shared_data: Path, tmp_path: Path) -> None:
    """Caltech-101: 140 motorbikes are normal; 60 others and an image of each other class."""
    path = str(shared_data / "caltech101_128.parquet")
    encoder = build_encoder("pixels", 16, side=16, contrast=True)
    save_encoder(encoder, tmp_path)
    opened = open_for(encoder, path, label="label")
    assert opened.labels is not None
    mine = np.flatnonzero(opened.labels == opened.classes.index("Motorbikes"))
    random = np.random.default_rng(0)
    others = [
        int(random.choice(np.flatnonzero(opened.labels == c)))
        for c in range(60, 101)
        if opened.classes[c] not in ("Motorbikes", "BACKGROUND_Google")
    ]
    known, asked = (
        replace(opened, rows=np.array(rows)) for rows in (mine[:140], [*mine[140:], *others])
    )
    given = {"normal": known, "label": "label", "normal_class": "Motorbikes"}
    found = anomalies(tmp_path, asked, **given)
    scores = {name: each["auroc"].value for name, each in found.judged().items()}
    assert scores["neighbours"] > 0.9
    assert scores["pixels, PCA"] > 0.8


def test_windows_are_no_neighbours_of_their_own_image(tmp_path: Path) -> None:
    encoder = build_encoder("pixels", 16, side=8)
    save_encoder(encoder, tmp_path)
    images = waves(6, 5)[0]
    found = localised(tmp_path, images, window=16, stride=8, normal=images)
    at = places(SIDE, SIDE, 16, 8)
    cut = [windows(image, at, 16) for image in images]
    flat = Cache.of([piece for pieces in cut for piece in pieces])
    opened = replace(open_for(encoder, images), images=flat, rows=np.arange(6 * len(at)))
    z = vectors_of(encoder, encoder, encoder, opened, opened.rows).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    image = np.repeat(np.arange(6), len(at))
    wanted = []
    for i in range(len(z)):
        others = sorted((z[i] @ z[j] for j in range(len(z)) if image[j] != image[i]), reverse=True)
        wanted.append(1 - np.mean(others[:5]))
    for i, shown in enumerate(found.maps["neighbours"]):
        mine = np.array(wanted)[image == i]
        np.testing.assert_allclose(shown, overlaid(mine, at, 16, (SIDE, SIDE)), atol=1e-5)


def test_items_that_energies_were_fitted_on_are_known(
    table: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    save_encoder(build_encoder("pixels", 16, side=8), tmp_path)
    path = str(table[0])
    inside = anomalies(tmp_path, path, normal=path, label="label", normal_class="plain")
    assert inside.normal is not None
    assert inside.fitted_on is not None
    assert inside.fitted_on.tolist() == inside.normal.tolist()
    vectors = embed(tmp_path, str(table[0]), label="label")
    again = of_embeddings(vectors[:30], vectors, normal_class="plain")
    assert again.fitted_on is not None
    assert again.fitted_on.tolist() == [True] * 30 + [False] * 45


def test_both_sides_are_seen_with_pixels_of_the_same_size(
    table: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side is chosen by the larger set, not by each for itself."""
    save_encoder(build_encoder("pixels", 16, side=8), tmp_path)
    seen: list[int | None] = []

    def pixels_of(opened: Opened, rows: np.ndarray, size: int, *, most: int) -> np.ndarray:
        seen.append(most)
        return np.random.default_rng(0).normal(size=(len(rows), 6)).astype(np.float32)

    monkeypatch.setattr(normal, "pixels_of", pixels_of)
    anomalies(tmp_path, str(table[0]), normal=waves(20, 3)[0])
    assert seen == [75, 75]


def test_nothing_is_judged_by_items_without_a_label(
    table: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """A third of the plain images lose their labels: they are no anomalies."""
    rows = pq.read_table(table[0])
    labels = [None if i < 20 else label for i, label in enumerate(rows["label"].to_pylist())]
    path = tmp_path / "some.parquet"
    pq.write_table(rows.set_column(1, "label", pa.array(labels)), path)
    save_encoder(build_encoder("pixels", 16, side=8), tmp_path / "encoder")
    given = {"normal": str(table[0]), "label": "label", "normal_class": "plain"}
    found = anomalies(tmp_path / "encoder", str(path), **given)
    whole = anomalies(tmp_path / "encoder", str(table[0]), **given)
    assert [side.sum() for side in found.sides] == [40, 15]
    found.save(tmp_path / "found.parquet")
    written = pq.read_table(tmp_path / "found.parquet")["normal"].to_pylist()
    assert written == [None] * 20 + [True] * 40 + [False] * 15
    assert whole.normal is not None
    kept = replace(
        whole, ids=whole.ids[20:], paths=whole.paths[20:], normal=whole.normal[20:],
        energies={name: e[20:] for name, e in whole.energies.items()}, labelled=None,
        fitted_on=None, trained_on=None,
    )  # fmt: skip
    assert found.judged() == kept.judged()
    # Vectors alone say the same; their items without a label have an empty one.
    vectors = embed(tmp_path / "encoder", str(path), label="label")
    alone = of_embeddings(vectors, vectors, normal_class="plain")
    assert [side.sum() for side in alone.sides] == [40, 15]


def test_items_of_one_kind_judge_nothing() -> None:
    energies = {"energy": np.array([0.5, 2.0, 1.0])}
    known = np.array([True, True, False])
    found = Anomalies(np.arange(3), list("abc"), energies, np.ones(3, dtype=bool), labelled=known)
    with pytest.raises(ValueError, match=r"got 2 and 0 of 3 items"):
        found.judged()


def test_what_the_run_was_trained_on_is_told(tmp_path: Path) -> None:
    """Its own energy is too low for these; distances of a folder's encoder know nothing of it."""
    mine, others = waves(40, 7)[0], waves(20, 8)[0]
    run = Run(
        method="PCA", method_args={"k": 6}, encoder="pixels", encoder_args={"side": 16},
        image_size=16, batch=20, steps=2, precision="32", hold_out=1,
    )  # fmt: skip
    fitted = fit(run, mine, out=tmp_path / "run", observers=())
    said: list[str] = []
    found = anomalies(fitted, np.concatenate([others, mine]), normal=others, tell=said.append)
    assert found.trained_on is not None
    assert not found.trained_on[:20].any()
    assert found.trained_on.sum() == 39
    told = "The run was trained on 39 of the items, without labels: its own energy is too low"
    assert any(line.startswith(told) for line in said)
    said.clear()
    anomalies(fitted, others, normal=mine, tell=said.append)
    assert not any("trained on" in line for line in said)
