"""VICRegL: golden numbers, loops over cells, positions of pixels that the kernels rendered."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from erg import shaping
from erg.encoders import build_encoder
from erg.methods.vicreg import VICReg
from erg.methods.vicregl import VICRegL, positions
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, LIGHT, SIMCLR_SMALL, two_views
from erg.views.types import How, View, Views


def how(b: int, generator: torch.Generator) -> How:
    """Boxes, flips and turns of a source of 40 x 60 pixels."""
    top, left = 20 * torch.rand(b, generator=generator), 30 * torch.rand(b, generator=generator)
    size = 5 + 15 * torch.rand(b, 2, generator=generator)
    return How(
        box=torch.stack([top, left, size[:, 0], size[:, 1]], dim=1),
        flip=torch.rand(b, generator=generator) < 0.5,
        turns=torch.randint(4, (b,), generator=generator),
        source=torch.tensor([[40, 60]]).expand(b, 2),
    )


def views(b: int = 5) -> Views:
    generator = torch.Generator().manual_seed(0)
    main = [
        View(
            torch.randn(b, 3, 16, 16, generator=generator, dtype=torch.float64),
            made=how(b, generator),
        )
        for _ in "xy"
    ]
    return Views(tuple(main), torch.arange(b))


def a_method(**arguments: Any) -> VICRegL:
    """Its encoder has a map of 4 x 4 cells."""
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"hidden": 9, "dim": 6, "local": 5, "matches": 3}
    return VICRegL(encoder, **{**small, **arguments}).double()


def apart(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5


def the_matches(distance: list[list[float]], count: int) -> list[tuple[int, int]]:
    """Cells with the nearest other, the closest such pairs only, in the order of the cells."""
    nearest = [min(range(len(row)), key=row.__getitem__) for row in distance]
    order = sorted(range(len(distance)), key=lambda i: distance[i][nearest[i]])
    return [(i, nearest[i]) for i in sorted(order[:count])]


def criterion(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """VICReg's three parts of one match of every image, with weights 2, 3 and 5."""
    x, y = (torch.stack(side) for side in zip(*pairs, strict=True))
    return (
        2 * float((x - y).square().mean()),
        3 * float(shaping.variance(x) + shaping.variance(y)) / 2,
        5 * float(shaping.covariance(x) + shaping.covariance(y)),
    )


def test_with_alpha_1_it_is_vicreg(golden) -> None:
    method, batch = a_method(alpha=1.0), views()
    vicreg = VICReg(method.encoder, hidden=4, dim=6).double()
    vicreg.expander = method.expander
    wanted = vicreg.loss(batch, 0.0)
    loss = method.loss(batch, 0.0)
    assert loss.total.item() == pytest.approx(wanted.total.item(), rel=1e-12)
    assert loss.pull["invariance"].item() == pytest.approx(wanted.pull["invariance"].item())
    x, y = batch.main
    assert torch.allclose(method.energy(x, y), vicreg.energy(x, y))
    parts = method.criterion([(golden.array("Z1"), golden.array("Z2"))])
    assert golden.agrees("VICReg, invariance", parts[0] / 25)
    assert golden.agrees("VICReg, variance", parts[1] / 25)
    assert golden.agrees("VICReg, covariance", parts[2])


def test_cells_are_matched_as_in_the_loop() -> None:
    method = a_method(alpha=0.4, invariance=2.0, variance=3.0, covariance=5.0)
    batch = views()
    _, cells, places = zip(*(method.embed(view) for view in batch.main), strict=True)
    loss = method.loss(batch, 0.0)
    for name, side in (("position", places), ("feature", cells)):
        found = [0.0, 0.0, 0.0]
        for a in (0, 1):
            matches: list[list[tuple[int, int]]] = []
            for i in range(5):
                mine, other = side[a][i].tolist(), side[1 - a][i].tolist()
                matches.append(the_matches([[apart(p, q) for q in other] for p in mine], 3))
            for each in zip(*matches, strict=True):  # the first of every image, then the second
                pairs = [
                    (cells[a][i, m].detach(), cells[1 - a][i, n].detach())
                    for i, (m, n) in enumerate(each)
                ]
                found = [f + p / 3 for f, p in zip(found, criterion(pairs), strict=True)]
        parts = (loss.pull["invariance by " + name], *(
            loss.push[f"{part} by {name}"] for part in ("variance", "covariance")
        ))  # fmt: skip
        for part, wanted in zip(parts, found, strict=True):
            assert part.item() == pytest.approx(0.3 * wanted, rel=1e-9), name


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_positions_are_those_of_the_pixels_that_were_rendered(turns: int) -> None:
    """The picture's colours are its rows and columns: every cell shows where it comes from."""
    rows, columns = np.mgrid[0:120, 0:200].astype(np.uint8)
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    view = replace(LIGHT, turns=turns, crop=(0.2, 0.9))
    made = make_views(
        Pixels.pack([picture] * 12), two_views(view), seed=0, epoch=0, step=0,
        index=np.arange(12, dtype=np.int64), image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3,
    )  # fmt: skip
    for each in made.main:
        assert each.made is not None
        shown = nn.functional.avg_pool2d(255 * each.data[:, :2], 8).flatten(2).mT + 0.5  # [b 16 2]
        found = positions(each.made, 4)
        assert found.shape == (12, 16, 2)
        assert float((found - shown).abs().max()) < 1.0
    assert made.main[0].made is not None
    assert set(made.main[0].made.flip.tolist()) == {True, False}


def test_equal_views_match_cell_by_cell() -> None:
    method, batch = a_method(matches=100), views()
    x = batch.main[0]
    loss = method.loss(Views((x, x), batch.index), 0.0)
    for name in ("invariance", "invariance by position", "invariance by feature"):
        assert loss.pull[name].item() == pytest.approx(0, abs=1e-12)
    assert loss.push["variance by position"] == loss.push["variance by feature"]


def test_a_flipped_view_matches_its_mirror_image() -> None:
    """x and y show the same box, y mirrored: cell (r, c) goes with (r, 3 - c)."""
    method, batch = a_method(matches=16), views()
    x = batch.main[0]
    assert x.made is not None
    straight = replace(x.made, flip=torch.zeros(5).bool(), turns=torch.zeros(5).long())
    mirrored = replace(straight, flip=torch.ones(5).bool())
    here, there = positions(straight, 4), positions(mirrored, 4)
    cells = torch.arange(16.0).reshape(1, 16, 1).expand(5, 16, 1)
    (mine, other), _ = method.matched((cells, cells), torch.cdist(here, there))
    assert torch.equal(mine // 4, other // 4)
    assert torch.equal(mine % 4, 3 - other % 4)


def test_everything_learns_in_one_pass_of_the_encoder() -> None:
    method, seen = a_method(), []
    method.encoder.network.register_forward_hook(lambda _m, i, _o: seen.append(i[0].shape))
    method.loss(views(), 0.0).total.backward()
    assert len(seen) == 2
    for name, p in method.named_parameters():
        assert p.grad is not None, name


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction of all weights; who matches whom stays the same nearby."""
    method, batch = a_method(alpha=0.4), views()
    method.loss(batch, 0.0).total.backward()
    generator = torch.Generator().manual_seed(1)
    parameters = list(method.parameters())
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    wanted = sum(float((p.grad * v).sum()) for p, v in zip(parameters, along, strict=True))
    sides: list[float] = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, v in zip(parameters, along, strict=True):
                p.add_(sign * 1e-7 * v)
            sides.append(float(method.loss(batch, 0.0).total))
    assert (sides[0] - sides[1]) / 2e-7 == pytest.approx(wanted, rel=1e-5)


def test_encoders_of_timm_show_their_cells_in_one_pass() -> None:
    for name, arguments in (
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}),
    ):
        encoder = build_encoder(name, 32, **arguments).eval()
        data = torch.randn(2, 3, 32, 32)
        vector, cells = encoder.with_tokens(data)
        assert torch.allclose(vector, encoder(data), atol=1e-6)
        assert torch.allclose(cells, encoder.tokens(data), atol=1e-6)
    with pytest.raises(ValueError, match="pixels gives one vector"):
        build_encoder("pixels", 32).with_tokens(torch.randn(2, 3, 32, 32))


def test_views_without_boxes_are_refused() -> None:
    batch = views()
    plain = Views(tuple(View(view.data) for view in batch.main), batch.index)
    with pytest.raises(ValueError, match="VICRegL matches cells by their boxes"):
        a_method().loss(plain, 0.0)


def test_plan_follows_the_image_size() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, SIMCLR_SMALL)
    large = VICRegL(build_encoder("conv", 128, width=8), hidden=4, dim=4, local=4)
    assert large.plan().main == (BYOL_FIRST, BYOL_SECOND)
