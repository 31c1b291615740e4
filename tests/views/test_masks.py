"""Masks and tiles: as many as asked for, each equally likely, each image its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from erg.views.masks import block_mask, draw_mask, random_mask, random_tiles, target_mask
from erg.views.plan import Masking, Tiles
from erg.views.random import Purpose, bits, uniform

INDEX = np.arange(2000, dtype=np.int64)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 0.99])
def test_hides_exactly(ratio: float) -> None:
    masking = Masking(grid=(4, 7), ratio=ratio)
    mask = random_mask(masking, 0, 0, INDEX[:50], 0)
    assert mask.hidden.shape == (50, 1, 28)
    assert mask.hidden.dtype == torch.bool
    assert mask.grid == (4, 7)
    assert (mask.hidden.sum(dim=2) == masking.hidden).all()
    assert mask.keep().shape == (50, 28 - masking.hidden)


def test_is_the_argsort_of_hashes() -> None:
    masking = Masking(grid=(3, 5), ratio=0.4)
    mask = random_mask(masking, 7, 2, np.array([41, 5]), 1)
    for row, image in enumerate([41, 5]):
        keys = [int(bits(7, 2, image, 1, Purpose.MASK, token)) for token in range(15)]
        lowest = sorted(range(15), key=keys.__getitem__)[:6]
        assert mask.hidden[row, 0].nonzero()[:, 0].tolist() == sorted(lowest)


def test_patches_are_equally_likely_and_uncorrelated() -> None:
    hidden = random_mask(Masking(grid=(4, 4), ratio=0.5), 0, 0, INDEX, 0).hidden[:, 0].double()
    assert (hidden.mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / len(INDEX) ** 0.5
    correlation = torch.corrcoef(hidden.T) - torch.eye(16)
    # Of 8 among 16 without replacement: -1 / 15 between any two patches.
    off = correlation[~torch.eye(16, dtype=torch.bool)]
    assert (off + 1 / 15).abs().max() < 5 / len(INDEX) ** 0.5


def test_depends_on_what_it_should() -> None:
    masking = Masking(grid=(8, 8))
    first = random_mask(masking, 0, 0, INDEX[:20], 0).hidden
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed, epoch, view = other
        assert not torch.equal(first, random_mask(masking, seed, epoch, INDEX[:20], view).hidden)
    alone = random_mask(masking, 0, 0, INDEX[7:8], 0).hidden
    assert torch.equal(first[7:8], alone)
    assert not torch.equal(first[7], first[8])


# Of tiles

PATCHES = Tiles(drop=0.4)  # Doersch et al. 2015
PUZZLE = Tiles(gap=0.0, jitter=0.25)
FEW = Tiles(grid=(2, 3), orders=((5, 0), (1, 4), (2, 0)))


@pytest.mark.parametrize("tiles", [PATCHES, PUZZLE, Tiles(grid=(2, 2), gap=0.0, jitter=0.0), FEW])
@pytest.mark.parametrize("side", [11, 32, 97, 255])
def test_tiles_lie_in_their_cells_and_never_touch(tiles: Tiles, side: int) -> None:
    cut = random_tiles(tiles, side, 0, 0, INDEX[:300], 0)
    cell, size, _ = tiles.pixels(side)
    assert (cut.side, cut.tile) == (side, size)
    for order, places in zip(cut.order.tolist(), cut.places.tolist(), strict=True):
        seen = np.zeros((side, side), dtype=int)
        for k, (number, (top, left, _)) in enumerate(zip(order, places, strict=True), start=1):
            row, column = divmod(number, tiles.grid[1])
            up, over = ((side - n * cell) // 2 for n in tiles.grid)
            assert 0 <= top - up - row * cell <= cell - size
            assert 0 <= left - over - column * cell <= cell - size
            # Nor does a corner: no pixel around the tile is of another one.
            around = seen[max(top - 1, 0) : top + size + 1, max(left - 1, 0) : left + size + 1]
            assert (around == 0).all()
            seen[top : top + size, left : left + size] = k
            assert (seen == k).sum() == size**2, "the tile is inside the view"


def test_the_gap_is_the_one_asked_for() -> None:
    """Doersch et al. 2015: 48 pixels between patches of 96, give or take a jitter of 7 each."""
    straight = Tiles(orders=(tuple(range(9)),))
    places = random_tiles(straight, 432, 0, 0, INDEX, 0).places.reshape(-1, 3, 3, 3)
    for axis, neighbours in [(0, (places[:, 1:], places[:, :-1])),
                             (1, (places[:, :, 1:], places[:, :, :-1]))]:  # fmt: skip
        gap = (neighbours[0] - neighbours[1])[..., axis] - 96
        assert (gap.min(), gap.max()) == (34, 62)
        assert abs(gap.mean() - 48) < 0.2


def test_places_are_uniform_and_those_of_two_tiles_independent() -> None:
    cut = random_tiles(Tiles(orders=(tuple(range(9)),)), 432, 0, 0, INDEX, 0)
    corner = np.array([[144 * (k // 3) + 17, 144 * (k % 3) + 17] for k in range(9)])
    offset = (cut.places[:, :, :2] - corner).reshape(-1, 18)
    assert (offset.min(), offset.max()) == (0, 14)
    counts = np.bincount(offset.reshape(-1), minlength=15)
    expected = offset.size / 15
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-square, 14, p = 0.001
    assert np.abs(np.corrcoef(offset.T) - np.eye(18)).max() < 5 / len(INDEX) ** 0.5


def test_all_orders_are_equally_likely() -> None:
    order = random_tiles(Tiles(grid=(2, 2)), 32, 0, 0, INDEX, 0).order
    found, counts = np.unique(order, axis=0, return_counts=True)
    assert sorted(found.tolist()) == [list(p) for p in itertools.permutations(range(4))]
    expected = len(INDEX) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-square, 23, p = 0.001


def test_orders_given_are_equally_likely_and_no_others_come() -> None:
    order = random_tiles(FEW, 32, 0, 0, INDEX, 0).order
    found, counts = np.unique(order, axis=0, return_counts=True)
    assert sorted(map(tuple, found.tolist())) == sorted(FEW.orders)
    expected = len(INDEX) / 3
    assert ((counts - expected) ** 2 / expected).sum() < 13.9  # chi-square, 2, p = 0.001


def test_channels_are_kept_as_often_as_asked_for() -> None:
    kept = random_tiles(PATCHES, 96, 0, 0, INDEX, 0).places[:, :, 2]
    counts = np.bincount(kept.reshape(-1) + 1, minlength=4)
    expected = kept.size * np.array([0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3, p = 0.001
    assert (random_tiles(PUZZLE, 96, 0, 0, INDEX, 0).places[:, :, 2] == -1).all()


def test_tiles_are_those_of_the_hash() -> None:
    """In plain Python, one number at a time."""
    tiles = Tiles(grid=(2, 3), gap=0.1, jitter=0.4, drop=0.5)
    cut = random_tiles(tiles, 64, 7, 2, np.array([41, 5]), 1)
    cell, size, jitter = tiles.pixels(64)
    for i, image in enumerate([41, 5]):
        keys = [int(bits(7, 2, image, 1, Purpose.ARRANGEMENT, k)) for k in range(6)]
        assert cut.order[i].tolist() == sorted(range(6), key=keys.__getitem__)
        for k, number in enumerate(cut.order[i].tolist()):
            u = [float(uniform(7, 2, image, 1, Purpose.TILES, k, draw)) for draw in range(4)]
            row, column = divmod(number, 3)
            free = (cell - size - jitter) // 2
            top = (64 - 2 * cell) // 2 + row * cell + free + int(u[0] * (jitter + 1))
            left = (64 - 3 * cell) // 2 + column * cell + free + int(u[1] * (jitter + 1))
            kept = int(3 * u[3]) if u[2] < 0.5 else -1
            assert cut.places[i, k].tolist() == [top, left, kept]
    (chosen,) = random_tiles(FEW, 64, 7, 2, np.array([41]), 1).order.tolist()
    assert tuple(chosen) == FEW.orders[int(3 * float(uniform(7, 2, 41, 1, Purpose.ARRANGEMENT, 0)))]


def test_tiles_depend_on_what_they_should() -> None:
    first = random_tiles(PATCHES, 96, 0, 0, INDEX[:20], 0)
    for words in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed, epoch, view = words
        other = random_tiles(PATCHES, 96, seed, epoch, INDEX[:20], view)
        assert not np.array_equal(first.order, other.order)
        assert not np.array_equal(first.places, other.places)
    alone = random_tiles(PATCHES, 96, 0, 0, INDEX[7:8], 0)
    assert np.array_equal(first.order[7:8], alone.order)
    assert np.array_equal(first.places[7:8], alone.places)


# Of blocks and targets


@pytest.mark.parametrize("ratio", [0.0, 0.1, 120 / 196, 0.95])
@pytest.mark.parametrize("grid", [(14, 14), (4, 7), (2, 2), (1, 9)])
def test_blocks_hide_exactly(grid: tuple[int, int], ratio: float) -> None:
    masking = Masking(grid=grid, ratio=ratio, kind="blocks")
    hidden = block_mask(masking, 0, 0, INDEX[:200], 0).hidden
    assert hidden.shape == (200, 1, grid[0] * grid[1])
    assert (hidden.sum(dim=2) == masking.hidden).all()


@pytest.mark.parametrize("ratio", [0.0, 0.1, 120 / 196, 0.95])
def test_inverse_blocks_show_what_blocks_would_hide(ratio: float) -> None:
    masking = Masking(grid=(14, 14), ratio=ratio, kind="inverse", masked=0.5)
    found = draw_mask(masking, 3, 1, 0, INDEX[:200], 0).hidden[:, 0]
    counts = found.sum(dim=1)
    assert set(counts.tolist()) == {0, masking.hidden} if ratio else not counts.any()
    others = replace(masking, ratio=1 - ratio, kind="blocks", masked=1.0) if ratio else None
    if others is not None:
        shown = block_mask(others, 3, 1, INDEX[:200], 0).hidden[:, 0]
        rows = counts > 0
        assert torch.equal(~found[rows], shown[rows])


def test_blocks_are_the_loop_over_rectangles() -> None:
    """In plain Python, one image and one patch at a time."""
    masking = Masking(grid=(8, 6), ratio=0.4, spread=0.3, kind="blocks", aspect=(0.5, 3.0))
    found = block_mask(masking, 7, 2, INDEX[:40], 1).hidden[:, 0]
    turns = []
    for i in range(40):
        words = (7, 2, i, 1, Purpose.MASK)
        keys = [int(bits(*words, p)) for p in range(48)]
        wanted = round((0.4 + 0.3 * (2 * float(uniform(*words, -1, 0)) - 1)) * 48)
        hidden: set[int] = set()
        turn = 0
        while len(hidden) < wanted:
            u = [float(uniform(*words, -2 - turn, k)) for k in range(4)]
            missing = wanted - len(hidden)
            least = min(missing, 4)  # (6 // 3) ** 2
            area = least + u[0] * (missing - least)
            aspect = 0.5 * 6 ** u[1]
            height = min(max(round((area * aspect) ** 0.5), 1), 8)
            width = min(max(round((area / aspect) ** 0.5), 1), 6)
            top, left = int(u[2] * (8 - height + 1)), int(u[3] * (6 - width + 1))
            inside = {
                6 * r + c for r in range(top, top + height) for c in range(left, left + width)
            }
            hidden |= set(sorted(inside - hidden, key=keys.__getitem__)[:missing])
            turn += 1
        turns.append(turn)
        assert found[i].nonzero()[:, 0].tolist() == sorted(hidden)
    assert 1 <= min(turns) < max(turns) < 40


def test_blocks_hang_together_and_lie_everywhere() -> None:
    grids = {}
    for kind in ("random", "blocks"):
        masking = Masking(grid=(10, 10), ratio=0.3, kind=kind)
        grids[kind] = draw_mask(masking, 0, 0, 0, INDEX, 0).hidden.reshape(-1, 10, 10).double()
    edges = {k: (m[:, 1:] != m[:, :-1]).double().mean() for k, m in grids.items()}
    assert edges["blocks"] < 0.6 * edges["random"]
    often = grids["blocks"].mean(dim=0)
    assert often.min() > 0.03, "the last row and column too"
    for turned in (often.flip(0), often.flip(1), often.T):
        assert (often - turned).abs().max() < 0.07


@pytest.mark.parametrize("kind", ["random", "blocks"])
def test_shares_are_uniform_and_some_images_stay_whole(kind: str) -> None:
    masking = Masking(grid=(10, 10), ratio=0.3, spread=0.2, masked=0.5, kind=kind)
    counts = draw_mask(masking, 0, 0, 0, INDEX, 0).hidden.sum(dim=(1, 2)).numpy()
    whole = counts == 0
    assert abs(whole.mean() - 0.5) < 4 * 0.5 / len(INDEX) ** 0.5
    assert (counts[~whole].min(), counts[~whole].max()) == (10, 50)
    assert abs(counts[~whole].mean() - 30) < 4 * 11.6 / whole.sum() ** 0.5


@pytest.mark.parametrize(("b", "masked"), [(40, 0.5), (7, 0.5), (9, 1.0), (5, 0.0)])
@pytest.mark.parametrize("kind", ["random", "blocks"])
def test_stratified_shares_are_one_of_each_part_of_the_range(
    kind: str, b: int, masked: float
) -> None:
    """In plain Python: which images are masked, and how much of each is hidden."""
    masking = Masking(
        grid=(10, 10), ratio=0.3, spread=0.2, masked=masked, stratified=True, kind=kind
    )
    counts = draw_mask(masking, 5, 1, 0, INDEX[:b], 2).hidden.sum(dim=(1, 2)).tolist()
    words = (2, Purpose.MASK, -1)
    order = sorted(range(b), key=lambda i: float(uniform(5, 1, i, *words, 1)))
    chosen = order[: round(masked * b)]
    assert [i for i in range(b) if counts[i]] == sorted(chosen)
    for k, i in enumerate(chosen):
        low, high = (10 + 40 * part / len(chosen) for part in (k, k + 1))
        assert low - 0.5 <= counts[i] <= high + 0.5
        assert counts[i] == round(low + (high - low) * float(uniform(5, 1, i, *words, 0)))


@pytest.mark.parametrize("world", [2, 3])
def test_stratified_masks_of_several_processes_are_those_of_one(world: int) -> None:
    masking = Masking(
        grid=(6, 6), ratio=0.3, spread=0.2, masked=0.5, stratified=True, kind="blocks"
    )
    batch = INDEX[100:124]
    alone = draw_mask(masking, 3, 2, 9, batch, 1).hidden
    for rank in range(world):
        mine = draw_mask(masking, 3, 2, 9, batch[rank::world], 1, batch).hidden
        assert torch.equal(mine, alone[rank::world])
    apart = draw_mask(masking, 3, 2, 9, batch[::world], 1).hidden
    assert not torch.equal(apart, alone[::world]), "on its own it would be another batch"


def test_blocks_depend_on_what_they_should() -> None:
    masking = Masking(grid=(8, 8), ratio=0.4, kind="blocks")
    first = block_mask(masking, 0, 0, INDEX[:20], 0).hidden
    for words in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        seed, epoch, view = words
        assert not torch.equal(first, block_mask(masking, seed, epoch, INDEX[:20], view).hidden)
    assert torch.equal(first[7:8], block_mask(masking, 0, 0, INDEX[7:8], 0).hidden)


JEPA = Masking(grid=(14, 14), kind="targets", aspect=(0.75, 1.5))


def sides(block: torch.Tensor) -> tuple[int, int]:
    """Height and width of what is True, which must be a full rectangle."""
    rows, columns = block.any(dim=1).nonzero()[:, 0], block.any(dim=0).nonzero()[:, 0]
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
    assert block[top : top + height, left : left + width].all()
    assert block.sum() == height * width
    return height, width


@pytest.mark.parametrize("step", range(6))
def test_targets_are_rectangles_of_one_size_and_the_rest_is_a_context(step: int) -> None:
    mask = target_mask(JEPA, 3, 0, step, INDEX[:50], 0)
    assert mask.hidden.shape == (50, 5, 196)
    found = {sides(block) for item in mask.hidden[:, :4] for block in item.view(4, 14, 14)}
    assert len(found) == 1
    ((height, width),) = found
    assert 0.12 * 196 < height * width < 0.22 * 196
    assert 0.7 < height / width < 1.6
    targets, rest = mask.hidden[:, :4].any(dim=1), mask.hidden[:, 4]
    assert not (targets & rest).any()
    assert torch.equal(mask.keep().new_zeros(50, 196).scatter(1, mask.keep(), 1).bool(),
                       ~(targets | rest))  # fmt: skip
    tall = mask.keep().shape[1] + 4 * height * width
    assert tall in (13 * 13, 14 * 14), "as many as are left where no two targets overlap"
    kept = ~(targets | rest)
    for item in kept.view(-1, 14, 14):
        rows, columns = item.any(dim=1).nonzero()[:, 0], item.any(dim=0).nonzero()[:, 0]
        assert int(rows.max() - rows.min()) < round(tall**0.5)
        assert int(columns.max() - columns.min()) < round(tall**0.5)


def test_sizes_are_those_of_the_step_and_places_those_of_the_image() -> None:
    def of(step: int, index: np.ndarray, **words: int) -> torch.Tensor:
        given = {"seed": 0, "epoch": 0, "view": 0, **words}
        return target_mask(JEPA, given["seed"], given["epoch"], step, index, given["view"]).hidden

    sizes = {sides(of(step, INDEX[:1])[0, 0].view(14, 14)) for step in range(40)}
    assert len(sizes) > 6
    first = of(0, INDEX[:20])
    assert torch.equal(first[7:8], of(0, INDEX[7:8])), "no image's depends on the others'"
    assert not torch.equal(first[7], first[8])
    for change in ({"seed": 1}, {"epoch": 1}, {"view": 1}):
        assert not torch.equal(first, of(0, INDEX[:20], **change))
    moved = of(0, INDEX[:20], epoch=1)
    assert sides(moved[0, 0].view(14, 14)) == sides(first[0, 0].view(14, 14))


def test_every_place_is_a_target_and_a_context_as_often_as_its_mirror_image() -> None:
    """Other implementations leave out the last row and column, and cut contexts at the bottom."""
    hidden = torch.cat([target_mask(JEPA, 0, s, s, INDEX[:500], 0).hidden for s in range(20)])
    targets = hidden[:, :4].double().mean(dim=(0, 1)).view(14, 14)
    kept = (~hidden.any(dim=1)).double().mean(dim=0).view(14, 14)
    for often in (targets, kept):
        assert often.min() > 0
        for turned in (often.flip(0), often.flip(1)):
            assert (often - turned).abs().max() < 0.05


@pytest.mark.parametrize("grid", [(3, 3), (4, 4), (4, 7), (8, 8), (16, 16)])
def test_targets_leave_a_twentieth_of_any_grid(grid: tuple[int, int]) -> None:
    masking = Masking(grid=grid, kind="targets", aspect=(0.75, 1.5))
    for step in range(30):
        kept = target_mask(masking, 0, 0, step, INDEX[:3], 0).keep().shape[1]
        assert kept >= grid[0] * grid[1] / 20


def test_masks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 patches has no room for 4 targets"):
        target_mask(Masking(grid=(2, 2), kind="targets"), 0, 0, 0, INDEX[:3], 0)
    for wrong, said in (
        ({"ratio": 0.3, "spread": 0.4}, "smaller spread"), ({"masked": 1.5}, "masked"),
        ({"aspect": (2.0, 1.0)}, "aspect"), ({"area": (0.1, 1.1)}, "area"),
        ({"context": (0.0, 1.0)}, "context"), ({"targets": 0}, "target"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Masking(grid=(4, 4), **wrong)
