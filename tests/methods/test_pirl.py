"""PIRL: loops over images, tiles and others; what is remembered; the three kinds of y."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.pirl import PIRL
from erg.testing import check_method
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import Plan, Tiles
from erg.views.types import View, Views


def a_method(**arguments: Any) -> PIRL:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 32, width=8, stages=2)
    small: dict[str, Any] = {"size": 9, "dim": 5, "temperature": 0.3}
    return PIRL(encoder, **{**small, **arguments}).double()


def views(method: PIRL, index: list[int], *, step: int = 0, plan: Plan | None = None) -> Views:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    encoder = method.encoder
    made = make_views(
        Pixels.pack(list(images[index])), plan or method.plan(), seed=0, epoch=step, step=step,
        index=np.array(index), image_size=32, mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    return made.to(dtype=torch.float64)


def of_image(method: PIRL, view: View) -> Tensor:
    return nn.functional.normalize(method.of_image(method.encoder(view.data)), dim=1)


def of_changed(method: PIRL, view: View) -> Tensor:
    """Tile by tile, in the order they stand in."""
    if method.by == "rotation":
        return nn.functional.normalize(method.of_piece(method.encoder(view.data)), dim=1)
    n = view.data.shape[-1]
    pieces = [
        method.of_piece(method.encoder(view.data[:, :, k * n : (k + 1) * n])) for k in range(4)
    ]
    return nn.functional.normalize(method.mixed(torch.cat(pieces, dim=1)), dim=1)


def noise_contrast(z: Tensor, rows: Tensor, own: int, others: list[int], t: float) -> float:
    """-log h_i - sum_j log (1 - h_j), one exponential at a time."""
    e = {j: math.exp(float(rows[j] @ z) / t) for j in (own, *others)}
    below = e[own] + sum(e[j] for j in others)
    return -math.log(e[own] / below) - sum(math.log(1 - e[j] / below) for j in others)


@torch.no_grad()
@pytest.mark.parametrize("by", ["jigsaw", "rotation", "both"])
def test_loss_is_the_loop_over_images_and_others(by: Any) -> None:
    method = a_method(by=by, weight=0.3, hidden=6 * (by == "both")).eval()
    index = [4, 0, 7]
    whole = views(method, index)
    x, y = whole.main
    rows = method.memory.rows
    parts = {"f": of_image(method, x), "g": of_changed(method, y)}
    nce = {
        name: sum(
            noise_contrast(z[b], rows, i, [j for j in range(9) if j != i], 0.3)
            for b, i in enumerate(index)
        )
        / 3
        for name, z in parts.items()
    }
    loss = method.loss(whole, 0.0)
    assert loss.total.item() == pytest.approx(0.3 * nce["g"] + 0.7 * nce["f"], rel=1e-10)
    pull = [-sum(float(z[b] @ rows[i]) for b, i in enumerate(index)) / 3 / 0.3
            for z in parts.values()]  # fmt: skip
    assert loss.pull["image"].item() == pytest.approx(0.7 * pull[0], rel=1e-10)
    assert loss.pull["changed"].item() == pytest.approx(0.3 * pull[1], rel=1e-10)
    wanted = [-float(a @ b) for a, b in zip(parts["f"], parts["g"], strict=True)]
    assert method.energy(x, y).tolist() == pytest.approx(wanted, rel=1e-10)


@torch.no_grad()
def test_with_a_softmax_it_is_the_cross_entropy_of_telling_the_image() -> None:
    method = a_method(weight=0.3, softmax=True).eval()
    index = [4, 0, 7]
    whole = views(method, index)
    x, y = whole.main
    f, g = (
        nn.functional.cross_entropy(z @ method.memory.rows.T / 0.3, torch.tensor(index)).item()
        for z in (of_image(method, x), of_changed(method, y))
    )
    assert method.loss(whole, 0.0).total.item() == pytest.approx(0.3 * g + 0.7 * f, rel=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("step", [0, 5])
def test_random_others_are_the_steps_and_never_the_image_itself(step: int) -> None:
    method = a_method(negatives=6).eval()
    index = [4, 0, 7, 1, 2, 8]
    whole = views(method, index, step=step)
    generator = torch.Generator().manual_seed(step)
    drawn = torch.randint(9, (6,), generator=generator).tolist()
    assert set(drawn) & set(index), "an image is among those drawn"
    expected = 0.0
    for name, z in (("f", of_image), ("g", of_changed)):
        for b, i in enumerate(index):
            others = [j for j in drawn if j != i]
            # An other that is drawn twice counts twice.
            row = z(method, whole.main[name == "g"])[b]
            e = [math.exp(float(method.memory.rows[j] @ row) / 0.3) for j in others]
            own = math.exp(float(method.memory.rows[i] @ row) / 0.3)
            below = own + sum(e)
            expected -= 0.5 * math.log(own / below) / 6
            expected -= 0.5 * sum(math.log(1 - one / below) for one in e) / 6
    assert method.loss(whole, 0.0).total.item() == pytest.approx(expected, rel=1e-10)


def test_others_are_drawn_once_for_both_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    method, drawn = a_method(negatives=6), list[Tensor]()
    others = method.others

    def noted(views: Views) -> Tensor:
        drawn.append(others(views))
        return drawn[-1]

    monkeypatch.setattr(method, "others", noted)
    method.loss(views(method, [4, 0, 7]), 0.0)
    assert len(drawn) == 1


def test_memory_follows_the_image_not_its_tiles() -> None:
    method = a_method()
    whole = views(method, [4, 0, 7])
    before = method.memory.rows.clone()
    fresh = copy.deepcopy(method)
    f = of_image(fresh, whole.main[0])
    method.loss(whole, 0.0).total.backward()  # the rows it was computed from are still there
    moved = nn.functional.normalize(before[[4, 0, 7]] + f, dim=1)
    assert torch.allclose(method.memory.rows[[4, 0, 7]], moved, atol=1e-12)
    others = [1, 2, 3, 5, 6, 8]
    assert torch.equal(method.memory.rows[others], before[others])
    after = method.memory.rows.clone()
    method.eval().loss(whole, 0.0)
    assert torch.equal(method.memory.rows, after)


def test_gradient_is_that_with_the_memory_as_a_constant() -> None:
    method = a_method()
    whole = views(method, [4, 0, 7])
    rows = method.memory.rows.clone()
    method.loss(whole, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    x, y = whole.main
    pieces = method.of_piece(method.encoder(y.tiles())).reshape(3, -1)
    g = nn.functional.normalize(method.mixed(pieces), dim=1)
    h = [(z @ rows.T / 0.3).softmax(dim=1) for z in (of_image(method, x), g)]
    mine = torch.zeros(3, 9, dtype=torch.bool)
    mine[torch.arange(3), whole.index] = True
    total = sum(-p[mine].log().sum() - (1 - p[~mine]).log().sum() for p in h) / 6
    assert isinstance(total, Tensor)
    total.backward()
    assert found.keys() == {name for name, _ in method.named_parameters()}
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, found[name], atol=1e-10), name


def test_an_other_that_is_all_there_is_stays_finite() -> None:
    """An exact copy of another image, far from its own memory, in single precision."""
    method = a_method(temperature=0.02).float()
    z = nn.functional.normalize(torch.randn(1, 5), dim=1)
    method.memory.rows[3], method.memory.rows[4] = z[0], -z[0]
    z.requires_grad_()
    empty = Views((View(torch.zeros(1, 3, 4, 4)),), torch.tensor([4]))
    parts = method.nce(z, empty, method.others(empty))
    assert all(torch.isfinite(part) for part in parts)
    (gradient,) = torch.autograd.grad(sum(parts), z)  # type: ignore[arg-type]
    assert torch.isfinite(gradient).all()


def test_tiles_in_another_order_are_another_picture() -> None:
    """The order is the input's: g has to become blind to it, and is not before."""
    method = a_method().eval()
    (_, y) = views(method, [4, 0, 7]).main
    n = y.data.shape[-1]
    parts = [y.data[:, :, k * n : (k + 1) * n] for k in (2, 0, 3, 1)]
    mixed = method.g(y.with_data(torch.cat(parts, dim=2)))
    assert not torch.allclose(mixed, method.g(y), atol=1e-4)


def test_plans() -> None:
    image, tiles = a_method(grid=3).plan().main
    assert (image.crop, image.tiles, image.turns) == ((0.2, 1.0), None, 0)
    assert image.jitter == 1
    colours = (image.brightness, image.contrast, image.saturation, image.hue, image.grey)
    assert colours == (0.4, 0.4, 0.4, 0.2, 0.2)
    assert (tiles.crop, tiles.turns, tiles.same_as) == ((0.6, 1.0), 0, None)
    vissl = Tiles(grid=(3, 3), gap=1 / 85, jitter=20 / 85)
    assert tiles.tiles == vissl
    assert vissl.pixels(255) == (85, 64, 20)
    _, turned = a_method(by="rotation").plan().main
    assert (turned.tiles, turned.turns, turned.crop) == (None, None, (0.2, 1.0))
    _, both = a_method(by="both", gap=0.1, jitter=0.2).plan().main
    assert (both.tiles, both.turns) == (Tiles(grid=(2, 2), gap=0.1, jitter=0.2), None)
    large = PIRL(build_encoder("conv", 128), size=4).plan().main[0]
    assert large.crop == (0.08, 1.0)
    assert a_method().plan().pairs == "views"


def test_an_image_without_a_place_is_refused() -> None:
    method = a_method()
    with pytest.raises(ValueError, match="image 9 has no place in a memory of 9 rows"):
        method.loss(views(method, [3, 9]), 0.0)


@pytest.mark.parametrize("by", ["rotation", "both"])
def test_turns_keep_the_contract(by: str) -> None:
    check_method(PIRL, arguments={"size": 20, "by": by, "dim": 8, "negatives": 6, "hidden": 8})
