"""data2vec: golden numbers, a loop over blocks and patches, and what each side may see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg import energy
from erg.encoders import build_encoder
from erg.methods.data2vec import Data2Vec
from erg.schedule import Constant
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
SIDE, GRID, CELLS = 12, (3, 3), 9


def a_method(**arguments: Any) -> Data2Vec:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    method = Data2Vec(encoder, **{"top": 2, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


def hide(*rows: list[int]) -> Mask:
    hidden = torch.zeros(len(rows), 1, CELLS, dtype=torch.bool)
    for i, row in enumerate(rows):
        hidden[i, 0, row] = True
    return Mask(hidden, GRID)


MASK = hide([0, 2, 3, 5, 7], [1, 2, 4, 6, 8], [4, 5, 6, 7, 8])


def a_view(seed: int = 1, mask: Mask | None = MASK) -> View:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return View(data, mask=mask)


def test_energy_is_golden(golden) -> None:
    """fairseq sums over features and divides by the root of their number."""
    method: Any = a_method()
    method.predict = lambda x: golden.array("Z1")[None]
    method.target = lambda y: energy.layer_normalise(golden.array("Z2"))[None]
    view = View(torch.zeros(1, 3, 8, 8), mask=Mask(torch.ones(1, 1, 4).bool(), (2, 2)))
    found = method.energy(view, view)[0]
    assert golden.agrees("data2vec, beta 2", found)
    assert golden.agrees("data2vec, beta 2, sum over features / sqrt(d)", found * 3**0.5)


def normalised(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    var = sum((v - mean) ** 2 for v in row) / len(row)
    return [(v - mean) / (var + 1e-5) ** 0.5 for v in row]


@pytest.mark.parametrize("top", [1, 3])
def test_loss_is_the_loop_over_patches_and_blocks(top: int) -> None:
    method, view = a_method(top=top, beta=0.5), a_view()
    network: Any = method.teacher.network.network
    behind: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _m, _i, out: behind.append(out))
    with torch.no_grad():
        network(view.data)
    made, wanted = method.predict(view).tolist(), []
    for i in range(3):
        errors = []
        for p in MASK.hidden[i, 0].nonzero().flatten().tolist():
            rows = [normalised(out[i, 1 + p].tolist()) for out in behind[3 - top : 3]]
            target = normalised([sum(column) / top for column in zip(*rows, strict=True)])
            e = [abs(a - b) for a, b in zip(made[i][p], target, strict=True)]
            errors.append(sum(v * v if v < 0.5 else v - 0.25 for v in e) / 16)
        wanted.append(sum(errors) / 5)
    assert method.energy(view, view).tolist() == pytest.approx(wanted, rel=1e-10)
    loss = method.loss(Views((view,), torch.arange(3), pairing="itself"), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 3, rel=1e-10)


def repaint(view: View, hidden: bool) -> View:
    """Other pixels in the hidden (or the visible) patches of every image."""
    where = MASK.hidden[:, 0].reshape(3, 1, *GRID) == hidden
    where = where.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return view.with_data(torch.where(where, a_view(seed=2).data, view.data))


def test_the_student_sees_no_hidden_pixel_and_the_teacher_sees_all() -> None:
    method, view = a_method(), a_view()
    assert torch.equal(method.predict(repaint(view, hidden=True)), method.predict(view))
    assert not torch.allclose(method.predict(repaint(view, hidden=False)), method.predict(view))
    for hidden in (True, False):
        assert not torch.allclose(method.target(repaint(view, hidden)), method.target(view))
    assert torch.equal(method.target(a_view(mask=None)), method.target(view))


def test_a_mask_that_hides_nothing_costs_nothing() -> None:
    method, view = a_method(), a_view(mask=hide([], [], []))
    tokens = method.encoder.tokens(view.data)
    assert torch.allclose(method.predict(view), tokens, atol=1e-12)
    assert method.energy(view, view).tolist() == [0.0] * 3


def test_gradients_reach_the_student_alone() -> None:
    method = a_method()
    method.loss(Views((a_view(),), torch.arange(3)), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name
    assert method.blank.grad is not None
    assert float(method.blank.grad.abs().sum()) > 0


def test_the_teacher_follows() -> None:
    method = a_method(momentum=Constant(0.5))
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(0.5)
    fast = method.encoder.parameters()
    for old, new, now in zip(before, method.teacher.parameters(), fast, strict=True):
        assert torch.allclose(new, (old + now) / 2, atol=1e-14)


def test_plan_hides_blocks_on_the_grid_of_the_encoder() -> None:
    plan = a_method(ratio=0.5, crop=0.2).plan()
    (view,) = plan.main
    assert view.mask is not None
    assert (view.mask.grid, view.mask.ratio, view.mask.kind) == (GRID, 0.5, "blocks")
    assert (view.crop, view.flip, plan.pairs) == ((0.2, 1.0), 0.5, "itself")
    assert round(14 * 14 * a_method().masking.ratio) == 120


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match="Data2Vec needs patch tokens; conv gives one vector"):
        Data2Vec(build_encoder("conv", 16))
    with pytest.raises(ValueError, match=r"top = 4 of the 3 blocks .* Choose 1 to 3"):
        a_method(top=4)
    with pytest.raises(ValueError, match="needs views with masks"):
        a_method().predict(a_view(mask=None))
