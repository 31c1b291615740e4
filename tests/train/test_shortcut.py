"""Shortcuts are found where they are, not where they are not, and looking changes nothing."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.data.cache import Cache
from erg.data.loader import Loader
from erg.encoders import build_encoder
from erg.method import Cell, Loss, Method
from erg.methods.jigsaw import Jigsaw
from erg.train import shortcut
from erg.train.checkpoint import state_hash
from erg.train.health import Watched
from erg.train.shortcut import (
    Shortcut,
    answered,
    borders,
    fringes,
    going_on,
    shading,
    told_by_cues,
)
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import SIMCLR_SMALL, WHOLE, Augmentation, Plan, Tiles, two_views
from erg.views.types import View, Views

SIDE = 48
TURNED = Plan(main=(WHOLE, *(replace(WHOLE, turns=k, same_as=0) for k in (1, 2, 3))), pairs="turn")
TOUCHING = Tiles(gap=0.0, jitter=0.0)


def tiled(tiles: Tiles) -> Plan:
    return Plan(main=(replace(WHOLE, tiles=tiles),), pairs="order")


def smooth(n: int, side: int = SIDE) -> np.ndarray:
    """Pictures without any direction: sums of random waves, of the same kind everywhere."""
    random = np.random.default_rng(7)
    y, x = np.mgrid[:side, :side]
    made = np.zeros((n, side, side, 3))
    for _ in range(8):
        angle, phase = random.uniform(0, 2 * math.pi, (2, n, 1, 1, 1))
        rate = random.uniform(0.1, 0.5, (n, 1, 1, 1))
        along = np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]
        made += random.uniform(0.3, 1, (n, 1, 1, 3)) * np.sin(rate * along + phase)
    return (127 + 25 * made).clip(0, 255).astype(np.uint8)


def with_lens(images: np.ndarray) -> np.ndarray:
    """Red a little larger than green, blue a little smaller, about the centre of the picture."""
    bent = images.copy()
    side = images.shape[1]
    place = np.arange(side) - (side - 1) / 2
    for channel, size in ((0, 1.05), (2, 0.95)):
        there = np.rint(place / size + (side - 1) / 2).clip(0, side - 1).astype(int)
        bent[..., channel] = images[..., 1][:, there][:, :, there]
    bent[..., 1] = images[..., 1]
    return bent


def views(images: np.ndarray, plan: Plan) -> Views:
    return make_views(
        Pixels.pack(list(images)), plan, seed=0, epoch=0, step=0, index=np.arange(len(images)),
        image_size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3),
    )  # fmt: skip


class Knows(Method):
    """F(x, y) = 0 for the right answer, 1 for others; of some images it does not know.

    Args:
        fails: every so many images are wrong; 0 for none.
    """

    cell = Cell("joint-embedding", "contrastive", by="nothing")

    def __init__(self, encoder, *, fails: int = 0) -> None:
        super().__init__(encoder)
        self.fails = fails

    def plan(self) -> Plan:
        return TURNED

    def energy(self, x: View, y: Tensor) -> Tensor:
        assert x.made is not None
        truth = x.made.turns if x.made.order is None else x.made.order
        wrong = (truth != y).reshape(len(x), -1).any(dim=1).float()
        if self.fails:
            wrong[:: self.fails] = 0.5
        return wrong

    def loss(self, views: Views, progress: float) -> Loss:
        return Loss(pull={})


def method(**arguments: Any) -> Knows:
    return Knows(build_encoder("conv", SIDE, width=4, stages=1), **arguments)


def watching(images: np.ndarray, plan: Plan, steps: int = 100) -> Watched:
    loader = Loader(
        Cache.of(list(images)), np.arange(4), plan, batch=4, seed=0, image_size=SIDE,
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3),
    )  # fmt: skip
    held = np.arange(4, len(images))
    return Watched(loader, held, None, torch.device("cpu"), None, steps)


def observer(watched: Watched, **arguments: Any) -> Shortcut:
    made = Shortcut(**arguments)
    made.start(watched)
    return made


# The cues


def test_fringes_are_shifts_of_red_and_blue_against_green() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")

    def wave(down: float, across: float) -> Tensor:
        y_, x_ = y - down, x - across
        return (0.21 * y_ + 0.13 * x_).sin() + (0.15 * x_ - 0.1 * y_).cos()

    piece = torch.stack([wave(0.7, -0.3), 3 * wave(0, 0) + 1, wave(-0.2, 0.5)])[None]
    # Down of red and of blue, then across of both.
    assert fringes(piece)[0].tolist() == pytest.approx([0.7, -0.2, -0.3, 0.5], abs=0.06)


def test_borders_are_those_of_each_side() -> None:
    piece = torch.randn(1, 3, 6, 7)
    found = borders(piece)[0].reshape(4, 2)
    image = piece[0]
    sides = {
        0: (image[:, 0], image[:, 1]), 1: (image[:, :, -1], image[:, :, -2]),
        2: (image[:, -1], image[:, -2]), 3: (image[:, :, 0], image[:, :, 1]),
    }  # fmt: skip
    for turn, (outer, inner) in sides.items():
        varies = sum(float(line.std()) for line in outer) / 3
        differs = float((outer - inner).abs().mean())
        assert found[turn].tolist() == pytest.approx([varies, differs], rel=1e-5)


def test_shading_is_the_slope() -> None:
    ramp = torch.linspace(-1, 1, 9)
    piece = (0.5 * ramp[:, None] - 2 * ramp[None])[None, None].expand(1, 3, 9, 9)
    square = float(ramp.square().mean())
    assert shading(piece)[0].tolist() == pytest.approx([0.5 * square, -2 * square], rel=1e-5)


def test_edges_that_go_on_are_looked_for_among_the_other_tiles() -> None:
    tiles = torch.rand(2, 3, 3, 4, 4)
    found = going_on(tiles).reshape(2, 3, 4, 2)

    def edges(tile: Tensor) -> list[Tensor]:
        """Top, right, bottom and left."""
        return [tile[:, 0], tile[:, :, -1], tile[:, -1], tile[:, :, 0]]

    for b in range(2):
        for p in range(3):
            for side in range(4):
                mine = edges(tiles[b, p])[side]
                others = [edges(tiles[b, q])[(side + 2) % 4] for q in range(3) if q != p]
                best, next_best = sorted(float((mine - edge).abs().mean()) for edge in others)
                expected = [math.log(best + 1e-3), math.log((next_best + 1e-3) / (best + 1e-3))]
                assert found[b, p, side].tolist() == pytest.approx(expected, abs=1e-4)


# What they tell


def test_tiles_that_touch_are_told_by_their_edges_and_those_of_the_paper_are_not() -> None:
    images = smooth(96)
    told, chance = told_by_cues(views(images, tiled(TOUCHING)))
    assert chance == pytest.approx(1 / 9)
    assert set(told) == {"colour fringes", "borders", "shading", "edges that go on"}
    assert told["edges that go on"] > 0.4
    assert max(share for cue, share in told.items() if cue != "edges that go on") < 0.3
    told, _ = told_by_cues(views(images, tiled(Tiles())))
    assert max(told.values()) < 0.25


def test_a_lens_tells_where_tiles_are_until_colours_are_dropped() -> None:
    images = with_lens(smooth(96))
    told, _ = told_by_cues(views(images, tiled(Tiles())))
    assert told["colour fringes"] > 0.6
    told, _ = told_by_cues(views(images, tiled(Tiles(drop=1.0))))
    assert told["colour fringes"] < 0.3


def test_a_frame_or_light_from_above_tells_the_turn() -> None:
    images = smooth(96)
    told, chance = told_by_cues(views(images, TURNED))
    assert chance == 0.25
    assert set(told) == {"colour fringes", "borders", "shading"}
    assert max(told.values()) < 0.45
    framed = images.copy()
    framed[:, :2] = 0
    assert told_by_cues(views(framed, TURNED))[0]["borders"] > 0.95
    lit = (images * np.linspace(1, 0.3, SIDE)[:, None, None]).astype(np.uint8)
    assert told_by_cues(views(lit, TURNED))[0]["shading"] > 0.9


def test_what_has_no_cues_is_left_alone() -> None:
    images = smooth(8)
    tiny = Tiles(grid=(16, 16), orders=(tuple(range(9)), tuple(range(1, 10))))
    assert told_by_cues(views(images, tiled(tiny)))[0] == {}
    always = Tiles(orders=((0,),))
    assert told_by_cues(views(images, tiled(always))) == ({}, 1.0)
    alone = Tiles(orders=((0,), (4,)))
    assert set(told_by_cues(views(smooth(24), tiled(alone)))[0]) == {
        "colour fringes", "borders", "shading"
    }  # fmt: skip


# What is answered


@pytest.mark.parametrize(("fails", "share"), [(0, 1.0), (4, 0.75), (1, 0.0)])
def test_answers_are_right_where_the_right_one_has_the_lowest_energy(
    fails: int, share: float
) -> None:
    for plan, chance in ((TURNED, 0.25), (tiled(Tiles()), 0.125)):
        asked = views(smooth(16), plan)
        found = answered(method(fails=fails), asked, torch.device("cpu"), None)
        assert found == (share, chance)


def test_a_method_that_knows_nothing_guesses() -> None:
    torch.manual_seed(0)
    guessing = Jigsaw(build_encoder("conv", SIDE, width=4, stages=2), width=4, orders=8)
    asked = views(smooth(64), guessing.plan())
    share, chance = answered(guessing, asked, torch.device("cpu"), None)
    assert chance == 0.125
    assert share < 0.35


# The observer


def test_it_watches_methods_that_answer_and_no_others() -> None:
    images = smooth(24)
    assert [s for s in range(101) if observer(watching(images, TURNED), looks=4).due(s)] == [
        0, 25, 50, 75, 100,
    ]  # fmt: skip
    for plan in (two_views(SIMCLR_SMALL), Plan(main=(Augmentation(),), pairs="itself")):
        assert not any(observer(watching(images, plan)).due(step) for step in range(101))
    few = observer(watching(images[:10], TURNED))
    assert not few.due(0)


def test_the_cues_of_several_tasks_are_looked_at_once_and_each_by_itself() -> None:
    touching = replace(WHOLE, tiles=TOUCHING)
    plan = Plan(main=(WHOLE, replace(WHOLE, turns=None), touching), pairs="tasks")
    looking = observer(watching(smooth(100), plan))
    assert [step for step in range(101) if looking.due(step)] == [0]
    seen = looking.look(method(), 0)
    assert seen["warning"].startswith("Shortcut: edges that go on alone can give ")
    assert " of the answers about the tiles of view 3 (" in seen["warning"]
    alone = tiled(TOUCHING)
    expected, _ = told_by_cues(views(smooth(100), alone))
    found = {cue: share for cue, share in seen["cues"].items() if cue.endswith("tiles of view 3")}
    assert set(found) == {f"{cue} about the tiles of view 3" for cue in expected}
    assert "shading about the turn of view 2" in seen["cues"]
    assert not any("view 1" in cue for cue in seen["cues"])


def test_a_task_that_is_too_easy_is_said_early_and_not_late() -> None:
    looking = observer(watching(smooth(24), TURNED))
    seen = looking.look(method(), 8)
    assert (seen["kind"], seen["accuracy"], seen["chance"]) == ("shortcut", 1.0, 0.25)
    assert seen["warning"].startswith("Too easy: after 8 of 100 steps 100% of the answers")
    assert "warning" not in looking.look(method(), 75)
    assert "warning" not in looking.look(method(fails=4), 8)


def test_a_cue_that_solves_the_task_is_named_before_training() -> None:
    looking = observer(watching(smooth(100), tiled(TOUCHING)))
    seen = looking.look(method(fails=1), 0)
    assert seen["warning"].startswith("Shortcut: edges that go on alone can give ")
    assert seen["warning"].endswith(
        "Leave a larger gap between tiles and more jitter in their places."
    )
    assert seen["cues"]["edges that go on"] > 0.4
    assert "cues" not in looking.look(method(fails=1), 8)
    calm = observer(watching(smooth(100), tiled(Tiles()))).look(method(fails=1), 0)
    assert "warning" not in calm


def test_what_few_images_say_by_luck_is_no_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "told_by_cues", lambda _: ({"borders": 0.5}, 0.25))
    for n, warned in ((96, True), (16, False)):
        looking = observer(watching(smooth(n + 4), TURNED))
        assert ("warning" in looking.look(method(fails=1), 0)) is warned


def test_looking_changes_nothing() -> None:
    torch.manual_seed(0)
    jigsaw = Jigsaw(build_encoder("conv", SIDE, width=4, stages=2), width=4).train()
    before = state_hash(jigsaw)
    looking = observer(watching(smooth(30), jigsaw.plan()))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen = looking.look(jigsaw, 0)
    assert torch.equal(torch.rand(3), expected), "the generator of training moved"
    assert state_hash(jigsaw) == before
    assert jigsaw.training
    assert looking.look(jigsaw, 0) == seen
