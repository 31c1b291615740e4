"""Autoencoder: losses by loops, what each kind of sparseness does, PCA where it is linear."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import Encoder, build_encoder
from erg.methods.autoencoder import Autoencoder
from erg.testing import check_method
from erg.views.plan import LIGHT
from erg.views.types import View, Views

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_images(**arguments: Any) -> Autoencoder:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return Autoencoder(encoder, **{"width": 8, "dim": 12, **arguments}).double()


def pictures(n: int = 4, seed: int = 0) -> View:
    """Pixels in [0, 1], normalised."""
    unit = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return View((unit - mean) / std, mean=MEAN, std=STD)


def batch(y: View) -> Views:
    return Views((y,), torch.arange(len(y)), pairing="alone")


def test_energy_and_loss_are_the_mean_squared_error() -> None:
    method, y = of_images(), pictures()
    made = method.reconstruct(method.encode(y.data))
    wanted = []
    for image, again in zip(y.data.flatten(1).tolist(), made.flatten(1).tolist(), strict=True):
        errors = [(p - q) ** 2 for p, q in zip(image, again, strict=True)]
        wanted.append(sum(errors) / len(errors))
    assert method.energy(None, y).tolist() == pytest.approx(wanted, rel=1e-10)
    loss = method.loss(batch(y), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 4, rel=1e-10)
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters())


def test_with_sigmoid_output_it_is_the_cross_entropy_of_pixels_in_zero_one() -> None:
    method, y = of_images(output="sigmoid"), pictures()
    logits = method.reconstruct(method.encode(y.data))
    wanted = []
    for image, row in zip(y.unit().flatten(1).tolist(), logits.flatten(1).tolist(), strict=True):
        chances = [1 / (1 + math.exp(-a)) for a in row]
        terms = [
            -t * math.log(p) - (1 - t) * math.log(1 - p)
            for t, p in zip(image, chances, strict=True)
        ]
        wanted.append(sum(terms) / len(terms))
    assert method.energy(None, y).tolist() == pytest.approx(wanted, rel=1e-9)


def test_a_sigmoid_output_refuses_data_outside_its_range() -> None:
    """Normalised pixels without the mean and deviation that would undo it."""
    method = of_images(output="sigmoid")
    with pytest.raises(ValueError, match=r"targets in \[0, 1\]"):
        method.loss(batch(replace(pictures(), mean=(), std=())), 0.0)
    vectors = Autoencoder(build_encoder("mlp", 5, width=8, depth=1, dim=4), output="sigmoid")
    with pytest.raises(ValueError, match=r"targets in \[0, 1\]"):
        vectors.energy(None, View(3 * torch.randn(4, 5)))


def test_l1_is_the_sum_of_codes_and_columns_keep_norm_one() -> None:
    method, y = of_images(sparse="l1", weight=0.3), pictures()
    z = method.encode(y.data)
    assert (z >= 0).all()
    norms = method.widen.weight.norm(dim=0)
    assert torch.allclose(norms, torch.ones(12, dtype=torch.float64), atol=1e-6)
    loss = method.loss(batch(y), 0.0)
    wanted = 0.3 * sum(sum(map(abs, row)) for row in z.tolist()) / 4
    assert loss.push["l1"].item() == pytest.approx(wanted)
    with torch.no_grad():
        method.widen.weight.mul_(3)
    method.after_step(0.0)
    assert torch.allclose(method.widen.weight.norm(dim=0), torch.ones(12, dtype=torch.float64))
    plain = of_images()
    before = plain.widen.weight.detach().clone()
    plain.after_step(0.0)
    assert torch.equal(plain.widen.weight, before)


def test_kl_compares_mean_activities_with_the_rate() -> None:
    method, y = of_images(sparse="kl", weight=0.3, rate=0.1), pictures()
    z = method.encode(y.data)
    assert ((z > 0) & (z < 1)).all()
    wanted = 0.0
    for a in (sum(column) / 4 for column in z.T.tolist()):
        wanted += 0.1 * math.log(0.1 / a) + 0.9 * math.log(0.9 / (1 - a))
    loss = method.loss(batch(y), 0.0)
    assert loss.push["activity"].item() == pytest.approx(0.3 * wanted)


def test_top_k_keeps_the_largest() -> None:
    method, y = of_images(sparse="top-k", active=3), pictures()
    z = method.encode(y.data)
    full = method.squeeze(method.encoder(y.data)).relu()
    for row, wanted in zip(z.tolist(), full.tolist(), strict=True):
        kept = sorted(range(12), key=lambda k: -wanted[k])[:3]
        assert row == [value if k in kept else 0.0 for k, value in enumerate(wanted)]
    z.sum().backward()
    assert method.squeeze.weight.grad is not None


@pytest.mark.parametrize("sparse", ["l1", "kl"])
def test_training_with_the_penalty_makes_codes_sparser(sparse: Any) -> None:
    activities = []
    for weight in (0.0, 3.0):
        method = of_images(sparse=sparse, weight=weight)
        optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
        for _ in range(30):
            optimiser.zero_grad()
            method.loss(batch(pictures()), 0.0).total.backward()
            optimiser.step()
            method.after_step(0.0)
        activities.append(method.encode(pictures().data).mean().item())
    assert activities[1] < 0.5 * activities[0]


class Linear(Encoder):
    """As few features as asked, a linear function of a vector."""

    mean, std = (), ()

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.name, self.image_size, self.dim = "linear", features, dim
        self.layer = nn.Linear(features, dim)

    def forward(self, data: Tensor) -> Tensor:
        return self.layer(data)


def test_a_linear_one_misses_what_pca_misses() -> None:
    """The sum of the variances left out, over d (Baldi & Hornik 1989)."""
    y = drawn(200, 6) / torch.arange(1, 7) + 2
    torch.manual_seed(0)
    method = Autoencoder(Linear(6, 2)).double()
    method.decoder = nn.Linear(2, 6).double()
    optimiser = torch.optim.LBFGS(method.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        total = method.loss(batch(View(y)), 0.0).total
        total.backward()
        return total

    optimiser.step(step)
    left = torch.linalg.eigvalsh(torch.cov(y.T, correction=0))[:4].sum().item() / 6
    assert method.loss(batch(View(y)), 0.0).total.item() == pytest.approx(left, rel=1e-4)


def test_a_code_as_wide_as_the_data_can_learn_the_identity() -> None:
    """Over-complete without sparseness: F becomes low everywhere, which is the thing to avoid."""
    torch.manual_seed(0)
    encoder = Linear(4, 4)
    method = Autoencoder(encoder, dim=8).double()
    method.decoder = nn.Identity()
    with torch.no_grad():
        inverse = torch.linalg.pinv(method.squeeze.weight @ encoder.layer.weight)
        method.widen.weight.copy_(inverse)
        zero = method.squeeze(method.encoder(torch.zeros(1, 4, dtype=torch.float64)))
        method.widen.bias.copy_(-(zero @ inverse.T)[0])
    far = View(100 * drawn(9, 4))
    assert method.energy(None, far).max().item() < 1e-12


def test_vectors_and_plan() -> None:
    method = Autoencoder(build_encoder("mlp", 5, width=8, depth=1, dim=4), dim=3).double()
    y = drawn(6, 5)
    assert method.encode(y).shape == (6, 3)
    assert method.reconstruct(method.encode(y)).shape == (6, 5)
    assert of_images().encode(pictures().data).shape == (4, 12)
    assert Autoencoder(build_encoder("conv", 16, width=8, stages=2)).squeeze.out_features == 16
    plan = of_images(crop=0.7).plan()
    assert plan.main == (replace(LIGHT, crop=(0.7, 1.0)),)
    assert plan.pairs == "alone"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sparse": "top-k", "active": 13}, r"active should be 1 to 12, .* \(got 13\)"),
        ({"sparse": "kl", "rate": 1.0}, r"rate is a mean activation in \(0, 1\) \(got 1.0\)"),
    ],
)
def test_impossible_sparseness_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        of_images(**arguments)


@pytest.mark.parametrize("sparse", ["l1", "kl", "top-k"])
def test_sparse_codes_keep_the_contract(sparse: str) -> None:
    arguments = {"sparse": sparse, "active": 4, "width": 8, "output": "sigmoid"}
    check_method(Autoencoder, arguments=arguments)
