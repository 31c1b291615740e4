"""Convolutional sparse coding: sparse coding at all places, loops, and filters found again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg import inference
from erg.encoders import build_encoder
from erg.landscape.learn import learn
from erg.methods.convolutional_sparse_coding import ConvolutionalSparseCoding
from erg.train.run import Optimiser
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_method(rows: int = 6, **arguments: Any) -> ConvolutionalSparseCoding:
    torch.manual_seed(0)
    settings = {"k": 3, "side": 3, "sparsity": 0.2, "iterations": 2000, **arguments}
    return ConvolutionalSparseCoding(build_encoder("identity", rows**2), **settings).double()


def colourful(side: int = 4, **arguments: Any) -> ConvolutionalSparseCoding:
    torch.manual_seed(0)
    settings = {"k": 2, "side": 3, "sparsity": 0.2, "iterations": 2000, **arguments}
    encoder = build_encoder("pixels", 8, side=side)
    return ConvolutionalSparseCoding(encoder, **settings).double()


def at_all_places(method: ConvolutionalSparseCoding) -> Tensor:
    """The filters at every place at which they touch the image, as rows."""
    channels, rows, _ = method.shape
    k, _, side, _ = method.filters.shape
    atoms = []
    for i in range(k):
        for top in range(-side + 1, rows):
            for left in range(-side + 1, rows):
                atom = torch.zeros(channels, rows, rows, dtype=torch.float64)
                for y in range(side):
                    for x in range(side):
                        if 0 <= top + y < rows and 0 <= left + x < rows:
                            # What the code at (top + side - 1, ...) puts there, mirrored.
                            value = method.filters[i, :, side - 1 - y, side - 1 - x]
                            atom[:, top + y, left + x] = value.detach()
                atoms.append(atom.flatten())
    return torch.stack(atoms)


@pytest.mark.parametrize("kind", [a_method, colourful])
def test_it_is_sparse_coding_with_the_filters_at_all_places(kind: Any) -> None:
    method = kind()
    atoms = at_all_places(method)
    y = drawn(4, atoms.shape[1])
    z = inference.ista(y, atoms, 0.2, iterations=4000)
    found = method.infer(y.unflatten(1, method.shape))
    assert found.shape == (4, len(method.filters), *[method.shape[1] + 2] * 2)
    # With more codes than pixels the energy is flat in some directions.
    torch.testing.assert_close(found.flatten(1), z, atol=2e-3, rtol=0)
    made = method.made(found).flatten(1)
    torch.testing.assert_close(made, z @ atoms, atol=1e-3, rtol=0)
    wanted = (y - z @ atoms).square().sum(dim=1) / 2 + 0.2 * z.abs().sum(dim=1)
    energy = method.of_code(y.unflatten(1, method.shape), found)
    assert energy.tolist() == pytest.approx(wanted.tolist(), rel=1e-7)


@pytest.mark.parametrize("kind", [a_method, colourful])
def test_curvature_is_an_upper_bound_and_close_for_grey_images(kind: Any) -> None:
    method = kind(12) if kind is a_method else kind()
    exact = float(inference.largest_eigenvalue(at_all_places(method)))
    bound = float(method.curvature().detach())
    assert exact <= bound <= 1.5 * exact * method.shape[0]


def test_filters_descend_with_the_codes_held_fixed() -> None:
    method, y = a_method(), drawn(5, 36)
    loss = method.loss(Views((View(y),), torch.arange(5), pairing="alone"), 0.0)
    assert (list(loss.pull), loss.push) == (["energy"], {})
    assert loss.total.item() == pytest.approx(method.energy(None, View(y)).mean().item())
    loss.total.backward()
    assert method.filters.grad is not None
    step, before = 1e-5, method.energy(None, View(y)).mean()
    with torch.no_grad():
        method.filters[1, 0, 2, 0] += step
    after = method.energy(None, View(y)).mean()
    wanted = float(method.filters.grad[1, 0, 2, 0])
    assert ((after - before) / step).item() == pytest.approx(wanted, abs=1e-3)


def test_codes_say_how_much_there_is_of_each_filter_wherever_it_is() -> None:
    method = a_method(9, sparsity=0.05)
    z = torch.zeros(2, 3, 11, 11, dtype=torch.float64)
    z[0, 1, 4, 4] = z[1, 1, 6, 5] = 3.0
    vectors = method.encode(method.made(z).flatten(1))
    assert vectors.shape == (2, 3)
    assert vectors.argmax(dim=1).tolist() == [1, 1]
    torch.testing.assert_close(vectors[0], vectors[1])


def test_images_are_centred_by_colour_and_scaled_by_all_pixels() -> None:
    method = colourful()
    features = 3 * drawn(50, 48) + torch.tensor([1.0, 2.0, 4.0]).double().repeat_interleave(16)
    method.after_epoch(features)
    given = (features.unflatten(1, method.shape) - method.mean) / method.scale
    assert given.mean(dim=(0, 2, 3)).abs().max() < 1e-12
    assert float(given.square().mean()) == pytest.approx(1)
    before = method.scale.clone()
    method.after_epoch(2 * features)  # once and for all
    assert torch.equal(method.scale, before)


def test_it_finds_the_filters_that_made_the_images() -> None:
    bar = torch.tensor([[-1.0, 2.0, -1.0]]).expand(3, 3)
    truth = torch.stack([bar, bar.T, torch.eye(3) * 3 - 1])
    truth = truth / truth.flatten(1).norm(dim=1)[:, None, None]
    random = torch.Generator().manual_seed(0)
    z = torch.randn(400, 3, 12, 12, generator=random)
    z = z * (torch.rand(z.shape, generator=random) < 0.02)
    y = torch.nn.functional.conv2d(z, truth[None]).flatten(1)
    # Larger than the true ones, so that a filter that begins one pixel aside has room to fit.
    method = a_method(10, k=4, side=5, sparsity=1.0, iterations=30).float()
    with torch.no_grad():
        start = alike(method.filters[:, 0], truth)
    learn(method, y, steps=150, batch=50, optimiser=Optimiser(lr=5e-2, weight_decay=0.0))
    found = alike(method.filters.detach()[:, 0], truth)
    assert min(found) > 0.95 > 0.9 > min(start)
    norms = method.filters.detach().flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([1] * 4)


def alike(filters: Tensor, truth: Tensor) -> list[float]:
    """For every true filter the largest |cosine| with one that was found, at any shift."""
    found = torch.nn.functional.conv2d(filters[:, None], truth[:, None], padding=2)
    return found.abs().amax(dim=(0, 2, 3)).tolist()


def test_features_that_are_no_square_image_are_refused() -> None:
    with pytest.raises(ValueError, match="needs square images of at least 7 pixels a side"):
        ConvolutionalSparseCoding(build_encoder("identity", 50))
    with pytest.raises(ValueError, match="25 features of identity are not"):
        ConvolutionalSparseCoding(build_encoder("identity", 25))
