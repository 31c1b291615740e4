"""View, Views, How, Mask: what stays together stays together."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from erg.views.types import How, Mask, View, Views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_view(b: int = 4, seed: int = 0, side: int = 8) -> View:
    """Every tensor in it tells which item it belongs to."""
    item = torch.arange(b)
    made = How(
        box=item[:, None].float().expand(b, 4).clone(), flip=item % 2 == 0, turns=item % 4,
        source=item[:, None].expand(b, 2).clone(), order=item[:, None].expand(b, 3).clone(),
    )  # fmt: skip
    hidden = torch.zeros(b, 1, 4, dtype=torch.bool)
    hidden[item, 0, item % 4] = True
    data = drawn(b, 3, side, side, seed=seed)
    return View(data, made, Mask(hidden, (2, 2)), length=item, mean=MEAN, std=STD)


def views(n: int = 2, b: int = 4, **how: Any) -> Views:
    main = tuple(a_view(b, seed=i) for i in range(n))
    return Views(main=main, index=torch.arange(10, 10 + b), **how)


def items(view: View) -> list[set[int]]:
    """Which item each row of each tensor says it is."""
    assert view.made is not None
    assert view.mask is not None
    assert view.length is not None
    assert view.made.order is not None
    told = [
        view.made.box[:, 0].long(), view.made.turns, view.made.source[:, 0],
        view.made.order[:, 0], view.length, view.mask.hidden[:, 0].long().argmax(1),
    ]  # fmt: skip
    assert torch.equal(view.made.flip, view.length % 2 == 0)
    return [{int(tensor[i]) for tensor in told} for i in range(len(view))]


def test_keep_is_what_the_target_blocks_leave() -> None:
    hidden = torch.tensor([[[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]], [[0, 1, 1, 0, 0, 0]] * 2])
    mask = Mask(hidden.bool(), (2, 3))
    assert mask.keep().tolist() == [[1, 3, 4, 5], [0, 3, 4, 5]]


def test_a_mask_that_hides_nothing_keeps_the_order() -> None:
    mask = Mask(torch.zeros(3, 1, 6).bool(), (2, 3))
    assert mask.keep().tolist() == [list(range(6))] * 3


def test_uneven_masks_have_no_rectangle() -> None:
    hidden = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 1, 0]]]).bool()
    with pytest.raises(ValueError, match="1 to 3 visible patches"):
        Mask(hidden, (2, 2)).keep()


def test_unit_undoes_the_normalisation() -> None:
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    mean, std = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (MEAN, STD))
    view = View((pixels - mean) / std, mean=MEAN, std=STD)
    assert torch.allclose(view.unit(), pixels, atol=1e-12)
    assert view.unit().dtype == torch.float64
    vector = View(torch.randn(3, 5))
    assert vector.unit() is vector.data


def a_raw_view(b: int = 2, side: int = 4) -> View:
    """Every byte at least once, in channels-last memory."""
    data = torch.arange(b * side * side * 3).remainder(256).to(torch.uint8)
    image = data.view(b, side, side, 3).permute(0, 3, 1, 2)
    return dataclasses.replace(a_view(b, side=side), data=image)


def normalised(view: View) -> Tensor:
    """What the kernels make of the same pixels, pixel by pixel, in float64."""
    expected = torch.empty(view.data.shape, dtype=torch.float64)
    for c in range(3):
        for place in range(expected[:, c].numel()):
            value = int(view.data[:, c].reshape(-1)[place])
            item, pixel = divmod(place, expected[0, 0].numel())
            expected[item, c].view(-1)[pixel] = (value / 255 - MEAN[c]) / STD[c]
    return expected


def test_bytes_are_normalised_when_moved_and_only_once() -> None:
    view = a_raw_view(side=10)
    assert view.raw
    expected = normalised(view)
    for moved in (view.to("cpu"), view.to(torch.float32), view.to(device="cpu", dtype=None)):
        assert not moved.raw
        assert moved.data.dtype == torch.float32
        assert moved.data.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(moved.data.double(), expected, atol=1e-6)
        assert torch.equal(moved.to("cpu", torch.float32).data, moved.data)
        assert torch.equal(moved.unit(), moved.to("cpu").unit())
    double = view.to(dtype=torch.float64)
    assert torch.allclose(double.data, expected, atol=1e-13)
    half = view.to("cpu", torch.bfloat16, non_blocking=True)
    assert torch.equal(half.data, view.to(torch.float32).data.to(torch.bfloat16))
    assert view.made is not None
    assert half.made is not None
    assert torch.equal(half.made.turns, view.made.turns)


def test_bytes_of_all_views_are_normalised() -> None:
    view = a_raw_view()
    moved = Views((view, view.to("cpu")), torch.arange(2), local=(view,)).to("cpu", torch.float32)
    first, second, local = (*moved.main, *moved.local)
    assert torch.equal(first.data, second.data)
    assert torch.equal(first.data, local.data)
    assert first.data.dtype == torch.float32


def test_bytes_without_a_scale_are_left_alone() -> None:
    view = View(torch.arange(6, dtype=torch.uint8).view(2, 3))
    assert not view.raw
    assert view.to("cpu", torch.float32).data.dtype == torch.uint8
    assert view.unit() is view.data


def test_unit_is_right_for_every_form() -> None:
    view = a_raw_view(side=10)
    expected = view.data.double() / 255
    assert torch.allclose(view.unit().double(), expected, atol=1e-7)
    assert torch.allclose(view.to(torch.float32).unit().double(), expected, atol=1e-6)
    half = view.to(torch.bfloat16).unit()
    assert view.unit().dtype == half.dtype == torch.float32
    # Nothing is lost beyond the rounding of the data themselves, to 8 bits.
    bound = view.to(torch.float64).data.abs() * 2**-8 * torch.tensor(STD)[:, None, None] + 1e-6
    assert ((half - expected).abs() <= bound).all()


def test_scales_made_for_evaluation_serve_training() -> None:
    view = dataclasses.replace(a_raw_view(), mean=(0.11, 0.12, 0.13))  # not seen before
    with torch.inference_mode():
        view.to("cpu").unit()
    data = torch.zeros(2, 3, 4, 4, requires_grad=True)
    view.with_data(data).unit().sum().backward()
    assert data.grad is not None
    assert torch.allclose(data.grad[0, :, 0, 0], torch.tensor(STD))


def test_pin_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pinned memory needs a GPU; here a copy stands for it.
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    whole = Views((a_view(), a_raw_view(4)), torch.arange(4), local=(a_view(),), step=7)
    made = whole.pin()
    held = [made.index]
    for view in (*made.main, *made.local):
        assert view.made is not None
        assert view.mask is not None
        assert view.made.order is not None
        assert view.length is not None
        held += [view.data, view.made.box, view.made.flip, view.made.turns, view.made.source,
                 view.made.order, view.mask.hidden, view.length]  # fmt: skip
    assert {id(tensor) for tensor in held} == {id(tensor) for tensor in pinned}
    assert len(held) == 25
    assert made.step == 7
    assert torch.equal(made.main[1].data, whole.main[1].data)


def test_roll_and_take_keep_items_together() -> None:
    view = a_view()
    assert items(view) == [{0}, {1}, {2}, {3}]
    rolled = view.roll(1)
    assert items(rolled) == [{3}, {0}, {1}, {2}]
    assert torch.equal(rolled.data, view.data[[3, 0, 1, 2]])
    taken = view.take(torch.tensor([2, 0]))
    assert items(taken) == [{2}, {0}]
    assert torch.equal(taken.data, view.data[[2, 0]])
    assert items(view.take(slice(1, None, 2))) == [{1}, {3}]
    assert (taken.mean, taken.std) == (MEAN, STD)
    assert taken.mask is not None
    assert taken.mask.grid == (2, 2)


def test_to_changes_the_type_of_data_only() -> None:
    view = a_view().to(torch.float64)
    assert view.data.dtype == torch.float64
    assert view.made is not None
    assert view.mask is not None
    assert view.made.box.dtype == torch.float64
    assert view.made.turns.dtype == torch.int64
    assert view.made.flip.dtype == torch.bool
    assert view.mask.hidden.dtype == torch.bool
    moved = views().to(device="cpu", dtype=torch.bfloat16)
    assert moved.main[1].data.dtype == torch.bfloat16
    made = a_view().made
    assert made is not None
    far = dataclasses.replace(made, box=made.box + 301)
    large = dataclasses.replace(a_view(), made=far).to(torch.bfloat16)
    assert large.data.dtype == torch.bfloat16
    assert large.made is not None
    assert torch.equal(large.made.box, made.box + 301)
    assert moved.index.dtype == torch.int64


def test_with_data_keeps_the_rest() -> None:
    view, data = a_view(), torch.zeros(4, 3, 8, 8)
    other = view.with_data(data)
    assert other.data is data
    assert (other.made, other.mask, other.mean) == (view.made, view.mask, view.mean)


def test_views_take_the_same_items_of_every_view() -> None:
    whole = dataclasses.replace(views(2, step=5, pairing="itself"), local=(a_view(side=4),))
    part = whole.take(slice(1, None, 2))
    assert len(whole) == 4
    assert len(part) == 2
    assert part.index.tolist() == [11, 13]
    assert [items(v) for v in (*part.main, *part.local)] == [[{1}, {3}]] * 3
    assert (part.step, part.pairing) == (5, "itself")


def test_need_says_what_it_needs() -> None:
    whole = views(2)
    assert whole.need(2) is whole.main
    with pytest.raises(ValueError, match=r"needs 2 main views of each image \(got 3\)"):
        views(3).need(2)
    with pytest.raises(ValueError, match=r"needs 1 main view of each image \(got 2\)"):
        views(2).need(1)


def test_pairs_of_views_are_every_two() -> None:
    whole = views(3)
    found = [(x is whole.main[i], y is whole.main[j]) for (x, y), (i, j) in zip(
        whole.pairs(), [(0, 1), (0, 2), (1, 2)], strict=True)]  # fmt: skip
    assert found == [(True, True)] * 3


def test_mismatched_views_are_of_the_next_image_with_its_how_and_mask() -> None:
    whole = views(2)
    ((x, y),) = whole.mismatched()
    assert x is whole.main[0]
    assert isinstance(y, View)
    assert items(y) == [{3}, {0}, {1}, {2}]
    assert torch.equal(y.data, whole.main[1].data.roll(1, dims=0))


def test_pairs_of_a_view_with_itself() -> None:
    whole = views(1, pairing="itself")
    ((x, y),) = whole.pairs()
    assert x is y is whole.main[0]
    ((x, y),) = whole.mismatched()
    assert x is whole.main[0]
    assert isinstance(y, View)
    assert items(y) == [{3}, {0}, {1}, {2}]


def test_turns_and_every_other_turn() -> None:
    whole = views(2, b=9, pairing="turn")
    pairs, others = list(whole.pairs()), list(whole.mismatched())
    assert len(pairs) == len(others) == 2
    for (x, y), (other_x, other_y) in zip(pairs, others, strict=True):
        assert isinstance(y, Tensor)
        assert isinstance(other_y, Tensor)
        assert x is other_x
        assert y.tolist() == [i % 4 for i in range(9)]
        assert ((other_y - y) % 4 != 0).all()
        assert set(((other_y - y) % 4).tolist()) == {1, 2, 3}
        assert ((other_y >= 0) & (other_y < 4)).all()


def test_orders_and_another_order_of_the_batch() -> None:
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i % 5))
                         for i in range(30)])  # fmt: skip
    one = a_view(30)
    assert one.made is not None
    view = dataclasses.replace(one, made=dataclasses.replace(one.made, order=order))
    whole = Views((view,), torch.arange(30), pairing="order")
    ((x, y),) = whole.pairs()
    assert x is view
    assert isinstance(y, Tensor)
    assert torch.equal(y, order)
    answers, right = whole.answers(y)
    known = {tuple(row) for row in order.tolist()}
    assert sorted(map(tuple, answers.tolist())) == sorted(known)
    assert torch.equal(answers[right], order)
    ((x, other),) = whole.mismatched()
    assert x is view
    assert isinstance(other, Tensor)
    assert (other != order).any(dim=1).all()
    assert {tuple(row) for row in other.tolist()} == known
    # With one order only there is no other: nothing to compare, and no error.
    same = whole.take(torch.arange(0, 30, 5))
    ((_, only),) = same.mismatched()
    assert isinstance(only, Tensor)
    assert torch.equal(only, order[::5])


def test_several_tasks_and_a_wrong_answer_to_each() -> None:
    """y of the next image, its turn and its order another than those of this one."""
    order = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(i % 4))
                         for i in range(9)])  # fmt: skip
    turned, tiled = a_view(9), a_view(9, seed=1)
    assert turned.made is not None
    assert tiled.made is not None
    turned = dataclasses.replace(turned, made=dataclasses.replace(turned.made, order=None))
    tiled = dataclasses.replace(tiled, made=dataclasses.replace(tiled.made, order=order))
    whole = Views((turned, tiled), torch.arange(9), pairing="tasks")
    ((x, y),) = whole.pairs()
    assert x is y is whole
    ((x, y),) = whole.mismatched()
    assert x is whole
    assert isinstance(y, Views)
    assert (y.pairing, len(y.main)) == ("tasks", 2)
    for view, other in zip(whole.main, y.main, strict=True):
        assert view.made is not None
        assert other.made is not None
        assert torch.equal(other.data, view.data.roll(1, dims=0))
        assert torch.equal(other.made.box, view.made.box.roll(1, dims=0))
        apart = (other.made.turns - view.made.turns) % 4
        assert set(apart.tolist()) == {1, 2, 3}
    assert y.main[0].made is not None
    assert y.main[1].made is not None
    assert y.main[0].made.order is None
    assert y.main[1].made.order is not None
    assert (y.main[1].made.order != order).any(dim=1).all()
    assert set(map(tuple, y.main[1].made.order.tolist())) <= set(map(tuple, order.tolist()))
    bare = Views((View(torch.arange(3.0)[:, None]),), torch.arange(3), pairing="tasks")
    ((_, y),) = bare.mismatched()
    assert isinstance(y, Views)
    assert y.main[0].data.flatten().tolist() == [2, 0, 1]


def test_a_view_without_tiles_says_so() -> None:
    with pytest.raises(ValueError, match="has no tiles"):
        View(torch.zeros(2, 3, 4, 4)).tiles()


def test_alone_there_is_no_x_and_the_contrast_is_off_the_manifold() -> None:
    whole = views(1, pairing="alone", step=3)
    ((x, y),) = whole.pairs()
    assert x is None
    assert y is whole.main[0]
    (_, independent), (_, shuffled) = whole.mismatched()
    assert isinstance(independent, View)
    assert isinstance(shuffled, View)
    data = whole.main[0].data
    for channel in range(3):
        mine, found = data[:, channel], independent.data[:, channel]
        assert float(found.min()) >= float(mine.min())
        assert float(found.max()) <= float(mine.max())
        # Uniform over the range: the mean of 256 is near its middle.
        middle, width = (mine.min() + mine.max()) / 2, mine.max() - mine.min()
        assert abs(float((found.mean() - middle) / width)) < 4 * (1 / 12 / 256) ** 0.5
    for image, mixed in zip(data, shuffled.data, strict=True):
        assert image.shape == mixed.shape
        assert not torch.equal(image, mixed)

        def cells(picture: Tensor) -> list[list[float]]:
            cut = picture.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4)
            return sorted(cut.reshape(16, -1).tolist())

        assert cells(image) == cells(mixed)


def test_contrast_is_a_function_of_the_step_and_moves_no_generator() -> None:
    state = torch.get_rng_state()
    first = [y.data for _, y in views(1, pairing="alone", step=3).mismatched()]  # type: ignore[union-attr]
    again = [y.data for _, y in views(1, pairing="alone", step=3).mismatched()]  # type: ignore[union-attr]
    later = [y.data for _, y in views(1, pairing="alone", step=4).mismatched()]  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first, again, later, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_contrast_of_bytes_is_that_of_their_range() -> None:
    view = a_raw_view(16, side=8)
    whole = Views((view,), torch.arange(16), pairing="alone")
    for _, other in whole.mismatched():
        assert isinstance(other, View)
        assert other.raw
        assert other.data.shape == view.data.shape
        assert float(other.data.float().mean()) == pytest.approx(127.5, abs=5)
        assert float(other.data.float().std()) == pytest.approx(73.6, abs=5)
        assert not torch.equal(other.data, view.data)


def test_contrast_of_vectors_keeps_each_feature_and_breaks_their_ties() -> None:
    data = drawn(50, 1).expand(50, 3).clone()
    whole = Views((View(data),), torch.arange(50), pairing="alone")
    _, (_, shuffled) = whole.mismatched()
    assert isinstance(shuffled, View)
    assert torch.equal(shuffled.data.sort(0).values, data.sort(0).values)
    assert not torch.allclose(shuffled.data[:, 0], shuffled.data[:, 1])


def test_they_are_frozen() -> None:
    for item in (a_view(), views(), a_view().mask, a_view().made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            item.data = None  # type: ignore[union-attr,misc]
