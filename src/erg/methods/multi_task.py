"""Several pretext tasks on one trunk (Doersch & Zisserman 2017)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.colours import ColourHead, lightness
from erg.parts.heads import mlp
from erg.parts.tiles import OrderHead, embed_tiles, of_places, place_scores
from erg.views.plan import LIGHT, Augmentation, Plan, Tiles
from erg.views.types import How, View, Views


class MultiTask(Method):
    """F(x, y) = sum_t w_t F_t(x_t, y_t): t asks y_t of a view x_t of its own; one trunk, a head
    each.

    Doersch & Zisserman 2017, section 3: the encoder is all that tasks share, each has a head that
    is left behind, and their gradients are added up. F_t is -log softmax at the right answer, and
    the softmax pushes every other answer up. The task is to tell the quarter turn of an image
    (rotation: Gidaris et al. 2018), the place of each tile around the centre (position: Doersch et
    al. 2015), the order of tiles (jigsaw: Noroozi & Favaro 2016) or the colours of the lightness
    (colours: Zhang et al. 2016). Where inputs are harmonised, all tasks see lightness alone, as
    colours always does: colour does not tell the trunk which task it works for.

    Departs from the paper: of its four tasks position and colours are here, exemplars and the
    motion of videos are not, rotation and jigsaw are added; every head stands on the trunk's last
    vector, without a lasso over its blocks; a step asks all tasks about the same images, each with
    a crop of its own (there: batches of one task, on machines of its own); where inputs are
    harmonised, so is what the encoder is given afterwards. Each task departs from its own paper as
    the method of that task does, and rotation draws one turn of every image.
    Checked against: loops over tiles and answers; the methods of one task each with the same
    weights; gradients of one task at a time.

    Args:
        rotation: w of the task; 0 leaves it out.
        position: w of the task; 0 leaves it out.
        jigsaw: w of the task; 0 leaves it out.
        colours: w of the task; 0 leaves it out.
        harmonise: whether all tasks see lightness alone.
        crop: smallest crop, as a fraction of the image's area.
        hidden: width of the hidden layer of position's head [features].
        width: of what jigsaw's head makes of each tile [features].
        channels: of the decoder of colours before its last layer.
        step: side of a bin of colours [units of a and b].
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the answers to each task")
    batch_coupled = True  # by the frequencies of colours

    def __init__(
        self,
        encoder: Encoder,
        *,
        rotation: float = 1.0,
        position: float = 1.0,
        jigsaw: float = 0.0,
        colours: float = 1.0,
        harmonise: bool = False,
        crop: float = 0.3,
        hidden: int = 512,
        width: int = 256,
        channels: int = 32,
        step: float = 20.0,
    ) -> None:
        super().__init__(encoder)
        asked = {"rotation": rotation, "position": position, "jigsaw": jigsaw, "colours": colours}
        self.weights = {task: weight for task, weight in asked.items() if weight != 0}
        if not self.weights or min(self.weights.values()) < 0:
            raise ValueError(
                f"weights of tasks are 0 or greater, and at least one is not 0 (got {asked})."
            )
        self.harmonise, self.crop = harmonise, crop
        self.grid = 3 if encoder.image_size >= 64 else 2
        build: dict[str, Callable[[], nn.Module]] = {
            "rotation": lambda: nn.Linear(encoder.dim, 4),
            "position": lambda: mlp(2 * encoder.dim, hidden, 8),
            "jigsaw": lambda: OrderHead(encoder.dim, self.grid, width=width),
            "colours": lambda: ColourHead(encoder, step=step, width=channels),
        }
        self.heads = nn.ModuleDict({task: build[task]() for task in self.weights})

    def plan(self) -> Plan:
        return Plan(main=tuple(self.view_for(task) for task in self.heads), pairs="tasks")

    def view_for(self, task: str) -> Augmentation:
        """Made as the method of that task alone makes it, but for one crop for all."""
        view, head = replace(LIGHT, crop=(self.crop, 1.0)), self.heads[task]
        match task:
            case "rotation":
                return replace(view, ratio=(1.0, 1.0), turns=None)
            case "position":
                return replace(view, tiles=Tiles(drop=0.0 if self.harmonise else 1.0))
            case "jigsaw":
                assert isinstance(head, OrderHead)
                tiles = Tiles(
                    grid=(self.grid, self.grid), gap=1 / 75, jitter=10 / 75, orders=head.known()
                )
                return replace(view, grey=0.3, tiles=tiles)
        return view

    def grey(self, data: Tensor) -> Tensor:
        return lightness(data, self.encoder.mean, self.encoder.std)

    def encode(self, data: Tensor) -> Float[Tensor, "b d"]:
        """Of the lightness alone, if inputs are harmonised."""
        return self.encoder(self.grey(data) if self.harmonise else data)

    def answers(self, y: Views) -> dict[str, Tensor]:
        """What each task asks for: turns [b], orders [b p], shares of the colours [n q]."""
        found: dict[str, Tensor] = {}
        for (task, head), view in zip(self.heads.items(), y.need(len(self.heads)), strict=True):
            if isinstance(head, ColourHead):
                found[task] = head.target(view.data)
            elif task == "rotation":
                found[task] = made(view).turns
            else:
                order = made(view).order
                if order is None:
                    raise ValueError(f"{task} needs a view cut into tiles. Use MultiTask's plan.")
                found[task] = order
        return found

    def energies(self, x: Views, answers: dict[str, Tensor]) -> dict[str, Float[Tensor, " b"]]:
        """w_t F_t of each task."""
        found: dict[str, Tensor] = {}
        for task, view in zip(self.heads, x.need(len(self.heads)), strict=True):
            head: Any = self.heads[task]
            y = answers[task]
            if self.harmonise or task == "colours":
                view = view.with_data(self.grey(view.data))
            match task:
                case "rotation":
                    each = energy.of_class(head(self.encoder(view.data)), y)
                case "position":
                    each = of_places(place_scores(head, embed_tiles(self.encoder, view), y))
                case "jigsaw":
                    scores = head(embed_tiles(self.encoder, view))
                    each = scores.logsumexp(dim=1) - head.of_order(scores, y)
                case _:
                    each = head.misfit(self.encoder(view.data), y)
            found[task] = self.weights[task] * each
        return found

    def energy(self, x: Views, y: Views) -> Float[Tensor, " b"]:
        return torch.stack([*self.energies(x, self.answers(y)).values()]).sum(dim=0)

    def loss(self, views: Views, progress: float) -> Loss:
        answers = self.answers(views)
        if self.training and "colours" in answers:
            palette = self.heads["colours"]
            assert isinstance(palette, ColourHead)
            palette.remember(answers["colours"])
        energies = self.energies(views, answers)
        return Loss(pull={task: distributed.mean(each) for task, each in energies.items()})


def made(view: View) -> How:
    """How a view was made, which answers are read from."""
    if view.made is None:
        raise ValueError(
            "MultiTask needs views that know how they were made (got one without How). Use its "
            "plan."
        )
    return view.made
