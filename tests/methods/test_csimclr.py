"""C-SimCLR: NT-Xent without a price and noise, a loop over all views, slopes by differences."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.csimclr import CSimCLR
from erg.parts.von_mises_fisher import tabulated
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def pair(x: Tensor, y: Tensor) -> Views:
    return Views((View(x), View(y)), torch.arange(len(x)), step=2)


def images(b: int = 5) -> Views:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, b, 3, 16, 16, generator=generator, dtype=torch.float64)
    return pair(x, y)


def a_method(**arguments: Any) -> CSimCLR:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"hidden": 9, "dim": 5, "concentration": 40.0}
    return CSimCLR(encoder, **{**small, **arguments}).double()


def drawn(method: CSimCLR, mu: Tensor, batch: Views, what: str) -> Tensor:
    return method.around.drawn(mu, batch.index, purpose=what, step=batch.step)


def bare(dim: int, **arguments: Any) -> CSimCLR:
    method = CSimCLR(build_encoder("identity", dim), hidden=2, dim=dim, **arguments).double()
    method.projector = nn.Sequential()
    return method


def test_without_compression_and_noise_it_is_golden_nt_xent(golden) -> None:
    x, y = golden.array("Z1"), golden.array("Z2")
    method = bare(x.shape[1], compression=0.0, backward=10.0).eval()
    assert golden.agrees("NT-Xent, temperature 0.1", method.loss(pair(x, y), 0.0).total)


@pytest.mark.parametrize(("dim", "k"), [(256, 16384), (3, 16)])
def test_residual_is_golden(golden, dim: int, k: int) -> None:
    """That of C-BYOL, whose formula is the same."""
    method = bare(dim, concentration=k)
    mu, b = torch.zeros(2, 1, dim, dtype=torch.float64)
    mu[0, 0], b[0, 0], b[0, 1] = 1.0, 0.5, math.sqrt(0.75)
    name = f"C-BYOL, residual, d {dim}, k_e {k}, k_b 10, z = mu, mu.b 0.5"
    assert golden.agrees(name, method.residual(mu, mu, b)[0])


def test_loss_is_the_loop_over_all_other_views() -> None:
    method, batch = a_method(compression=0.5, backward=7.0), images()
    mu = [method.mean(view).detach() for view in batch.main]
    z = torch.cat([drawn(method, m, batch, f"vMF, view {i}") for i, m in enumerate(mu)]).tolist()
    assert not torch.allclose(torch.tensor(z), torch.cat(mu).float(), atol=1e-2)
    views = torch.cat(mu).tolist()
    log_e, log_b = (tabulated(5, k)[1] for k in (40.0, 7.0))

    def dot(a: list[float], b: list[float]) -> float:
        return sum(s * t for s, t in zip(a, b, strict=True))

    pull = push = residual = 0.0
    for i in range(10):
        other = (i + 5) % 10
        explained = [math.exp(7 * dot(views[j], z[i]) + log_b) for j in range(10)]
        pull -= 7 * dot(views[other], z[i]) / 10
        push += math.log(sum(e for j, e in enumerate(explained) if j != i) / math.exp(log_b)) / 10
        residual += (40 * dot(views[i], z[i]) + log_e - math.log(explained[other])) / 10
    loss = method.loss(batch, 0.0)
    assert loss.pull["alignment"].item() == pytest.approx(pull, rel=1e-6)
    assert loss.pull["compression"].item() == pytest.approx(0.5 * residual, rel=1e-6)
    assert loss.push["repulsion"].item() == pytest.approx(push, rel=1e-6)
    x, y = batch.main
    wanted = [-dot(a, b) for a, b in zip(views[:5], views[5:], strict=True)]
    assert method.energy(x, y).tolist() == pytest.approx(wanted, rel=1e-10)


def test_slopes_are_those_of_differences() -> None:
    method = bare(4, concentration=20.0).train()
    x, y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def total(x: Tensor, y: Tensor) -> Tensor:
        return method.loss(pair(x, y), 0.0).total

    assert torch.autograd.gradcheck(total, (x, y))


def test_in_evaluation_nothing_is_drawn() -> None:
    method, batch = a_method().eval(), images()
    mu = method.mean(batch.main[0])
    assert drawn(method, mu, batch, "a test") is mu
    assert drawn(method.train(), mu, batch, "a test") is not mu


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = CSimCLR(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
