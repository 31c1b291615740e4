"""Health is seen, said in words, and changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from erg.data.cache import Cache
from erg.data.loader import Loader
from erg.train import features as embedding
from erg.train import health as looking
from erg.train.checkpoint import state_hash
from erg.train.features import at_once
from erg.train.health import Health, Watched, energies, in_words
from erg.train.run import Run
from erg.views.plan import whole


@pytest.fixture
def watched() -> tuple[Run, Watched]:
    random = np.random.default_rng(0)
    images = Cache.of(list(random.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)))
    run = Run(method="SimCLR", encoder="conv", image_size=32)
    encoder = run.build().encoder
    loader = Loader(
        images, np.arange(24), run.build().plan(), batch=8, seed=0, image_size=32,
        mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    labels = np.arange(40) % 2
    return run, Watched(loader, np.arange(24, 40), labels, torch.device("cpu"), None, 100)


def test_looking_changes_nothing(watched) -> None:
    run, what = watched
    method = run.build().train()
    method.projector.eval()  # a mode someone chose stays
    before = state_hash(method)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    health = Health()
    health.start(what)
    seen = health.look(method, 0)
    assert torch.equal(torch.rand(3), expected), "the generator of training moved"
    assert state_hash(method) == before
    assert method.training
    assert not method.projector.training
    assert set(seen) >= {"kind", "std", "rank", "auroc", "knn"}


def test_copies_do_not_vote_for_each_other(watched) -> None:
    """Every image twice and in a class of its own: only its copy could say which."""
    run, what = watched
    twice = replace(what, held=np.tile(np.arange(24, 32), 2), labels=np.arange(40))
    for contents, right in ((None, 1.0), (np.tile(np.arange(8), 2), 0.0)):
        health = Health(neighbours=1)
        health.start(replace(twice, contents=contents))
        assert health.look(run.build(), 0)["knn"] == right


def test_of_large_images_few_are_looked_at_at_once(
    watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = (0.5,) * 3
    few = [at_once(512, side, rgb) for side in (32, 224, 448, 8192)]
    assert few == [512, 512, 128, 4]
    assert at_once(512, 100_000, ()) == 512, "vectors have so many features, and no pixels"

    _, what = watched
    asked: list[tuple[int, int]] = []

    def five(most: int, image_size: int, mean: tuple[float, ...]) -> int:
        asked.append((most, image_size))
        return 5

    monkeypatch.setattr(looking, "at_once", five)
    monkeypatch.setattr(embedding, "at_once", five)
    health = Health()
    health.start(what)
    assert len(health.held_views()) == 5
    loader = what.loader
    made = embedding.whole_images(
        loader.images, what.held, image_size=32, mean=loader.mean, std=loader.std
    )
    assert [len(views) for views in made] == [5, 5, 5, 1]
    assert asked == [(256, 32)] * 2


def test_the_same_look_twice_is_the_same(watched) -> None:
    run, what = watched
    method = run.build()
    health = Health()
    health.start(what)
    assert health.look(method, 0) == health.look(method, 0)


def test_when_it_looks(watched) -> None:
    _, what = watched
    health = Health(looks=4)
    health.start(what)
    assert [step for step in range(101) if health.due(step)] == [0, 25, 50, 75, 100]


def test_a_constant_encoder_is_called_collapsed(watched) -> None:
    run, what = watched
    method = run.build()
    health = Health()
    health.start(what)
    assert "warning" not in health.look(method, 0)
    with torch.no_grad():
        for name, p in method.encoder.named_parameters():
            p.zero_()
            if name.endswith("7.bias"):
                p.fill_(1.0)
    seen = health.look(method, 50)
    assert seen["std"] == pytest.approx(0, abs=1e-6)
    assert "Collapse" in seen["warning"]


def test_codes_that_are_all_equal_are_called_collapsed(watched) -> None:
    """The encoder keeps its spread and rank; the loss stands at the logarithm of k."""
    run, what = watched
    method = replace(run, method="SwAV", method_args={"prototypes": 8, "small_crops": 0}).build()
    health = Health()
    health.start(what)
    assert "warning" not in health.look(method, 0)
    assert "warning" not in health.look(method, 10)
    with torch.no_grad():
        method.projector[-1].weight.zero_()
        method.projector[-1].bias.fill_(1.0)
    seen = health.look(method, 50)
    assert seen["warning"].startswith("Collapse: the energies of all pairs are almost the same")


def test_words() -> None:
    first = {"std": 0.5, "rank": 30.0, "auroc": 0.6}
    assert in_words({"std": 0.6, "rank": 40.0, "auroc": 0.9}, first, 10) is None
    assert "Collapse" in str(in_words({"std": 0.01, "rank": 5.0, "auroc": 0.5}, first, 10))
    assert "Dimensional" in str(in_words({"std": 0.5, "rank": 1.2, "auroc": 0.5}, first, 10))


def test_an_encoder_gone_bad_is_said_and_looking_goes_on(watched) -> None:
    run, what = watched
    method = run.build()
    health = Health()
    health.start(what)
    health.look(method, 0)
    with torch.no_grad():
        next(method.encoder.parameters()).fill_(float("nan"))
    assert "no longer finite" in health.look(method, 8)["warning"]


def test_energies_of_a_method_that_knows_the_answer() -> None:
    """K-means whose prototypes are the images: F is 0 on them and large off them."""
    random = np.random.default_rng(0)
    images = Cache.of(list(random.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)))
    method = Run(method="KMeans", method_args={"k": 8}, encoder="pixels", image_size=32).build()
    loader = Loader(
        images, np.arange(8), whole(), batch=8, seed=0, image_size=32,
        mean=method.encoder.mean, std=method.encoder.std,
    )  # fmt: skip
    views = loader.make(np.arange(8), epoch=0)
    with torch.no_grad():
        method.prototypes.copy_(method.encoder(views.main[0].data))
    matched, mismatched = energies(method, views, torch.device("cpu"), None)
    assert matched.shape == (8,)
    assert mismatched.shape == (16,)
    assert matched.max() < 1e-2 < mismatched.min()
