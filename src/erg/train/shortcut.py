"""Shortcuts: is a pretext task solved without a look at what the picture shows?

Two signs of it, both looked for on images held out of training. The method answers almost always
right when it has hardly begun; or a linear probe answers from one low-level cue alone: the colour
fringes of lenses, borders, shading, or edges that go on from tile to tile (Doersch et al. 2015,
section 3.1; Noroozi & Favaro 2016, section 4.2).

Letters in shapes: n pieces (turned images, or tiles), d cues.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from erg.evaluate.linear import linear_accuracy
from erg.method import Method
from erg.train.features import at_once, computing_in, evaluating
from erg.train.health import HELD_EPOCH, Watched
from erg.views.types import View, Views

ANSWERS = 8
"""So many are tried at most, the right one among them."""

ADVICE = {
    "colour fringes": "Drop colours, or turn images grey.",
    "borders": "Look for frames around the images, and take smaller crops.",
    "shading": "Light falls from one side in all of them: take another task, or a method that "
    "compares views.",
    "edges that go on": "Leave a larger gap between tiles and more jitter in their places.",
}


class Shortcut:
    """Watches methods that answer a question about a view: its quarter turn, or its tiles' order.

    Of several tasks at once it looks at the cues of each that asks so, not at how many answers are
    right. Of other methods it sees nothing and says nothing.

    Args:
        looks: how often during a run, evenly spaced; at the start and the end as well.
        images: held-out images that the method is asked about.
        probed: held-out images whose cues are looked at, once, before training.
        easy: share of right answers from which a task is called too easy.
        early: fraction of training up to which it is.
        solved: share of the way from chance to certainty at which a cue is called a shortcut, where
            it is three standard errors above chance too. On Imagenette at 96 pixels tiles that
            touch come to 0.39 by their edges, the jigsaw's to 0.1, and turned images to 0.22 by
            their shading.
    """

    def __init__(
        self,
        looks: int = 12,
        images: int = 128,
        probed: int = 512,
        easy: float = 0.98,
        early: float = 0.5,
        solved: float = 0.3,
    ) -> None:
        self.looks, self.images, self.probed = looks, images, probed
        self.easy, self.early, self.solved = easy, early, solved

    def start(self, watched: Watched) -> None:
        self.watched = watched
        self.every = max(1, watched.steps // self.looks)

    def due(self, step: int) -> bool:
        w = self.watched
        if len(w.held) < 2 * ANSWERS:
            return False
        if w.loader.plan.pairs == "tasks":
            return step == 0
        asks = w.loader.plan.pairs in ("turn", "order")
        return asks and (step % self.every == 0 or step == w.steps)

    def look(self, method: Method, step: int) -> dict[str, Any]:
        w = self.watched
        seen: dict[str, Any] = {"kind": "shortcut"}
        warnings = []
        if w.loader.plan.pairs != "tasks":
            views = w.loader.make(w.held[: self.images], epoch=HELD_EPOCH)
            right, chance = answered(method, views, w.device, w.autocast)
            seen |= {"accuracy": round(right, 4), "chance": round(chance, 4)}
            if right >= self.easy and 0 < step <= self.early * w.steps:
                warnings.append(
                    f"Too easy: after {step} of {w.steps} steps {right:.0%} of the answers on "
                    "held-out images are right, so there is little left to learn, or something "
                    "gives them away. Make the task harder, and look for shortcuts."
                )
        if step == 0:
            few = at_once(self.probed, w.loader.image_size, w.loader.mean)
            probed = w.loader.make(w.held[:few], epoch=HELD_EPOCH)
            seen["cues"] = {}
            for task, asked in tasks(probed).items():
                told, guess = told_by_cues(asked)
                # Half of the images are asked about; all pieces of one are often right together.
                luck = 3 * math.sqrt(guess * (1 - guess) / (len(asked) // 2))
                seen["cues"] |= {f"{cue}{task}": share for cue, share in told.items()}
                warnings += [
                    f"Shortcut: {cue} alone can give {share:.0%} of the answers{task} ({guess:.0%} "
                    f"by chance), without a look at the picture. {ADVICE[cue]}"
                    for cue, share in told.items()
                    if share - guess >= max(self.solved * (1 - guess), luck)
                ]
        return {**seen, "warning": " ".join(warnings)} if warnings else seen


def tasks(views: Views) -> dict[str, Views]:
    """Views that ask one question each, by a few words that tell them apart."""
    if views.pairing != "tasks":
        return {"": views}
    found: dict[str, Views] = {}
    for number, view in enumerate(views.main, start=1):
        made = view.made
        if made is not None and made.order is not None:
            found[f" about the tiles of view {number}"] = replace(
                views, main=(view,), pairing="order"
            )
        elif made is not None and made.turns.any():
            found[f" about the turn of view {number}"] = replace(
                views, main=(view,), pairing="turn"
            )
    return found


def answered(
    method: Method, views: Views, device: torch.device, autocast: torch.dtype | None
) -> tuple[float, float]:
    """Share of views whose right answer has the lowest energy of those tried, and by chance."""
    dtype = next((p.dtype for p in method.parameters()), torch.float32)
    views = views.to(device=device, dtype=dtype)
    found: list[Tensor] = []
    tried = 1
    with evaluating(method), computing_in(device, autocast):
        for x, y in views.pairs():
            assert isinstance(y, Tensor)
            answers, right = views.answers(y)
            tried = min(ANSWERS, len(answers))
            wrong = [method.energy(x, answers[(right + k) % len(answers)]) for k in range(1, tried)]
            lowest = torch.stack(wrong).amin(dim=0) if wrong else torch.inf
            found.append(method.energy(x, y) < lowest)
    return float(torch.cat(found).float().mean()), 1 / tried


def told_by_cues(views: Views) -> tuple[dict[str, float], float]:
    """What share of the answers a linear probe gives from each cue alone, and by chance.

    The answer is the quarter turn of an image or the cell that a tile is from. The probe learns on
    the first half of the images and is asked about the others. Brightness and contrast of a piece
    are no cue, since methods take them out. Pieces of less than three pixels have none at all.
    """
    pieces, answers, image = (
        torch.cat(part) for part in zip(*map(_asked, views.main), strict=True)
    )
    labels, first = answers.numpy(), (image < len(views) / 2).numpy()
    chance = 1 / len(np.unique(labels))
    if min(pieces.shape[2:]) < 3 or len(np.unique(labels[first])) < 2:
        return {}, chance
    each = _standard(pieces, dims=(1, 2, 3))
    cues = {"colour fringes": fringes(each), "borders": borders(each), "shading": shading(each)}
    together = len(pieces) // len(views)
    if views.pairing == "order" and together > 2:
        whole = pieces.unflatten(0, (-1, together))
        cues["edges that go on"] = going_on(_standard(whole, dims=(1, 2, 3, 4)))
    told = {}
    for name, cue in cues.items():
        vectors = cue.double().numpy()
        right = linear_accuracy(
            vectors[first], labels[first], vectors[~first], labels[~first], strengths=(1.0,)
        )
        told[name] = round(float(right.mean()), 4)
    return told, chance


def _asked(view: View) -> tuple[Float[Tensor, "n c h w"], Tensor, Tensor]:
    """Pieces of a view, in [0, 1]; of each, the answer to give and the image it is from."""
    made = view.made
    assert made is not None
    data = view.unit().float().cpu()
    items = torch.arange(len(view))
    if made.order is None:
        return data, made.turns, items
    each = view.with_data(data).tiles()
    return each, made.order.flatten(), items.repeat_interleave(made.order.shape[1])


def _standard(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean 0 and deviation 1 over some dimensions."""
    x = x - x.mean(dim=dims, keepdim=True)
    return x / (x.square().mean(dim=dims, keepdim=True) + 1e-6).sqrt()


def fringes(pieces: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    """How far red and blue are shifted against green, down and across [pixels], by least squares:
    C(p + s) = G(p) gives C - G = -s . grad G to first order."""
    pieces = _standard(pieces, dims=(2, 3))
    green = pieces[:, 1]
    down = (green[:, 2:, 1:-1] - green[:, :-2, 1:-1]).flatten(1) / 2
    across = (green[:, 1:-1, 2:] - green[:, 1:-1, :-2]).flatten(1) / 2
    slopes = torch.stack([down, across], dim=2)  # [n hw 2]
    matrix = slopes.mT @ slopes + 1e-3 * slopes.shape[1] * torch.eye(2)
    difference = (pieces[:, [0, 2]] - green[:, None])[:, :, 1:-1, 1:-1].flatten(2)  # [n 2 hw]
    return -torch.linalg.solve(matrix, slopes.mT @ difference.mT).flatten(1)


def borders(pieces: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Of each side: how much its outermost line varies, and how much it differs from the next."""
    found = []
    for turn in range(4):
        outer, inner = pieces.rot90(turn, dims=(2, 3))[:, :, :2].unbind(dim=2)  # [n c w]
        found += [outer.std(dim=2).mean(dim=1), (outer - inner).abs().mean(dim=(1, 2))]
    return torch.stack(found, dim=1)


def shading(pieces: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """How much brighter it becomes from top to bottom and from left to right."""
    grey = pieces.mean(dim=1)
    h, w = (torch.linspace(-1, 1, n) for n in grey.shape[1:])
    down = (grey.mean(dim=2) * h).mean(dim=1)
    return torch.stack([down, (grey.mean(dim=1) * w).mean(dim=1)], dim=1)


def going_on(tiles: Float[Tensor, "b p c s s"]) -> Float[Tensor, "n d"]:
    """Of each side of a tile: the log distance to the edge, among the other tiles of its image,
    that goes on best, and how much better it does than the next best [log]."""
    itself = torch.eye(tiles.shape[1], dtype=torch.bool)
    found = []
    for turn in range(4):
        turned = tiles.rot90(turn, dims=(3, 4))
        top, bottom = turned[..., 0, :].flatten(2), turned[..., -1, :].flatten(2)  # [b p cs]
        apart = torch.cdist(top, bottom, p=1) / top.shape[2]  # [b p p]
        apart = apart.masked_fill(itself, torch.inf)
        near = (apart.topk(2, dim=2, largest=False).values + 1e-3).log().flatten(0, 1)  # [n 2]
        found += [near[:, 0], near[:, 1] - near[:, 0]]
    return torch.stack(found, dim=1)
