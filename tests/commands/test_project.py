"""erg project, from the outside, on digits."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from erg.apply.embed import embed
from erg.commands.project import _same_label, by_autoencoder, main
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
