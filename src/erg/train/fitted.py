"""A trained method and where it lies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from erg.data.cache import Cache
from erg.encoders import Encoder, load_encoder
from erg.method import Method
from erg.train.checkpoint import load_checkpoint
from erg.train.features import device_of, features, whole_images
from erg.train.folder import RunFolder
from erg.train.run import Run


@dataclass(frozen=True)
class Fitted:
    """A trained method and where it lies.

    Args:
        run: what was done.
        folder: of the run.
        method: trained, in evaluation mode.
    """

    run: Run
    folder: Path
    method: Method

    @property
    def encoder(self) -> Encoder:
        """The trained encoder alone."""
        return self.method.encoder

    def embed(self, images: np.ndarray | Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """Vectors [n d] of uint8 images [n h w 3], of a list of them or of PIL images.

        Raises:
            ValueError: there is none, or one is something else.
        """
        arrays = [np.asarray(i.convert("RGB") if isinstance(i, Image.Image) else i) for i in images]
        if not arrays:
            raise ValueError("embed takes at least one image (got none). Give it some.")
        for array in arrays:
            if array.dtype != np.uint8 or array.shape[2:] != (3,) or not array.size:
                raise ValueError(
                    f"embed takes uint8 images [h w 3] (got {array.dtype} {list(array.shape)}). "
                    "Convert them, or give PIL images."
                )
        device = device_of(self.method)
        encoder = self.method.encoder
        views = whole_images(
            Cache.of(arrays), np.arange(len(arrays)), image_size=encoder.image_size,
            mean=encoder.mean, std=encoder.std,
        )  # fmt: skip
        autocast = self.run.autocast(device)
        return features(self.method.encode, self.method, views, device=device, autocast=autocast)


def load(path: str | Path, *, method: str | None = None, device: str = "cpu") -> Fitted:
    """A finished or stopped run from its folder, with the weights of its newest checkpoint.

    Raises:
        ValueError: no run folder, or no checkpoint.
    """
    folder = RunFolder(Path(path))
    run = Run.from_json(folder.read_run(), method=method)
    built = rebuilt(run, folder, device)
    if load_checkpoint(folder.checkpoints, built, None) is None:
        raise ValueError(f"{path} has no checkpoint yet. Let the run reach its first one.")
    return Fitted(run, folder.path, built.eval())


def begun_with(run: Run, folder: RunFolder) -> Encoder | None:
    """The encoder that a run started from, where it was one that has come from elsewhere."""
    if run.init is None or not (folder.encoder_start / "config.json").exists():
        return None
    return load_encoder(folder.encoder_start)


def rebuilt(run: Run, folder: RunFolder, device: str = "cpu") -> Method:
    """The method of a run, whose weights a checkpoint holds."""
    return replace(run, init=None).build(device, like=begun_with(run, folder))
