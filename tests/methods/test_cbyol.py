"""C-BYOL: its golden residual, a loop over images, BYOL without a price."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.byol import BYOL
from erg.methods.cbyol import CBYOL
from erg.parts.teacher import Teacher
from erg.parts.von_mises_fisher import tabulated
from erg.schedule import Constant
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, SIMCLR_SMALL
from erg.views.types import View, Views


def views(b: int = 6, step: int = 2) -> Views:
    generator = torch.Generator().manual_seed(0)
    main = [View(torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64)) for _ in "xy"]
    return Views(tuple(main), torch.arange(b), step=step)


def a_method(**arguments: Any) -> CBYOL:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"hidden": 9, "dim": 5, "concentration": 40.0}
    method = CBYOL(encoder, **{**small, **arguments}).double()
    with torch.no_grad():  # another network than the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def drawn(method: CBYOL, mu: Tensor, batch: Views, what: str) -> Tensor:
    return method.around.drawn(mu, batch.index, purpose=what, step=batch.step)


def on_sphere(dim: int, concentration: float) -> CBYOL:
    encoder = build_encoder("identity", dim)
    return CBYOL(encoder, hidden=2, dim=dim, concentration=concentration).double()


@pytest.mark.parametrize(("dim", "k"), [(256, 16384), (3, 16)])
def test_residual_is_golden(golden, dim: int, k: int) -> None:
    method = on_sphere(dim, k)
    method.explainer = nn.Sequential()
    mu, b = torch.zeros(2, 1, dim, dtype=torch.float64)
    mu[0, 0], b[0, 0], b[0, 1] = 1.0, 0.5, math.sqrt(0.75)
    found = method.residual(mu, mu, b)
    assert golden.agrees(f"C-BYOL, residual, d {dim}, k_e {k}, k_b 10, z = mu, mu.b 0.5", found[0])


def test_draws_are_those_of_the_image_the_view_and_the_step() -> None:
    method = a_method().train()
    mu = nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    batch, some = views(), torch.tensor([4, 1])
    z = drawn(method, mu, batch, "one")
    assert torch.equal(drawn(method, mu[some], batch.take(some), "one"), z[some])
    assert not torch.allclose(drawn(method, mu, batch, "other"), z)
    assert not torch.allclose(drawn(method, mu, views(step=3), "one"), z)
    assert torch.equal(drawn(method.eval(), mu, batch, "one"), mu)


def test_loss_is_the_loop_over_images() -> None:
    method, batch = a_method(weight=3.0, compression=0.5), views()
    mu = [method.mean(view).detach() for view in batch.main]
    z = [drawn(method, m, batch, f"vMF, view {i}") for i, m in enumerate(mu)]
    y = [nn.functional.normalize(method.teacher(view.data), dim=1) for view in batch.main]
    b = [nn.functional.normalize(method.explainer(t).detach(), dim=1) for t in y]
    log_e, log_b = (tabulated(5, k)[1] for k in (40.0, 10.0))
    invariance = residual = 0.0
    for i in (0, 1):
        told = nn.functional.normalize(method.predictor(z[i]).detach(), dim=1)
        for n in range(6):
            # told the teacher's other view, explained by its own
            invariance += float((told[n] - y[1 - i][n]).square().sum()) / 6
            residual += (40 * float(mu[i][n] @ z[i][n]) + log_e) / 6
            residual -= (10 * float(b[i][n] @ z[i][n]) + log_b) / 6
    loss = method.loss(batch, 0.0)
    assert loss.push == {}
    assert loss.pull["invariance"].item() == pytest.approx(3 * invariance, rel=1e-6)
    assert loss.pull["compression"].item() == pytest.approx(0.5 * residual, rel=1e-6)


def test_without_compression_and_noise_it_is_weight_times_byol() -> None:
    class Direction(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return nn.functional.normalize(z, dim=1)

    method = a_method(weight=2.0, compression=0.0)
    byol = BYOL(method.encoder, hidden=4, dim=5).double()
    byol.projector = method.projector
    byol.predictor = nn.Sequential(method.stochastic, Direction(), method.predictor)
    byol.teacher = method.teacher
    batch = views()
    wanted = 2 * byol.eval().loss(batch, 0.0).total
    assert method.eval().loss(batch, 0.0).total.item() == pytest.approx(wanted.item(), rel=1e-12)
    x, y = batch.main
    assert torch.allclose(method.energy(x, y), byol.energy(x, y), atol=1e-12)


def test_only_the_teacher_gets_no_gradient_and_it_follows() -> None:
    method = a_method(momentum=Constant(0.25))
    method.loss(views(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher"), name
    assert isinstance(method.teacher, Teacher)
    slow, fast = next(method.teacher.parameters()), next(method.encoder.parameters())
    wanted = 0.25 * slow + 0.75 * fast
    method.after_step(0.5)
    assert torch.allclose(slow, wanted)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = CBYOL(build_encoder("conv", 128, width=8), hidden=4, dim=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
