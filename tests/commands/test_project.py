"""erg project, from the outside, on digits."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.apply.embed import embed
from erg.commands.options import beside
from erg.commands.project import (
    COLOURS,
    OTHERS,
    UNLABELLED,
    _same_label,
    by_autoencoder,
    coloured,
    drawn,
    main,
)
from erg.encoders import build_encoder, save_encoder


def test_four_maps_are_drawn_and_judged(shared_data: Path, tmp_path: Path) -> None:
    save_encoder(build_encoder("pixels", 28, side=7), tmp_path / "encoder")
    found = embed(tmp_path / "encoder", str(shared_data / "mnist_test.parquet"), label="label")
    found[:300].save(tmp_path / "vectors.parquet")
    out = tmp_path / "maps.png"
    arguments = [str(tmp_path / "vectors.parquet"), "--out", str(out), "--steps", "200"]
    assert main([*arguments, "--items", "200"]) == 0
    with Image.open(out) as picture:
        assert picture.width == 840
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["items"] == 200
    maps = told["maps"]
    assert list(maps) == ["PCA", "t-SNE", "MDS", "autoencoder"]
    best = max(maps, key=lambda name: maps[name]["trustworthiness"])
    assert best == "t-SNE"
    assert maps["MDS"]["shepard"] > maps["PCA"]["shepard"]
    assert maps["t-SNE"]["nearest_label"] > maps["PCA"]["nearest_label"] > 0.1


def test_no_two_classes_look_like_one() -> None:
    """Thirteen classes, the first the largest, and an item without a label."""
    names = [f"class {i:02d}" for i in range(13)]
    labels = [name for i, name in enumerate(names) for _ in range(20 - i)] + [""]
    colours, legend = coloured(labels)
    wanted = {name: {COLOURS[i] if i < 11 else OTHERS} for i, name in enumerate(names)}
    wanted[""] = {UNLABELLED}
    pairs = list(zip(labels, colours, strict=True))
    assert {name: {c for n, c in pairs if n == name} for name in wanted} == wanted
    assert [name for name, _ in legend] == [*names[:11], "2 other classes", "no label"]
    assert len({colour for _, colour in legend}) == 13
    assert coloured(["b", "a", "b"])[1] == [("b", COLOURS[0]), ("a", COLOURS[1])]
    assert coloured([]) == ([], [])


def test_every_colour_of_a_map_is_in_its_legend() -> None:
    labels = np.array([f"{i:02d}" for i in range(14)])
    angles = np.linspace(0, 6, 14)
    content = drawn({"one": np.stack([np.cos(angles), np.sin(angles)], axis=1)}, labels)
    with Image.open(BytesIO(content)) as picture:
        top = picture.convert("RGB").crop((0, 0, 420, 448))
        legend = picture.convert("RGB").crop((0, 448, 840, picture.height))
    for colour in (*COLOURS, OTHERS):
        pixel = tuple(bytes.fromhex(colour[1:]))
        for part in (top, legend):
            assert pixel in {found for _, found in part.getcolors(1 << 20)}, colour


def test_numbers_are_not_written_over_the_picture(tmp_path: Path) -> None:
    assert beside(Path("maps.png"), ".json", "the numbers are") == Path("maps.json")
    for name in ("maps.json", "maps.JSON"):
        with pytest.raises(ValueError, match="another ending"):
            main([str(tmp_path / "vectors.parquet"), "--out", str(tmp_path / name)])


def test_what_cannot_be_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    for option, said in (
        (["--out", str(tmp_path)], "is a folder. Name a file"),
        (["--out", "."], "is a folder. Name a file"),
        (["--out", str(tmp_path / "no" / "maps.png")], "there is no folder"),
        (["--seed", "-1"], "--seed should be at least 0"),
    ):
        with pytest.raises(ValueError, match=said):
            main([str(tmp_path / "vectors.parquet"), *option])


def test_an_autoencoder_of_two_units_maps_a_plane_to_itself() -> None:
    random = np.random.default_rng(0)
    flat = random.normal(size=(300, 2))
    axes = np.linalg.qr(random.normal(size=(8, 2)))[0].T
    xy = by_autoencoder((flat @ axes).astype(np.float32), steps=300, seed=0)
    assert xy.shape == (300, 2)
    # Who is near stays near: a smooth map of the plane, whatever its shape.
    from erg.evaluate.trustworthiness import faithful

    assert faithful(flat, xy).trustworthiness > 0.95


def test_the_nearest_on_a_map_is_another_item_with_a_label() -> None:
    """By a naive loop, where labelled items have a copy in the same place and some no label."""
    random = np.random.default_rng(1)
    xy = random.normal(size=(40, 2))
    xy[1:30:2] = xy[:30:2]
    labels = random.choice(np.array(["a", "b"]), size=40)
    labels[30:] = ""
    right = []
    for i in range(40):
        if not labels[i]:
            continue
        others = [j for j in range(40) if j != i and labels[j]]
        apart = [float(np.hypot(*(xy[i] - xy[j]))) for j in others]
        nearest = [j for j, d in zip(others, apart, strict=True) if d == min(apart)]
        assert len(nearest) == 1
        right.append(labels[nearest[0]] == labels[i])
    assert _same_label(xy, labels) == np.mean(right)
