"""What is compared with what."""

from pathlib import Path

import numpy as np
import pytest
import torch

from erg.apply.embed import open_for
from erg.apply.normal import VECTORS, Used, both, check_name, fit_energies, looked, names_of
from erg.encoders import build_encoder, save_encoder
from erg.explore.anomaly import OF_EMBEDDINGS, by_mahalanobis, by_neighbours, by_pca
from erg.train.features import device_of


@pytest.fixture
def used(tmp_path: Path) -> Used:
    save_encoder(build_encoder("pixels", 16, side=4), tmp_path)
    return Used.of(tmp_path)


def test_names_are_those_of_the_energies_in_their_order(used: Used, tmp_path: Path) -> None:
    opened = open_for(used.encoder, "synthetic:20")
    seen = looked(used, opened, 20)
    energies = fit_energies(seen, np.arange(20))(seen, np.arange(20))
    assert list(energies) == names_of(tmp_path, images=True)
    vectors = {VECTORS: seen[VECTORS]}
    alone = fit_energies(vectors, np.arange(20))(vectors, np.arange(20))
    assert list(alone) == names_of(tmp_path, images=False) == list(OF_EMBEDDINGS)
    check_name("Mahalanobis", list(alone))
    with pytest.raises(ValueError, match="no energy 'mahalanobis'"):
        check_name("mahalanobis", list(alone))


def test_energies_are_those_of_vectors_and_of_pixels(used: Used) -> None:
    random = np.random.default_rng(0)
    sides = [
        {name: random.normal(size=(n, 6)).astype(np.float32) for name in ("", "pixels")}
        for n in (30, 10)
    ]
    groups = np.arange(40) // 2
    found = fit_energies(sides[0], groups[:30])(sides[1], groups[25:35])
    near = by_neighbours(sides[0][""], groups=groups[:30])(sides[1][""], groups[25:35])
    assert np.array_equal(found["neighbours"], near)
    assert np.array_equal(found["Mahalanobis"], by_mahalanobis(sides[0][""])(sides[1][""]))
    beaten = by_pca(sides[0]["pixels"])(sides[1]["pixels"])
    assert np.array_equal(found["pixels, PCA"], beaten)


def test_what_was_opened_is_taken_as_it_is(used: Used) -> None:
    opened = open_for(used.encoder, "synthetic:30", label="shape")
    assert opened.labels is not None
    most = int(np.bincount(opened.labels).argmax())
    known, asked = both(used, opened, opened, "shape", opened.classes[most])
    assert asked is opened
    assert known.rows.tolist() == np.flatnonzero(opened.labels == most).tolist()


def test_the_encoder_of_a_folder_is_put_where_it_is_asked_for(tmp_path: Path) -> None:
    save_encoder(build_encoder("conv", 16, width=4, stages=2), tmp_path)
    meta = torch.device("meta")
    assert device_of(Used.of(tmp_path, meta).module) == meta
    assert device_of(Used.of(tmp_path).module) == torch.device("cpu")
