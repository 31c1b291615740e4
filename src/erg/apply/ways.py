"""The ways to turn images into vectors that are compared: the encoder, the encoder before training,
PCA and raw pixels; of whole images or of two crops of each.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from erg.allocator import blocks_kept
from erg.apply.embed import Opened, vectors_of
from erg.data.loader import Loader
from erg.data.manifest import default_threads
from erg.encoders import Encoder, load_encoder
from erg.evaluate.baselines import PCA
from erg.train.features import at_once, device_of, features, whole_images
from erg.train.fitted import Fitted
from erg.views.plan import LIGHT, Plan
from erg.views.types import View

ENCODER, START, PCA_NAME, PIXELS = "encoder", "before training", "PCA", "raw pixels"
BASELINES = (START, PCA_NAME, PIXELS)
"""What the encoder has to beat."""

LARGEST = 1 << 30
"""Bytes of raw pixels beyond which they are averaged down further."""

CROP = replace(LIGHT, crop=(0.5, 0.9))
COLOUR = replace(CROP, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
TWO_CROPS = Plan(main=(CROP, CROP))
TWO_COLOURS = Plan(main=(COLOUR, COLOUR))

Features = dict[str, np.ndarray]
"""Vectors [n d] of the same images by the name of the way."""


@dataclass(frozen=True)
class Ways:
    """The ways to turn images into vectors that are compared.

    Args:
        fitted: the trained run.
        start: its encoder before training, on the same device.
    """

    fitted: Fitted
    start: Encoder

    @classmethod
    def of(cls, fitted: Fitted) -> "Ways":
        """Those of a run, whose folder holds its encoder before training."""
        start = load_encoder(fitted.folder / "encoder_start")
        return cls(fitted, start.to(device_of(fitted.method)))

    def vectors(
        self, opened: Opened, rows: np.ndarray, tell: Callable[[str], None], *, most: int
    ) -> Features:
        """Vectors of the same rows by encoder, encoder before training and raw pixels.

        Args:
            opened: images, or vectors.
            rows: of them.
            tell: called with lines worth printing.
            most: rows of the largest set that is compared (see `pixels_of`).
        """
        method = self.fitted.method
        autocast = self.fitted.run.autocast(device_of(method))
        found: Features = {}
        tell(f"Embedding {len(rows)} images with the encoder, and with the one before training.")
        found[ENCODER] = vectors_of(
            method.encode, method, method.encoder, opened, rows, autocast=autocast
        )
        found[START] = vectors_of(
            self.start, self.start, self.start, opened, rows, autocast=autocast
        )
        found[PIXELS] = pixels_of(opened, rows, method.encoder.image_size, most=most)
        return found

    def add_pca(self, learned_on: Features, *others: Features) -> None:
        """Add the PCA of raw pixels to vectors of some sets, as wide as the encoder or as what the
        run is judged by, if that is wider: an autoencoder's code may be.

        Args:
            learned_on: vectors of the set whose pixels the components are learned on.
            others: vectors of other sets.
        """
        pixels = learned_on[PIXELS]
        width = max(self.fitted.encoder.dim, learned_on[ENCODER].shape[1])
        pca = PCA.fit(pixels, min(width, *pixels.shape))
        for found in (learned_on, *others):
            found[PCA_NAME] = pca(found[PIXELS])


@blocks_kept()
def crops_of(ways: Ways, opened: Opened, rows: np.ndarray, plan: Plan) -> tuple[Features, Features]:
    """Vectors of two versions of the same images, by encoder, start and raw pixels.

    Memory holds the views of one batch.
    """
    method, start = ways.fitted.method, ways.start
    encoder = method.encoder
    few = at_once(256, encoder.image_size, encoder.mean)
    loader = Loader(
        opened.images, rows, plan, batch=few, seed=0, image_size=encoder.image_size,
        mean=encoder.mean, std=encoder.std, threads=default_threads(),
    )  # fmt: skip
    device = device_of(method)
    parts: tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]] = (
        {ENCODER: [], START: [], PIXELS: []}, {ENCODER: [], START: [], PIXELS: []},
    )  # fmt: skip
    with closing(loader):
        for i in range(0, len(rows), few):
            views = loader.make(rows[i : i + few], epoch=0)
            for view, made in zip(views.main, parts, strict=True):
                one = [replace(views, main=(view,))]
                made[ENCODER].append(features(method.encode, method, iter(one), device=device))
                made[START].append(features(start, start, iter(one), device=device))
                made[PIXELS].append(_small_pixels(view))
    first, second = ({name: np.concatenate(each) for name, each in m.items()} for m in parts)
    return first, second


def pixels_of(
    opened: Opened, rows: np.ndarray, image_size: int, *, most: int | None = None
) -> np.ndarray:
    """Raw pixels in [0, 1] at 32 pixels or less; 16 where they would not fit in a gigabyte.

    Args:
        opened: images, or vectors.
        rows: of them.
        image_size: of the encoder they are compared with: no more pixels than it sees [pixels].
        most: rows of the largest set that they are compared with, since all sets have to be as
            sharp; by default these rows are the only ones.
    """
    side = min(32, image_size)
    count = len(rows) if most is None else most
    side = side if count * side**2 * 12 < LARGEST else min(16, side)
    views = whole_images(
        opened.images, rows, image_size=side, mean=(0.0,) * 3, std=(1.0,) * 3, threads=2
    )
    return np.concatenate([batch.main[0].data.flatten(1).numpy() for batch in views])


def _small_pixels(view: View) -> np.ndarray:
    data = view.unit()
    small = torch.nn.functional.adaptive_avg_pool2d(data, min(32, data.shape[-1]))
    return small.flatten(1).float().numpy()
