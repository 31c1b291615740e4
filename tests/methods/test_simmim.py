"""SimMIM: the error by a loop over pixels, and what the encoder gets to see."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.encoders import Encoder, build_encoder
from erg.methods.simmim import SimMIM
from erg.testing import check_method
from erg.views.masks import random_mask
from erg.views.plan import Masking
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def a_method(**arguments: Any) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(build_encoder("vit_tiny_patch16_224", 32, **VIT), **arguments).double().eval()


def a_view(n: int = 3, seed: int = 0, grid: int = 4) -> View:
    data = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
    masking = Masking(grid=(grid, grid), ratio=0.5)
    return View(data, mask=random_mask(masking, 0, 0, np.arange(n), 0))


def is_hidden(view: View, b: int, row: int, column: int, unit: int) -> bool:
    assert view.mask is not None
    columns = view.mask.grid[1]
    return bool(view.mask.hidden[b, 0, row // unit * columns + column // unit])


@pytest.mark.parametrize(("unit", "grid"), [(8, 4), (16, 2), (4, 8)])
def test_energy_is_the_absolute_error_of_hidden_pixels(unit: int, grid: int) -> None:
    method, x, y = a_method(unit=unit), a_view(grid=grid), a_view(seed=1, grid=grid)
    made = method.predict(x)
    wanted = []
    for b in range(3):
        errors = [
            abs(made[b, c, i, j].item() - y.data[b, c, i, j].item())
            for i in range(32) for j in range(32) if is_hidden(x, b, i, j, unit) for c in range(3)
        ]  # fmt: skip
        assert len(errors) == 3 * 32 * 32 // 2
        wanted.append(sum(errors) / len(errors))
    assert method.energy(x, y).tolist() == pytest.approx(wanted)
    views = Views((x,), torch.arange(3), pairing="itself")
    loss = method.loss(views, 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(method.energy(x, x).mean().item())


def test_the_encoder_sees_the_learned_square_where_something_is_hidden() -> None:
    method, x = a_method(unit=16), a_view(grid=2)
    seen: list[Tensor] = []
    tokens = method.encoder.tokens
    method.encoder.tokens = lambda data, mask=None: seen.append(data) or tokens(data, mask)
    before = method.predict(x)
    for b in range(3):
        for i in range(32):
            for j in range(32):
                wanted = x.data[b, :, i, j]
                if is_hidden(x, b, i, j, 16):
                    wanted = method.blank[:, i % 16, j % 16]
                assert torch.equal(seen[0][b, :, i, j], wanted)
    # So what is hidden does not matter, and what is not does.
    hidden = method.hidden(x)
    assert torch.equal(method.predict(x.with_data(x.data + 5 * hidden)), before)
    assert not torch.allclose(method.predict(x.with_data(x.data + 0.1 * ~hidden)), before)


def test_each_token_makes_its_own_patch() -> None:
    """With one linear layer and no blocks in between, row by row."""
    method, x = a_method(), a_view()
    blank = method.blank.repeat(1, 4, 4)
    tokens = method.encoder.tokens(torch.where(method.hidden(x), blank, x.data))
    made = method.predict(x)
    for n in range(16):
        row, column = divmod(n, 4)
        patch = method.head(tokens[:, n]).reshape(3, 8, 8, 3).permute(0, 3, 1, 2)
        assert torch.allclose(made[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8], patch)


class Map(Encoder):
    """Tokens of a convolution with stride 8, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.image_size, self.dim = "map", 32, 6
        self.layer = torch.nn.Conv2d(3, 6, 8, 8)

    def tokens(self, data: Tensor, mask: Mask | None = None) -> Tensor:
        return self.layer(data).flatten(2).transpose(1, 2)

    def forward(self, data: Tensor) -> Tensor:
        return self.tokens(data).mean(dim=1)


def test_an_encoder_without_patches_says_what_its_stride_is() -> None:
    method = SimMIM(Map(), stride=8).double()
    assert method.predict(a_view()).shape == (3, 3, 32, 32)
    wrong = SimMIM(Map(), stride=16, unit=8).double()
    with pytest.raises(ValueError, match=r"map gives 16 tokens, not 2 x 2\. Set stride"):
        wrong.predict(a_view())
    with pytest.raises(ValueError, match="no patch tokens"):
        SimMIM(build_encoder("conv", 32, width=8, stages=2)).double().predict(a_view(grid=1))


def test_plan_hides_squares() -> None:
    (view,) = a_method(ratio=0.25, unit=16, crop=0.5).plan().main
    assert view.mask == Masking(grid=(2, 2), ratio=0.25)
    assert view.crop == (0.5, 1.0)
    assert a_method().plan().pairs == "itself"
    assert a_method().unit == 8
    vit = build_encoder("vit_tiny_patch16_224", 224, embed_dim=16, depth=0, num_heads=2)
    assert SimMIM(vit).unit == 32  # as in the paper


@pytest.mark.parametrize(
    ("size", "patch", "unit"),
    [(96, 16, 16), (128, 16, 16), (160, 16, 16), (192, 16, 16), (256, 16, 32), (256, 8, 32),
     (240, 12, 24), (64, 8, 8), (32, 8, 8), (20, 20, 20)],
)  # fmt: skip
def test_squares_fill_images_of_any_size_by_default(size: int, patch: int, unit: int) -> None:
    """Whole patches, that fill the image, of at most a seventh of it if one patch is not more."""
    arguments: dict[str, Any] = {
        "patch_size": patch, "embed_dim": 16, "depth": 0, "num_heads": 2,
    }  # fmt: skip
    method = SimMIM(build_encoder("vit_tiny_patch16_224", size, **arguments))
    assert method.unit == unit
    multiples = [s for s in range(1, size + 1) if s % patch == 0 and size % s == 0]
    assert unit == max([s for s in multiples if 7 * s <= size] or [patch])
    mask = method.plan().main[0].mask
    assert mask is not None
    assert mask.grid == (size // unit, size // unit)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="unit of 12 pixels does not divide an image of 32"):
        a_method(unit=12)
    for size, patch in ((40, 16), (96, 14)):  # that many fit into one row, and leave a rest
        encoder = build_encoder("vit_tiny_patch16_224", size, **{**VIT, "patch_size": patch})
        with pytest.raises(ValueError, match=f"a token's patch of {patch} pixels does not divide"):
            SimMIM(encoder)
    view = a_view()
    with pytest.raises(ValueError, match="needs views with masks"):
        a_method().energy(View(view.data), view)


def test_it_keeps_the_contract() -> None:
    check_method(SimMIM, encoder="vit_tiny_patch16_224", encoder_arguments=VIT)
