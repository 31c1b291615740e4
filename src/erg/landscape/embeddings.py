"""Figures of joint embedding: views of a photograph, collapse, equal use of prototypes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erg import inference, noise
from erg.encoders import IMAGENET_MEAN, IMAGENET_STD
from erg.evaluate.rank import effective_rank
from erg.landscape import worlds
from erg.landscape.draw import Canvas, Figure
from erg.landscape.learn import MLP, check_steps, learn, method
from erg.landscape.pictures import photograph
from erg.train.run import Optimiser
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, WHOLE, Augmentation, Masking, Plan, two_views
from erg.views.types import View

SHAPINGS: dict[str, dict[str, Any]] = {
    "nothing": {"variance": 0.0, "covariance": 0.0},
    "variance": {"covariance": 0.0},
    "variance and covariance": {},
}
"""What VICReg keeps of its terms."""


@dataclass(frozen=True, eq=False)
class Collapse(Figure):
    """Pulling two views together and nothing else ends with one point for everything; a floor for
    the variance alone leaves few directions. Sinkhorn's codes use all prototypes equally."""

    size = (14.0, 4.6)
    steps: np.ndarray
    deviations: np.ndarray
    ranks: np.ndarray
    softmax: np.ndarray
    balanced: np.ndarray

    @classmethod
    def compute(cls, *, seed: int = 0, steps: int = 400) -> "Collapse":
        check_steps(steps, 20)
        points = worlds.mixture(1500, seed)
        jitter = two_views(replace(WHOLE, noise=0.2))
        every = steps // 20
        at = np.arange(every, steps + 1, every)  # earlier, batch normalisation has seen too little
        deviations, ranks = np.empty((3, len(at))), np.empty((3, len(at)))
        for row, weights in enumerate(SHAPINGS.values()):
            model: Any = method("VICReg", 2, seed=seed, hidden=64, dim=16, **MLP, **weights)

            def look(done: int, model: Any = model, row: int = row) -> None:
                if done and done % every == 0:
                    with torch.no_grad():
                        z = model.expand(View(points)).numpy()
                    deviations[row, done // every - 1] = z.std(axis=0).mean()
                    ranks[row, done // every - 1] = effective_rank(z)

            learn(
                model, points, steps=steps, plan=jitter, seed=seed, watch=look,
                optimiser=Optimiser(lr=2e-3, weight_decay=0.0),
            )  # fmt: skip
        scores = uneven_scores(256, 8, seed)
        eps = 0.1
        softmax, balanced = (scores / eps).softmax(dim=1), inference.sinkhorn(scores, eps, 50)
        return cls(at, deviations, ranks, softmax.numpy(), balanced.numpy())

    def facts(self) -> dict[str, float]:
        names = list(SHAPINGS)
        return {
            **{f"deviation at the end, {n}": float(d[-1])
               for n, d in zip(names, self.deviations, strict=True)},
            **{f"rank at the end, {n}": float(r[-1])
               for n, r in zip(names, self.ranks, strict=True)},
            "largest share of a prototype, softmax": float(self.softmax.mean(axis=0).max()),
            "largest share of a prototype, Sinkhorn": float(self.balanced.mean(axis=0).max()),
        }  # fmt: skip

    def draw(self, canvas: Canvas) -> None:
        first, second, third = canvas.panels(1, 3)[0]
        for i, name in enumerate(SHAPINGS):
            first.plot(self.steps, self.deviations[i], label=f"kept up by {name}")
            if i:  # one point and its rounding errors have no rank to speak of
                second.plot(self.steps, self.ranks[i], color=canvas.theme.colours[i])
        first.set(xlabel="step", yscale="log", title="deviation of z: to 0 without shaping")
        first.legend()
        second.set(xlabel="step", ylim=(0, None), title="effective rank of z (16 features)")
        k = np.arange(self.softmax.shape[1])
        third.bar(k - 0.2, self.softmax.mean(axis=0), 0.4, label="softmax")
        third.bar(k + 0.2, self.balanced.mean(axis=0), 0.4, label="Sinkhorn")
        third.axhline(1 / len(k), color=canvas.theme.quiet, linestyle=":")
        third.set(xlabel="prototype", title="share of the codes (dotted: equal)", xticks=k)
        third.legend()


def uneven_scores(items: int, prototypes: int, seed: int) -> Tensor:
    """Cosines of items with prototypes, of which the first are liked by all."""
    drawn = noise.normal(torch.arange(items), prototypes, purpose="scores", step=seed)
    return 0.15 * drawn + torch.linspace(0.4, 0.0, prototypes)


OPERATIONS: dict[str, Augmentation] = {
    "crop": replace(LIGHT, crop=(0.08, 0.5), flip=0.0),
    "flip": replace(WHOLE, flip=1.0),
    "colour jitter": replace(
        WHOLE, jitter=1.0, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.2
    ),
    "grey": replace(WHOLE, grey=1.0),
    "blur": replace(WHOLE, blur=1.0, sigma=(2.0, 4.0)),
    "solarise": replace(WHOLE, solarise=1.0),
    "75 % hidden": replace(WHOLE, mask=Masking(grid=(16, 16), ratio=0.75)),
}


@dataclass(frozen=True, eq=False)
class ManyViews(Figure):
    """A photograph and what augmentations make of it, three draws each."""

    size = (13.0, 5.6)
    whole: np.ndarray
    made: np.ndarray
    hidden: float

    @classmethod
    def compute(cls, *, seed: int = 0, side: int = 192) -> "ManyViews":
        pixels = Pixels.pack([photograph()] * 3)

        def views(plan: Plan) -> tuple[View, ...]:
            return make_views(
                pixels, plan, seed=seed, epoch=0, step=0, index=np.arange(3), image_size=side,
                mean=IMAGENET_MEAN, std=IMAGENET_STD,
            ).main  # fmt: skip

        whole, *made = views(Plan(main=(WHOLE, *OPERATIONS.values())))
        mask = made[-1].mask
        assert mask is not None
        hidden = mask.hidden[:, 0].reshape(3, 1, 16, 16).float()
        shown = 1 - torch.nn.functional.interpolate(hidden, size=(side, side))
        images = [view.unit() for view in made]
        images[-1] = images[-1] * shown + 0.5 * (1 - shown)
        return cls(
            as_picture(whole.unit())[0], np.stack([as_picture(image) for image in images]),
            float(hidden.mean()),
        )  # fmt: skip

    def facts(self) -> dict[str, float]:
        mirrored = self.made[list(OPERATIONS).index("flip"), 0]
        return {
            "share of the patches hidden": self.hidden,
            "largest difference of a flipped view and the mirrored photograph": float(
                np.abs(mirrored - self.whole[:, ::-1]).max()
            ),
        }

    def draw(self, canvas: Canvas) -> None:
        panels = canvas.panels(3, len(OPERATIONS) + 1)
        for row in range(3):
            canvas.image(panels[row, 0], self.whole)
            for column, name in enumerate(OPERATIONS, start=1):
                canvas.image(panels[row, column], self.made[column - 1, row])
                panels[0, column].set_title(name)
        panels[0, 0].set_title("photograph")
        for row in (1, 2):
            panels[row, 0].set_visible(False)


def as_picture(images: Tensor) -> np.ndarray:
    """Images [n 3 h w] in [0, 1] as [n h w 3]."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
