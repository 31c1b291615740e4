"""erg anomalies, from the outside, on magnetic tiles."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.apply import anomalies
from erg.commands.anomalies import main, read_masks
from erg.durable import Unwritable
from erg.embeddings import Embeddings
from erg.encoders import build_encoder, save_encoder
from erg.train.fit import fit
from erg.train.run import Run


@pytest.fixture(scope="module")
def tiles(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """50 normal tiles, and 48 of which some are cracked, with masks."""
    folder = tmp_path_factory.mktemp("tiles")
    normal = pq.read_table(shared_data / "mtile_ad_train.parquet").slice(0, 50)
    mixed = pq.read_table(shared_data / "mtile_ad_test.parquet").slice(0, 48)
    pq.write_table(normal, folder / "normal.parquet")
    pq.write_table(mixed, folder / "mixed.parquet")
    return folder / "normal.parquet", folder / "mixed.parquet"


@pytest.fixture(scope="module")
def run(tiles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(
        method="KMeans", method_args={"k": 10}, encoder="pixels", image_size=16, batch=16, steps=6,
        encoder_args={"side": 16}, data=str(tiles[0]), hold_out=1, precision="32",
    )  # fmt: skip
    return fit(run, out=tmp_path_factory.mktemp("runs") / "kmeans", observers=()).folder


def test_images_are_scored_shown_and_written(
    run: Path, tiles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["--label", "label", "--normal-class", "normal"]
    assert main([str(run), str(tiles[1]), *labels, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "AUPR of anomalies" in said
    assert "The most anomalous by energy:" in said
    table = pq.read_table(tmp_path / "a" / "anomalies.parquet")
    assert table.num_rows == 48
    assert {"energy", "neighbours", "pixels, PCA"} <= {*table.column_names}
    told = json.loads((tmp_path / "a" / "anomalies.json").read_text())
    assert told["normal"] == sum(table["normal"].to_pylist())
    for scores in told["scores"].values():
        for score in scores.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    with Image.open(tmp_path / "a" / "anomalies.webp") as sheet:
        assert sheet.size == (768, 4 * 96)


def test_windows_give_maps_that_are_compared_with_masks(
    run: Path, tiles: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = [
        str(run), str(tiles[1]), "--label", "label", "--normal-class", "normal", "--window", "16",
        "--stride", "8", "--masks", "mask", "--out", str(tmp_path / "a"), "--by", "energy",
    ]  # fmt: skip
    assert main(arguments) == 0
    told = json.loads((tmp_path / "a" / "anomalies.json").read_text())
    pixels = {name: each["auroc_pixels"]["value"] for name, each in told["scores"].items()}
    assert max(pixels.values()) > 0.6


def test_masks_are_those_of_the_rows_asked_for(tiles: tuple[Path, Path]) -> None:
    table = pq.read_table(tiles[1])
    found = read_masks(tiles[1], "mask", [5, 0, 7])
    for mask, i in zip(found, (5, 0, 7), strict=True):
        assert (mask is None) == (table["label"][i].as_py() == 0)
        if mask is not None:
            assert mask.dtype == bool
            assert 0 < mask.mean() < 1
    with pytest.raises(ValueError, match="no masks in a column 'nonsense'"):
        read_masks(tiles[1], "nonsense", [0])


def test_embeddings_are_enough(tiles: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    from erg.commands.embed import main as embed

    for name, path in zip(("normal", "mixed"), tiles, strict=True):
        out = str(tmp_path / f"{name}.parquet")
        assert embed([str(run / "encoder"), str(path), "--label", "label", "--out", out]) == 0
    files = [str(tmp_path / "normal.parquet"), str(tmp_path / "mixed.parquet")]
    assert main([*files, "--normal-class", "normal", "--out", str(tmp_path / "a")]) == 0
    table = pq.read_table(tmp_path / "a" / "anomalies.parquet")
    assert table.column_names == ["id", "path", "normal", "neighbours", "Mahalanobis", "k-means"]
    assert not pa.types.is_null(table.schema.field("normal").type)


def test_mistakes_are_told(run: Path, tiles: tuple[Path, Path], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "a")]
    with pytest.raises(ValueError, match="--window"):
        main([str(run), str(tiles[1]), "--masks", "mask", *out])
    with pytest.raises(ValueError, match="no energy 'nonsense'"):
        main([str(run), str(tiles[1]), "--by", "nonsense", *out])
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="--top 0"):
        main([str(run), str(tiles[1]), "--top", "0", *out])
    with pytest.raises(ValueError, match="--stride 4"):
        main([str(run), str(tiles[1]), "--stride", "4", *out])
    Embeddings(np.ones((3, 2)), np.arange(3)).save(tmp_path / "e.parquet")
    files = [str(tmp_path / "e.parquet")] * 2
    for option in (
        ["--window", "16"], ["--stride", "8"], ["--masks", "mask"], ["--label", "label"],
        ["--normal", "there"], ["--top", "32"], ["--method", "mine.py:Mine"],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{option[0]} would change nothing: .* embeddings"):
            main([*files, *option, *out])
    with pytest.raises(ValueError, match=r"--method would change nothing: .* is no run folder"):
        main([str(run / "encoder"), str(tiles[1]), "--method", "mine.py:Mine", *out])
    with pytest.raises(Unwritable, match=r"e\.parquet cannot be written"):
        main([*files, "--out", str(tmp_path / "e.parquet")])


def test_judging_by_what_was_fitted_on_is_said(
    run: Path, tiles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["--label", "label", "--normal-class", "normal", "--out", str(tmp_path / "a")]
    for normal, inside in (([], 0), (["--normal", str(tiles[1])], None)):
        assert main([str(run), str(tiles[1]), *labels, *normal]) == 0
        told = json.loads((tmp_path / "a" / "anomalies.json").read_text())
        inside = told["normal"] if inside is None else inside
        assert told["normal_fitted_on"] == inside
        assert ("look better than they are" in capsys.readouterr().out) is (inside > 0)


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An encoder, and 12 images of noise: the last four with a mask, the first with a black one."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, size=(12, 16, 16, 3), dtype=np.uint8)
    masks: list[dict[str, object] | None] = [None] * 12
    for i in (0, 8, 9, 10, 11):
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[:8, :8] = 255 * (i > 0)
        masks[i] = {"bytes": png(mask), "path": f"{i}.png"}
    columns = {
        "image": [png(image) for image in images],
        "label": ["good"] * 12,
        "mask": masks,
        "black": masks[:1] + [None] * 11,
        "broken": [b"no image"] * 12,
    }
    pq.write_table(pa.table(columns), tmp_path / "images.parquet", row_group_size=5)
    save_encoder(build_encoder("pixels", 8, side=4), tmp_path / "encoder")
    return tmp_path


def asking(folder: Path, *options: str) -> list[str]:
    data = str(folder / "images.parquet")
    return [str(folder / "encoder"), data, "--normal", data, "--out", str(folder / "a"), *options]


def test_masks_alone_say_what_is_normal(small: Path) -> None:
    """As they do in tables of Hugging Face: {bytes, path}."""
    assert main(asking(small, "--window", "8", "--stride", "8", "--masks", "mask")) == 0
    told = json.loads((small / "a" / "anomalies.json").read_text())
    assert (told["normal"], told["anomalous"]) == (8, 4)
    for scores in told["scores"].values():
        assert list(scores) == ["auroc", "aupr", "aupr_normal", "auroc_pixels"]
    written = pq.read_table(small / "a" / "anomalies.parquet")["normal"].to_pylist()
    assert written == [True] * 8 + [False] * 4


def test_masks_that_show_nothing_judge_nothing(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asking(small, "--window", "8", "--stride", "8", "--masks", "black")) == 0
    assert "Masks are white nowhere" in capsys.readouterr().out
    assert not (small / "a" / "anomalies.json").exists()
    written = pq.read_table(small / "a" / "anomalies.parquet")["normal"].to_pylist()
    assert written == [None] * 12


def test_masks_that_cannot_be_read_are_told(small: Path) -> None:
    file = small / "images.parquet"
    assert [mask is None for mask in read_masks(file, "mask", [11, 3, 0])] == [False, True, False]
    for data, column, said in (
        (file, "label", "no encoded images"),
        (file, "broken", "cannot be read: It is not an image"),
        ("synthetic:3", "mask", "it is no table"),
    ):
        with pytest.raises(ValueError, match=said):
            read_masks(data, column, [1])


def test_items_that_are_all_normal_are_ranked(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is judged by them; what was asked for is there all the same."""
    assert main(asking(small, "--label", "label", "--normal-class", "good")) == 0
    said = capsys.readouterr().out
    assert "12 items are known to be normal and 0 not to be" in said
    assert "The most anomalous by neighbours:" in said
    assert not (small / "a" / "anomalies.json").exists()


def test_an_energy_that_is_not_there_costs_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr(anomalies, "anomalies", never)
    for name in ("mahalanobis", "energy"):  # the second is that of a run
        with pytest.raises(ValueError, match=f"no energy '{name}'. There are neighbours, Mahala"):
            main(asking(small, "--by", name))


def test_what_was_found_is_written_before_it_is_drawn(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(anomalies, "picture", fail)
    with pytest.raises(OSError, match="no space"):
        main(asking(small))
    assert pq.read_table(small / "a" / "anomalies.parquet").num_rows == 12


def test_what_the_run_was_trained_on_is_told(
    run: Path, tiles: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, seen in zip(tiles, (True, False), strict=True):
        assert main([str(run), str(data), "--out", str(tmp_path / "a")]) == 0
        assert ("The run was trained on 49 of the items" in capsys.readouterr().out) is seen
