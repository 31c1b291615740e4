"""View, Views, How, Mask: what an input became, and how.

Letters in shapes: b batch, c channels, h w pixels, n tokens, k target blocks, d features.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Pairs = Literal["views", "itself", "turn", "order", "tasks", "alone"]

Output = Literal["float32", "bfloat16", "uint8"]
"""The numbers of a new view: normalised, in four or two bytes; or in [0, 255], in one."""


def _map_tensors(item: Any, function: Any) -> Any:
    """A copy of a frozen dataclass with `function` applied to every tensor it holds."""
    changed: dict[str, Any] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, How | Mask | View):
            changed[field.name] = _map_tensors(value, function)
    return replace(item, **changed)


@dataclass(frozen=True, eq=False)
class How:
    """How each view was made, an array per property, so that methods can read positions back.

    Args:
        box: top, left, height, width of the crop [source pixels].
        flip: mirrored left to right (after the crop, before the quarter turns).
        turns: quarter turns counter-clockwise, 0 to 3 (last of the geometric steps).
        source: height, width of the source image [pixels].
        order: of the tiles, where the plan cuts the view into some: the cell of the grid,
            row-major, that the first tile is from, the second and so on.
    """

    box: Float[Tensor, "b 4"]
    flip: Bool[Tensor, " b"]
    turns: Int[Tensor, " b"]
    source: Int[Tensor, "b 2"]
    order: Int[Tensor, "b p"] | None = None


@dataclass(frozen=True, eq=False)
class Mask:
    """Which patches of a view are hidden, as k target blocks (usually 1) on a grid of patches.

    Args:
        hidden: True where a patch belongs to target block k.
        grid: rows and columns of patches; n = rows * columns, row-major.
    """

    hidden: Bool[Tensor, "b k n"]
    grid: tuple[int, int]

    def keep(self) -> Int[Tensor, "b m"]:
        """Indices of the patches in no target block, ascending.

        Raises:
            ValueError: items of the batch keep different numbers of patches.
        """
        visible = ~self.hidden.any(dim=1)
        counts = visible.sum(dim=1)
        if not bool((counts == counts[0]).all()):
            low, high = int(counts.min()), int(counts.max())
            raise ValueError(
                f"the images of this batch have {low} to {high} visible patches, so their indices "
                "form no rectangle. Use a mask plan that hides the same number in every image."
            )
        return visible.nonzero()[:, 1].reshape(len(visible), -1)


@functools.cache
def _per_channel(
    values: tuple[float, ...], ndim: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A number per channel, to calculate with data of `ndim` axes. Kept, since every new one would
    make the host wait for the device."""
    with torch.inference_mode(False):  # made there first, it could not serve training afterwards
        return torch.tensor(values, dtype=dtype, device=device).view(1, -1, *(1,) * (ndim - 2))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class View:
    """What an input became: the one thing methods and encoders are given.

    Args:
        data: an image [b c h w], a vector [b d] or tokens [b n]; floats are already normalised
            with `mean` and `std`. Images in uint8 are not yet: `to` does it, on the device. Square
            tiles of an image stand one below the other (see `tiles`).
        made: how it was made, per item.
        mask: which patches are hidden.
        length: valid tokens per item, where some are padded; behind them the data are -1.
        mean: what was subtracted from data in [0, 1], per channel.
        std: what it was divided by, per channel.
    """

    data: Tensor
    made: How | None = None
    mask: Mask | None = None
    length: Int[Tensor, " b"] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return self.data.shape[0]

    @property
    def raw(self) -> bool:
        """Whether the data are an image in [0, 255] that is still to be normalised, by `to`."""
        return self.data.dtype == torch.uint8 and bool(self.mean)

    def unit(self) -> Tensor:
        """The data before normalisation, in [0, 1] for images, at least float32; same shape as
        `data`."""
        if not self.mean:
            return self.data
        dtype = _at_least_float32(self.data.dtype)
        data = self.data.to(dtype)
        if self.raw:
            return data / 255
        mean, std = (
            _per_channel(values, data.ndim, dtype, data.device) for values in (self.mean, self.std)
        )
        return data * std + mean

    def _normalised(self, dtype: torch.dtype) -> Tensor:
        """Raw data / 255, minus the mean, divided by the deviation: one product and one sum."""
        exact, data = _at_least_float32(dtype), self.data
        shift = tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))
        scale = tuple(1 / (255 * s) for s in self.std)
        shifts, scales = (
            _per_channel(values, data.ndim, exact, data.device) for values in (shift, scale)
        )
        return torch.addcmul(shifts, data, scales).to(dtype)

    def tiles(self) -> Shaped[Tensor, "all c s s"]:
        """The tiles of a view that is cut into some: all of the first image, then of the next.

        A view of the same memory where that is channels-last.

        Raises:
            ValueError: the view is not cut into tiles.
        """
        if self.made is None or self.made.order is None:
            raise ValueError("this view has no tiles. Use a plan that cuts it into some.")
        b, c, _, side = self.data.shape
        rows = self.data.permute(0, 2, 3, 1).reshape(b * self.made.order.shape[1], side, side, c)
        return rows.permute(0, 3, 1, 2)

    def need_mask(self, who: str) -> Mask:
        """The mask, for a method that cannot do without.

        Args:
            who: name of the method.

        Raises:
            ValueError: the view has none.
        """
        if self.mask is None:
            raise ValueError(
                f"{who} needs views with masks (got one without). Use {who}'s own plan."
            )
        return self.mask

    def with_data(self, data: Tensor) -> "View":
        """The same view of other data: How, Mask and scale are kept."""
        return replace(self, data=data)

    def to(self, *args: Any, **kwargs: Any) -> "View":
        """Move to a device; a dtype is applied to floating-point data only.

        An image in uint8 is moved as it is and normalised there, in float32 if no dtype is given.
        """
        moved = _map_tensors(self, lambda t: _move(t, *args, **kwargs))
        if self.made is not None and moved.made is not None and moved.made.box.itemsize < 4:
            box = self.made.box.to(moved.made.box.device)  # positions are too large for a half
            moved = replace(moved, made=replace(moved.made, box=box))
        if not moved.raw:
            return moved
        given = (a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype))
        return replace(moved, data=moved._normalised(next(given, torch.float32)))

    def pin(self) -> "View":
        """In memory that a device copies from by itself; what lies there already stays."""
        return _map_tensors(self, torch.Tensor.pin_memory)

    def roll(self, shift: int) -> "View":
        """Item i becomes item i - shift (cyclically), with its How and Mask."""
        return _map_tensors(self, lambda t: t.roll(shift, dims=0))

    def take(self, index: Int[Tensor, " m"] | slice) -> "View":
        """Some items of the batch."""
        return _map_tensors(self, lambda t: t[index])


def _move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not tensor.is_floating_point():
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        kwargs = {k: v for k, v in kwargs.items() if k != "dtype"}
    return tensor.to(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Views:
    """The views of one batch, in the order of the plan.

    Args:
        main: full views.
        local: small views, sorted by size.
        index: row of each image in the manifest.
        step: optimiser step the batch belongs to.
        pairing: what x and y of an energy F(x, y) are here (see `Plan.pairs`).
    """

    main: tuple[View, ...]
    index: Int[Tensor, " b"]
    local: tuple[View, ...] = ()
    step: int = 0
    pairing: Pairs = "views"

    def __len__(self) -> int:
        return self.main[0].data.shape[0]

    def need(self, main: int) -> tuple[View, ...]:
        """The main views, checked to be `main` many.

        Raises:
            ValueError: another number of main views.
        """
        if len(self.main) != main:
            raise ValueError(
                f"this method needs {main} main view{'s' * (main != 1)} of each image (got "
                f"{len(self.main)}). Use a plan with {main}, or the method's own by leaving it out."
            )
        return self.main

    def to(self, *args: Any, **kwargs: Any) -> "Views":
        """Move to a device, as `View.to`."""
        return replace(
            self,
            main=tuple(v.to(*args, **kwargs) for v in self.main),
            local=tuple(v.to(*args, **kwargs) for v in self.local),
            index=_move(self.index, *args, **kwargs),
        )

    def pin(self) -> "Views":
        """In memory that a device copies from by itself, as `View.pin`."""
        return replace(
            self,
            main=tuple(v.pin() for v in self.main),
            local=tuple(v.pin() for v in self.local),
            index=self.index.pin_memory(),
        )

    def take(self, index: Int[Tensor, " m"] | slice) -> "Views":
        """Some items of the batch, in all views."""
        return replace(
            self,
            main=tuple(v.take(index) for v in self.main),
            local=tuple(v.take(index) for v in self.local),
            index=self.index[index],
        )

    def pairs(self) -> "Iterator[tuple[View | Views | None, View | Views | Tensor]]":
        """Walk the (x, y) that belong together.

        views: every two main views of an image; itself: the visible and the hidden patches of one
        view; turn: an image and its quarter turn; order: tiles and their order; tasks: x and y are
        all these views, each of which another task asks about; alone: x is None, y the first view,
        of which further ones are corruptions.
        """
        if self.pairing == "views":
            for i, x in enumerate(self.main):
                for y in self.main[i + 1 :]:
                    yield x, y
        elif self.pairing == "tasks":
            yield self, self
        elif self.pairing == "alone":
            yield None, self.main[0]
        else:
            for view in self.main:
                if self.pairing == "itself":
                    yield view, view
                elif self.pairing == "turn":
                    assert view.made is not None
                    yield view, view.made.turns
                else:
                    assert view.made is not None
                    assert view.made.order is not None
                    yield view, view.made.order

    def mismatched(self) -> "Iterator[tuple[View | Views | None, View | Views | Tensor]]":
        """Walk (x, y) that do not belong together, the contrast set of every diagnostic.

        views and itself: y of the next image of the batch, with its How and Mask; turn: another
        turn; order: another of the orders in this batch; tasks: all of these in every view; alone:
        data off the manifold, the image with its pixels independent (each channel uniform in the
        range it has in the batch) and the image with its patches shuffled.
        """
        for x, y in self.pairs():
            if isinstance(y, Tensor):
                yield x, self._another(y)
            elif isinstance(y, Views):
                yield x, replace(y, main=tuple(self._answered_wrongly(view) for view in y.main))
            elif x is None:
                yield None, y.with_data(_independent(y.data, self.step))
                yield None, y.with_data(_shuffled(y.data, self.step))
            else:
                yield x, y.roll(1)

    def _another(self, y: Int[Tensor, "b *p"]) -> Int[Tensor, "b *p"]:
        """Of each item another answer than y, which one by its row in the manifest."""
        answers, right = self.answers(y)
        further = 1 + self.index % max(len(answers) - 1, 1)
        return answers[(right + further) % len(answers)]

    def _answered_wrongly(self, view: View) -> View:
        """The view of the next image, said to have another turn and order than that of this one."""
        other, made = view.roll(1), view.made
        if made is None or other.made is None:
            return other
        order = None if made.order is None else self._another(made.order)
        return replace(
            other, made=replace(other.made, turns=self._another(made.turns), order=order)
        )

    def answers(self, y: Int[Tensor, "b *p"]) -> tuple[Int[Tensor, "k *p"], Int[Tensor, " b"]]:
        """All that y is chosen from, turns [b] or the orders in this batch; and which it is."""
        if y.ndim == 1:
            return torch.arange(4, device=y.device), y
        answers, right = y.cpu().unique(dim=0, return_inverse=True)  # there MPS has it too
        return answers.to(y.device), right.to(y.device)


def _generator(step: int) -> torch.Generator:
    """Of its own, so that a diagnostic never moves the generator that training uses."""
    return torch.Generator().manual_seed(0x5EED + step)


def _independent(data: Tensor, step: int) -> Tensor:
    """Every element drawn on its own, uniform in the range of its channel (or feature)."""
    dims = [0, *range(2, data.ndim)]
    low, high = data.amin(dims, keepdim=True), data.amax(dims, keepdim=True)
    drawn = torch.rand(data.shape, generator=_generator(step)).to(data.device)
    return (low + (high - low) * drawn).to(data.dtype)


def _shuffled(data: Tensor, step: int) -> Tensor:
    """Images cut in a 4 x 4 grid and reassembled in random order; vectors with shuffled items."""
    if data.ndim != 4 or data.shape[-1] % 4 or data.shape[-2] % 4:
        order = torch.rand(data.shape, generator=_generator(step)).argsort(dim=0).to(data.device)
        return data.gather(0, order)
    b, c, h, w = data.shape
    cells = data.reshape(b, c, 4, h // 4, 4, w // 4).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(b, 16, c, h // 4, w // 4)
    order = torch.rand(b, 16, generator=_generator(step)).argsort(dim=1).to(data.device)
    cells = cells[torch.arange(b, device=data.device)[:, None], order]
    cells = cells.reshape(b, 4, 4, c, h // 4, w // 4).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(b, c, h, w)
