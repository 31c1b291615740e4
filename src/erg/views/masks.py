"""Masks and tiles: which patches of a view are hidden, where its tiles are cut and in which order;
drawn for every image on its own, but for how much a stratified mask hides."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, UInt64

from erg.views.plan import Masking, Tiles
from erg.views.random import Purpose, bits, uniform
from erg.views.types import Mask

RECTANGLES = 40
"""Rectangles of a `block_mask` before single patches make up what is left."""


def draw_mask(
    masking: Masking,
    seed: int,
    epoch: int,
    step: int,
    index: Int64[np.ndarray, " b"],
    view: int,
    among: Int64[np.ndarray, " global"] | None = None,
    valid: Bool[np.ndarray, "b n"] | None = None,
) -> Mask:
    """The mask of a view, of the kind that is asked for; `step` is the optimiser's.

    Raises:
        ValueError: targets are asked for, and some sequences are shorter than the grid.
    """
    if masking.kind == "targets":
        if valid is not None and not valid.all():
            raise ValueError(
                "targets are rectangles of whole grids, and some sequences have fewer than "
                f"{valid.shape[1]} tokens. Use masks of kind random or blocks."
            )
        return target_mask(masking, seed, epoch, step, index, view)
    kind = random_mask if masking.kind == "random" else block_mask
    return kind(masking, seed, epoch, index, view, among, valid)


def random_mask(
    masking: Masking,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
    view: int,
    among: Int64[np.ndarray, " global"] | None = None,
    valid: Bool[np.ndarray, "b n"] | None = None,
) -> Mask:
    """Hide the share of every image exactly, each patch equally likely.

    Args:
        masking: grid and share hidden.
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
        view: number of the view.
        among: rows of the whole batch, over all processes, which a stratified mask depends on;
            None where these are all.
        valid: of sequences, the places in front of their end. The share is that of these, and of
            every sequence that is masked at least one is hidden; None where all places count.
    """
    keys, wanted = _drawn(masking, seed, epoch, index, view, among, valid)
    hidden = _choose(_all(keys.shape) if valid is None else valid, wanted, keys)
    return Mask(hidden=torch.from_numpy(hidden[:, None]), grid=masking.grid)  # [b 1 n]


def block_mask(
    masking: Masking,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
    view: int,
    among: Int64[np.ndarray, " global"] | None = None,
    valid: Bool[np.ndarray, "b n"] | None = None,
) -> Mask:
    """Hide rectangles put over each other until the share of every image is hidden, exactly; of
    kind inverse, hide all but such rectangles.

    The area of each is uniform between a ninth of the grid's smaller side squared and what is
    still to be hidden (Bao et al. 2022, algorithm 1). Where the last one hides too much, or
    `RECTANGLES` of them too little, single patches are chosen. Arguments as `random_mask`.
    """
    keys, wanted = _drawn(masking, seed, epoch, index, view, among, valid)
    there = _all(keys.shape) if valid is None else valid
    inverse = masking.kind == "inverse"
    wanted = there.sum(axis=1) - wanted if inverse else wanted
    hidden = np.zeros(keys.shape, dtype=np.bool_)
    least = max(1, (min(masking.grid) // 3) ** 2)
    for turn in range(RECTANGLES):
        missing = wanted - hidden.sum(axis=1)
        rows = np.flatnonzero(missing)
        if not len(rows):
            break
        u = uniform(seed, epoch, index[rows, None], view, Purpose.MASK, -2 - turn, np.arange(4))
        missing = missing[rows]
        smallest = np.minimum(missing, least)
        height, width = _sides(masking, smallest + u[:, 0] * (missing - smallest), u[:, 1])
        new = _rectangles(masking.grid, height, width, u[:, 2:]) & there[rows] & ~hidden[rows]
        hidden[rows] |= _choose(new, missing, keys[rows])
    hidden |= _choose(there & ~hidden, wanted - hidden.sum(axis=1), keys)
    hidden = there & ~hidden if inverse else hidden
    return Mask(hidden=torch.from_numpy(hidden[:, None]), grid=masking.grid)  # [b 1 n]


def target_mask(
    masking: Masking, seed: int, epoch: int, step: int, index: Int64[np.ndarray, " b"], view: int
) -> Mask:
    """Rectangles to predict from a context: a large one, less what the others take from it.

    Sizes come from the step, so that a batch shares them, and places from the image (Assran et
    al. 2023, section 3). Every image keeps as many patches as are left where no two targets
    overlap; what others have more of is left out at random. So masks are rectangular for any
    number of processes, and no image's depends on the others'. The targets are as high and wide as
    leaves the context a twentieth of the grid.

    Args:
        masking: grid, number and sizes.
        seed: of the run.
        epoch: number of the epoch.
        step: of the optimiser.
        index: row of each image in the manifest.
        view: number of the view.

    Returns:
        a mask of the targets and, as the last block, of what is neither predicted nor seen.

    Raises:
        ValueError: the grid has no room for the targets and something to predict them from.
    """
    (rows, columns), count = masking.grid, masking.targets
    u = uniform(seed, Purpose.STEP, step, view, Purpose.MASK, np.arange(3))
    low, high = masking.area
    area = rows * columns * (low + u[:1] * (high - low))
    (height,), (width,) = _sides(masking, area, u[1:2])
    low, high = masking.context
    share = (low + u[2] * (high - low)) ** 0.5
    tall, wide = max(1, round(rows * share)), max(1, round(columns * share))
    while tall * wide - count * height * width < rows * columns / 20 and height * width > 1:
        height, width = (height - 1, width) if height >= width else (height, width - 1)
    seen = tall * wide - count * height * width
    if seen < 1:
        raise ValueError(
            f"a grid of {rows} x {columns} patches has no room for {count} targets and a context. "
            "Use smaller patches, larger images or fewer targets."
        )
    blocks = np.arange(count + 1)[:, None]
    u = uniform(seed, epoch, index[:, None, None], view, Purpose.MASK, -1, blocks, np.arange(2))
    heights, widths = np.array([height] * count + [tall]), np.array([width] * count + [wide])
    inside = _rectangles(masking.grid, heights, widths, u)  # [b k+1 n]
    targets = inside[:, :-1].any(axis=1)
    keys, _ = _drawn(masking, seed, epoch, index, view)
    kept = _choose(inside[:, -1] & ~targets, np.full(len(index), seen), keys)
    inside[:, -1] = ~(kept | targets)
    return Mask(hidden=torch.from_numpy(inside), grid=masking.grid)


def _drawn(
    masking: Masking,
    seed: int,
    epoch: int,
    index: Int64[np.ndarray, " b"],
    view: int,
    among: Int64[np.ndarray, " global"] | None = None,
    valid: Bool[np.ndarray, "b n"] | None = None,
) -> tuple[UInt64[np.ndarray, "b n"], Int64[np.ndarray, " b"]]:
    """A number for every patch, to choose some by, and how many of each image to hide.

    Stratified, the batch is ordered by a number of each image: the first are masked, and the k-th
    of them hides a share from the k-th part of the range.
    """
    n = masking.grid[0] * masking.grid[1]
    length, least = (n, 0) if valid is None else (valid.sum(axis=1), 1)
    words = (seed, epoch, index[:, None], view, Purpose.MASK)
    u = uniform(*words, -1, np.arange(2))  # [b 2]
    masked, part = u[:, 1] < masking.masked, u[:, 0]
    if masking.stratified:
        everyone = index if among is None else among
        order = np.sort(uniform(seed, epoch, everyone, view, Purpose.MASK, -1, 1))
        place, count = np.searchsorted(order, u[:, 1]), round(masking.masked * len(order))
        masked, part = place < count, (place + part) / max(count, 1)
    share = masking.ratio + masking.spread * (2 * part - 1)
    wanted = np.where(masked & (share > 0), np.maximum(np.rint(share * length), least), 0)
    return bits(*words, np.arange(n)), wanted.astype(np.int64)


def _all(shape: tuple[int, ...]) -> Bool[np.ndarray, "b n"]:
    return np.ones(shape, dtype=np.bool_)


def _choose(
    candidates: Bool[np.ndarray, "b n"],
    count: Int64[np.ndarray, " b"],
    keys: UInt64[np.ndarray, "b n"],
) -> Bool[np.ndarray, "b n"]:
    """The `count` candidates of each row that have the smallest keys; all where there are fewer."""
    chosen = candidates.copy()
    for_each = np.flatnonzero(candidates.sum(axis=1) > count)
    last = np.where(candidates[for_each], keys[for_each], np.iinfo(np.uint64).max)
    order = np.argsort(last, axis=1, kind="stable")
    first = np.arange(candidates.shape[1]) < count[for_each, None]
    inside = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(inside, order, first, axis=1)
    chosen[for_each] = inside
    return chosen


def _sides(
    masking: Masking, area: Float64[np.ndarray, " b"], u: Float64[np.ndarray, " b"]
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Height and width of rectangles of an area [patches], their ratio drawn with u."""
    low, high = masking.aspect
    aspect = low * (high / low) ** u
    height, width = (
        np.clip(np.rint(np.sqrt(side)), 1, most).astype(np.int64)
        for side, most in zip((area * aspect, area / aspect), masking.grid, strict=True)
    )
    return height, width


def _rectangles(
    grid: tuple[int, int],
    height: Int64[np.ndarray, "*#b"],
    width: Int64[np.ndarray, "*#b"],
    u: Float64[np.ndarray, "*b 2"],
) -> Bool[np.ndarray, "*b n"]:
    """True in rectangles of these sides, at places drawn with u, all equally likely."""
    inside: list[np.ndarray] = []
    for axis, (most, side) in enumerate(zip(grid, (height, width), strict=True)):
        first = np.floor(u[..., axis] * (most - side + 1))[..., None]
        places = np.arange(most)
        inside.append((places >= first) & (places < first + side[..., None]))
    both = inside[0][..., :, None] & inside[1][..., None, :]
    return both.reshape(*both.shape[:-2], -1)


class Cut(NamedTuple):
    """How tiles are cut out of a view of every image.

    Args:
        side: of the view that they are cut out of [pixels].
        tile: side of a tile [pixels].
        order: the cell that each tile is from, row-major.
        places: top and left of each tile [pixels of the view], and the channel it keeps, or -1
            for all.
    """

    side: int
    tile: int
    order: Int64[np.ndarray, "b p"]
    places: Int64[np.ndarray, "b p 3"]


def random_tiles(
    tiles: Tiles, side: int, seed: int, epoch: int, index: Int64[np.ndarray, " b"], view: int
) -> Cut:
    """An order for the tiles of every image, and for each tile a place in its cell and a channel.

    Args:
        tiles: grid, gap, jitter, orders and share of tiles that keep one channel.
        side: of the view [pixels].
        seed: of the run.
        epoch: number of the epoch.
        index: row of each image in the manifest.
        view: number of the view.
    """
    rows, columns = tiles.grid
    cell, tile, jitter = tiles.pixels(side)
    words = (seed, epoch, index[:, None], view)
    if tiles.orders:
        drawn = uniform(*words, Purpose.ARRANGEMENT, 0)[:, 0]
        chosen = (len(tiles.orders) * drawn).astype(np.int64)
        order = np.array(tiles.orders, dtype=np.int64)[chosen]
    else:
        keys = bits(*words, Purpose.ARRANGEMENT, np.arange(rows * columns))
        order = np.argsort(keys, axis=1, kind="stable").astype(np.int64)
    numbers = np.arange(order.shape[1])[None, :, None]
    u = uniform(seed, epoch, index[:, None, None], view, Purpose.TILES, numbers, np.arange(4))
    free = (cell - tile - jitter) // 2  # of the gap, before the first place
    corner = np.stack([order // columns, order % columns], axis=2) * cell + free  # [b p 2]
    corner += (side - np.array([rows, columns]) * cell) // 2
    place = corner + ((jitter + 1) * u[:, :, :2]).astype(np.int64)
    kept = np.where(u[:, :, 2] < tiles.drop, (3 * u[:, :, 3]).astype(np.int64), -1)
    return Cut(side, tile, order, np.concatenate([place, kept[:, :, None]], axis=2))
