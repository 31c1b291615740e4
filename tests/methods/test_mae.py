"""MAE: a loop over hidden patches, and what each side of the energy may and may not see."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.mae import MAE
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SIDE, GRID, CELLS = 24, (3, 3), 9


def a_method(**arguments: Any) -> MAE:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    return MAE(encoder, **{"width": 8, "depth": 1, "heads": 2, **arguments}).double()


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


def patch(image: Tensor, n: int) -> list[float]:
    """The values of patch n, row by row, channels last."""
    row, column = divmod(n, 3)
    part = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    return part.permute(1, 2, 0).flatten().tolist()


def target(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return [(v - mean) / (var + 1e-6) ** 0.5 for v in values]


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_is_the_loop_over_hidden_patches(normalise: bool) -> None:
    method, view = a_method(normalise=normalise), a_view()
    predicted, wanted = method.predict(view).tolist(), []
    for i in range(3):
        errors = []
        for n in MASK.hidden[i, 0].nonzero().flatten().tolist():
            values = patch(view.data[i], n)
            values = target(values) if normalise else values
            pairs = zip(predicted[i][n], values, strict=True)
            errors.append(sum((p - v) ** 2 for p, v in pairs) / len(values))
        assert len(errors) == 5
        wanted.append(sum(errors) / 5)
    found = method.energy(view, view)
    assert found.shape == (3,)
    assert found.tolist() == pytest.approx(wanted, rel=1e-10)
    loss = method.loss(Views((view,), torch.arange(3), pairing="itself"), 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 3, rel=1e-10)


def repaint(view: View, hidden: bool) -> View:
    """Other pixels in the hidden (or the visible) patches of every image."""
    assert view.mask is not None
    where = view.mask.hidden[:, 0].reshape(3, 1, *GRID) == hidden
    where = where.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return view.with_data(torch.where(where, a_view(seed=2).data, view.data))


def test_the_prediction_sees_no_hidden_pixel() -> None:
    method, view = a_method(), a_view()
    assert torch.equal(method.predict(repaint(view, hidden=True)), method.predict(view))
    assert not torch.allclose(method.predict(repaint(view, hidden=False)), method.predict(view))


def test_the_target_sees_no_visible_pixel() -> None:
    method, view = a_method(), a_view()
    energy = method.energy(view, view)
    assert torch.equal(method.energy(view, repaint(view, hidden=False)), energy)
    assert not torch.allclose(method.energy(view, repaint(view, hidden=True)), energy)


def test_items_do_not_see_each_other() -> None:
    method, view = a_method(), a_view()
    for i in range(3):
        alone = view.take(slice(i, i + 1))
        assert method.energy(alone, alone).item() == pytest.approx(
            method.energy(view, view)[i].item(), rel=1e-10
        )


def test_mismatched_pairs_are_judged_on_the_mask_of_x() -> None:
    """x keeps its mask; the image of y is another, and so may be its mask."""
    method, view = a_method(), a_view()
    other = view.roll(1)
    assert torch.equal(method.energy(view, other), method.energy(view, View(other.data)))


def test_a_mask_that_hides_nothing_keeps_every_token_in_order() -> None:
    method, view = a_method(ratio=0.0), a_view(mask=hide([], [], []))
    masking = method.plan().main[0].mask
    assert masking is not None
    assert masking.hidden == 0
    tokens = method.encoder.tokens(view.data)
    assert torch.allclose(method.encoder.tokens(view.data, view.mask), tokens, atol=1e-12)
    in_order = torch.arange(CELLS).expand(3, CELLS)
    vectors = method.encoder(view.data)
    whole = method.decoder(tokens, in_order, vector=vectors)
    assert torch.allclose(method.predict(view), whole, atol=1e-12)
    assert method.energy(view, view).tolist() == [0.0] * 3


def test_flat_patches_have_a_finite_target_and_gradient() -> None:
    method = a_method()
    view = View(torch.zeros(3, 3, SIDE, SIDE, dtype=torch.float64), mask=MASK)
    assert torch.equal(method.target(view), torch.zeros(3, CELLS, 192, dtype=torch.float64))
    method.energy(view, view).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_everything_learns() -> None:
    method, view = a_method(), a_view()
    method.loss(Views((view,), torch.arange(3)), 0.0).total.backward()
    fixed = {"encoder.network.fc_norm.weight", "encoder.network.fc_norm.bias"}
    for name, p in method.named_parameters():
        assert p.grad is not None or name in fixed, name
    assert method.decoder.blank.grad is not None


@pytest.mark.parametrize("form", [{}, {"global_pool": "avg", "fc_norm": False}])
def test_the_encoders_vector_learns_too(form: dict[str, Any]) -> None:
    """A class token, if there is one, is asked for something: the decoder is given it."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, **form})
    method, view = MAE(encoder, width=8, depth=1, heads=2).double(), a_view()
    kept: list[Tensor] = []
    masked = method.encoder.masked

    def watched(data: Tensor, mask: Mask, blank: Tensor | None = None) -> tuple[Tensor, Tensor]:
        vectors, tokens = masked(data, mask, blank)
        kept.append(vectors)
        vectors.retain_grad()
        return vectors, tokens

    method.encoder.masked = watched
    method.energy(view, view).sum().backward()
    (vectors,) = kept
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(dim=1) > 0).all()


def test_plan_hides_the_ratio_on_the_grid_of_the_encoder() -> None:
    plan = a_method(ratio=0.6, crop=0.5).plan()
    (view,) = plan.main
    assert view.mask is not None
    assert (view.mask.grid, view.mask.ratio, view.mask.hidden) == (GRID, 0.6, 5)
    assert (view.crop, plan.pairs) == ((0.5, 1.0), "itself")


def test_the_decoder_is_half_as_wide_by_default() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, "embed_dim": 48})
    assert MAE(encoder).decoder.embed.out_features == 24
    assert a_method(width=16).decoder.embed.out_features == 16


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match=r"MAE needs patch tokens; conv gives one vector"):
        MAE(build_encoder("conv", 16))
    with pytest.raises(ValueError, match=r"needs views with masks .* Use MAE's own plan"):
        a_method().predict(a_view(mask=None))


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    """28 pixels hold 3 patches of 8 and a rest that no patch sees."""
    with pytest.raises(ValueError, match="28"):
        MAE(build_encoder("vit_tiny_patch16_224", 28, **VIT))


@pytest.mark.parametrize(("size", "patch"), [(40, 16), (96, 14)])
def test_patches_that_only_seem_to_fill_an_image_are_refused(size: int, patch: int) -> None:
    """2 rows of 16 pixels in 40 and 6 of 14 in 96: that many divide the image, and yet cells of 20
    and 16 pixels would show what other patches hide."""
    encoder = build_encoder("vit_tiny_patch16_224", size, **{**VIT, "patch_size": patch})
    n = size // patch
    with pytest.raises(ValueError, match=f"{n} x {n} patches of {patch} x {patch} pixels do not"):
        MAE(encoder)
