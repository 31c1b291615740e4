"""Fine-tuning: draws of labels, exact repeats, few labels of MNIST."""

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erg.apply import finetune as apply_finetune
from erg.apply.embed import Opened, open_for, vectors_of
from erg.apply.finetune import (
    Tuning,
    _drawing,
    afresh,
    few,
    finetune,
    projector_afresh,
    right,
)
from erg.classifiers import first_layers
from erg.encoders import Encoder, build_encoder
from erg.evaluate.linear import fit_probe
from erg.parts.heads import mlp
from erg.train.fit import fit
from erg.train.run import Optimiser, Run
from erg.views.plan import WHOLE, Augmentation, two_views

SMALL = {"width": 8, "stages": 3}


@pytest.fixture(scope="module")
def shapes() -> tuple[Encoder, Opened]:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, **SMALL).eval()
    return encoder, open_for(encoder, "synthetic:160", label="texture")


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def test_few_takes_as_many_of_every_class_and_more_include_fewer(
    shapes: tuple[Encoder, Opened],
) -> None:
    _, opened = shapes
    assert opened.labels is not None
    rows = opened.rows[20:]
    small, large = few(opened, rows, 3, seed=1), few(opened, rows, 6, seed=1)
    counts = np.bincount(opened.labels[small], minlength=len(opened.classes))
    assert (counts == 3).all()
    assert {*small} < {*large} <= {*rows}
    assert np.array_equal(small, few(opened, rows[::-1].copy(), 3, seed=1))
    assert not np.array_equal(small, few(opened, rows, 3, seed=2))
    assert np.array_equal(few(opened, rows, 1000), rows)
    none = replace(opened, labels=np.full_like(opened.labels, -1))
    with pytest.raises(ValueError, match="of each of 0 classes"):
        few(none, rows, 3)


def test_it_starts_as_the_probe_of_what_is_kept_of_the_projector(
    shapes: tuple[Encoder, Opened],
) -> None:
    encoder, opened = shapes
    assert opened.labels is not None
    rows, others = opened.rows[:100], opened.rows[100:]
    torch.manual_seed(1)
    kept = first_layers(mlp(encoder.dim, 12, 6), 1).eval()
    before = weights(kept)
    frozen = Tuning(steps=1, batch=1000, lr=0.0)
    model = finetune(encoder, opened, rows, frozen, projector=kept)
    assert model.head.in_features == 12
    assert all(torch.equal(a, b) for a, b in zip(before, weights(kept), strict=True))
    whole = torch.nn.Sequential(encoder, kept)
    fit, ask = (vectors_of(whole, whole, encoder, opened, each) for each in (rows, others))
    wanted = fit_probe(fit, opened.labels[rows]).logits(ask)
    with torch.no_grad():
        found = model.head(torch.from_numpy(ask)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    fresh = projector_afresh(kept, seed=3)
    assert not torch.equal(fresh[0].weight, kept[0].weight)
    assert torch.equal(fresh[0].weight, projector_afresh(kept, seed=3)[0].weight)


def test_it_starts_as_the_probe_of_the_encoder(shapes: tuple[Encoder, Opened]) -> None:
    """Learning rates of zero leave the linear layer as it started."""
    encoder, opened = shapes
    assert opened.labels is not None
    rows, others = opened.rows[:100], opened.rows[100:]
    frozen = Tuning(steps=1, batch=1000, lr=0.0)
    model = finetune(encoder, opened, rows, frozen)
    fit, ask = (vectors_of(encoder, encoder, encoder, opened, each) for each in (rows, others))
    wanted = fit_probe(fit, opened.labels[rows]).logits(ask)
    with torch.no_grad():
        found = model.head(torch.from_numpy(ask)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_the_encoder_given_is_not_changed_and_its_copy_learns(
    shapes: tuple[Encoder, Opened],
) -> None:
    encoder, opened = shapes
    assert opened.labels is not None
    before = weights(encoder)
    rows = opened.rows[opened.labels != 2][:64]
    made = finetune(encoder, opened, rows, Tuning(steps=3, batch=16))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(encoder), strict=True))
    present = {opened.classes[c] for c in opened.labels[rows]}
    assert made.classes == tuple(name for name in opened.classes if name in present)
    assert opened.classes[2] not in made.classes
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(made.encoder), strict=True)]
    assert all(moved)


def test_it_learns_what_it_is_shown(shapes: tuple[Encoder, Opened]) -> None:
    """Labels that follow from nothing are learned by heart, which a probe cannot."""
    encoder, opened = shapes
    random = np.random.default_rng(0)
    noise = replace(opened, labels=random.integers(0, 2, size=len(opened.manifest)))
    rows = opened.rows[:48]
    same = Tuning(steps=120, batch=48, lr=1e-2, views=WHOLE, weight_decay=0.0)
    before = finetune(encoder, noise, rows, replace(same, steps=1, lr=0.0))
    after = finetune(encoder, noise, rows, same)
    assert right(after, noise, rows).mean() > 0.95 > right(before, noise, rows).mean()


def test_the_same_arguments_give_the_same_weights(shapes: tuple[Encoder, Opened]) -> None:
    encoder, opened = shapes
    state = torch.get_rng_state()
    runs = [
        weights(finetune(encoder, opened, opened.rows[:40], Tuning(steps=2, batch=8, seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert torch.equal(state, torch.get_rng_state()), "nobody else's random numbers are used up"


def test_what_interrupts_it_leaves_no_threads(shapes: tuple[Encoder, Opened]) -> None:
    encoder, opened = shapes
    before = threading.active_count()

    def interrupt(done: int, of: int) -> None:
        assert threading.active_count() > before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(encoder, opened, opened.rows[:40], Tuning(steps=2, batch=8), progress=interrupt)
    assert threading.active_count() == before


def test_an_encoder_without_a_learning_rate_stays_as_it_is(
    shapes: tuple[Encoder, Opened],
) -> None:
    """lr 0 leaves the weights, not the running averages, as they were."""
    encoder, opened = shapes
    made = finetune(encoder, opened, opened.rows[:40], Tuning(steps=4, batch=8, lr=0.0))
    for (name, a), b in zip(encoder.named_parameters(), made.encoder.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_right_compares_names_not_numbers(shapes: tuple[Encoder, Opened]) -> None:
    encoder, opened = shapes
    assert opened.labels is not None
    model = finetune(encoder, opened, opened.rows[:64], Tuning(steps=5, batch=16))
    found = right(model, opened, opened.rows)
    order = np.argsort([-i for i in range(len(opened.classes))])
    back = np.argsort(order)
    other = replace(
        opened, labels=back[opened.labels], classes=tuple(opened.classes[i] for i in order)
    )
    assert np.array_equal(found, right(model, other, opened.rows))
    assert 0 < found.mean() < 1


def test_afresh_is_the_same_architecture_with_other_weights() -> None:
    encoder = build_encoder("conv", 16, **SMALL)
    one, same, other = (afresh(encoder, seed=seed) for seed in (1, 1, 2))
    assert one.arguments == encoder.arguments
    first = [next(iter(e.parameters())) for e in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Tuning(steps=0)


def test_few_labels_of_mnist(shared_data: Path, tmp_path: Path) -> None:
    """Pretrained on 5,000 images without labels, the network needs fewer with labels."""
    opened = open_for(
        build_encoder("conv", 28, **SMALL), str(shared_data / "mnist_train10k.parquet"),
        label="label",
    )  # fmt: skip
    test = opened.rows[-1500:]
    crop = Augmentation(crop=(0.3, 1.0), flip=0.0)  # digits are not those of a mirror
    run = Run(
        method="SimCLR", method_args={"hidden": 64, "dim": 32}, encoder="conv",
        encoder_args={"width": 16, "stages": 3}, image_size=28, batch=256, steps=100,
        plan=two_views(crop), optimiser=Optimiser(lr=3e-3, weight_decay=1e-4), precision="32",
    )  # fmt: skip
    images = opened.images.pixels(opened.rows[:5000])  # type: ignore[union-attr]
    array = np.stack([images.image(i) for i in range(5000)])
    encoder = fit(run, array, tmp_path / "run", observers=()).encoder
    for size in (10, 50):
        rows = few(opened, opened.rows[:5000], size)
        tuning = Tuning(steps=60, views=replace(crop, crop=(0.5, 1.0)))
        scratch = replace(tuning, lr=1e-2)  # 0.003 and 0.001 were worse
        ours = right(finetune(encoder, opened, rows, tuning), opened, test).mean()
        theirs = right(finetune(afresh(encoder), opened, rows, scratch), opened, test).mean()
        assert ours > theirs + 0.05, f"{ours}, {theirs} with {size} labels of each"


def test_what_starts_afresh_is_where_the_other_is(shapes: tuple[Encoder, Opened]) -> None:
    encoder, _ = shapes
    fresh = afresh(copy.deepcopy(encoder).to("meta"))
    assert {tensor.device.type for tensor in fresh.state_dict().values()} == {"meta"}
    assert (fresh.mean, fresh.std, fresh.training) == (encoder.mean, encoder.std, False)


@pytest.mark.parametrize(("device", "kept"), [("cpu", []), ("mps", []), ("cuda:1", ["cuda:1"])])
def test_no_generator_is_kept_but_that_of_the_device(
    device: str, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking those of all GPUs would start each of them."""
    asked: list[list[torch.device]] = []
    fork = torch.random.fork_rng

    def noted(devices: list[torch.device]) -> Any:
        asked.append(devices)
        return fork([])

    state = torch.get_rng_state()
    monkeypatch.setattr(torch.random, "fork_rng", noted)
    with _drawing(3, torch.device(device)):
        drawn = torch.rand(2)
    assert asked == [[torch.device(name) for name in kept]]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(3)))


def test_views_that_are_made_ahead_teach_the_same(
    shapes: tuple[Encoder, Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, opened = shapes
    quick, before = Tuning(steps=3, batch=8), threading.active_count()
    taught = []
    for depth in (0, 2):
        monkeypatch.setattr(apply_finetune, "depth_for", lambda _, depth=depth: depth)
        taught.append(weights(finetune(encoder, opened, opened.rows[:40], quick)))
    assert all(torch.equal(a, b) for a, b in zip(*taught, strict=True))
    assert threading.active_count() == before
