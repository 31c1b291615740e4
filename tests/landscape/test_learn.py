"""The loop on vectors: corruption as planned, closed forms reached, the same for the same seed."""

from typing import Any

import pytest
import torch

from erg.landscape import worlds
from erg.landscape.learn import learn, method
from erg.methods.kmeans import KMeans


def test_kmeans_ends_where_lloyd_stands_still() -> None:
    points = worlds.mixture(300)
    model = learn(method("KMeans", 2, k=5), points, steps=200, batch=100)
    assert isinstance(model, KMeans)
    w = model.prototypes.detach()
    nearest = [min(range(5), key=lambda k: float((y - w[k]).square().sum())) for y in points]
    for k in range(5):
        held = points[[i for i, of in enumerate(nearest) if of == k]]
        assert torch.allclose(held.mean(dim=0), w[k], atol=1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> dict[str, Any]:
        model = method("DenoisingAutoencoder", 2, seed=seed, encoder="mlp", noise=0.2)
        return learn(model, worlds.moons(100), steps=5, batch=50, seed=seed).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_who_watches_sees_every_step_in_evaluation_mode() -> None:
    model: Any = method("Autoencoder", 2, encoder="mlp", dim=1)
    seen: list[tuple[int, bool, float]] = []

    def look(done: int) -> None:
        seen.append((done, model.training, float(model.squeeze.weight.detach().sum())))

    learn(model, worlds.moons(64), steps=3, batch=32, watch=look)
    assert [(done, training) for done, training, _ in seen] == [(i, False) for i in range(4)]
    assert len({value for _, _, value in seen}) > 1
    assert not model.training


def test_who_watches_sees_closed_forms_before_they_are_made() -> None:
    model: Any = method("PCA", 2, k=1)
    means: list[float] = []
    learn(
        model, worlds.moons(64) + 1, steps=1, batch=64,
        watch=lambda _: means.append(float(model.mean.sum())),
    )  # fmt: skip
    assert means[0] == 0
    assert means[1] == pytest.approx(float((worlds.moons(64) + 1).mean(dim=0).sum()), rel=1e-4)
