"""Pictures for the figures that need some: digits and photographs that come with scikit-learn, or
images of yours.

Letters in shapes: n images, p pixels, h w rows and columns.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor

from erg.data.source import DataError, open_source
from erg.views.random import permutation


class Digits(NamedTuple):
    """Grey pictures of one size, three quarters of them to learn from.

    Args:
        train: pixels in [0, 1] [n p].
        test: the same of others.
        train_labels: number of the class [n].
        test_labels: the same of others.
        side: h = w.
    """

    train: Tensor
    test: Tensor
    train_labels: np.ndarray
    test_labels: np.ndarray
    side: int


def digits(data: str | None = None, *, label: str = "label", at_most: int = 4000) -> Digits:
    """1,797 digits of 8 x 8 pixels (Alpaydin & Kaynak 1998), or other images.

    Args:
        data: what `open_source` opens; each image is made grey and square.
        label: where their labels are found.
        at_most: images taken, drawn at random.

    Raises:
        DataError: nothing usable is there, or the images have different sizes.
    """
    if data is None:
        bundle: Any = load_digits()
        pixels, labels = bundle.images / 16, bundle.target
    else:
        source = open_source(data, label=label)
        if source.kind != "image":
            raise DataError(f"{data} holds vectors, and this figure shows images. Give images.")
        rows = permutation(0, len(source))[:at_most]  # folders come class by class
        images = [source.read(int(i), 28).mean(axis=2) / 255 for i in rows]
        if len({image.shape for image in images}) > 1 or images[0].shape[0] != images[0].shape[1]:
            raise DataError(f"the images of {data} are not squares of one size. Give such ones.")
        pixels = np.stack(images)
        labels = np.unique([str(source.label(int(i))) for i in rows], return_inverse=True)[1]
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
    cut = 3 * len(flat) // 4
    return Digits(flat[:cut], flat[cut:], labels[:cut], labels[cut:], pixels.shape[1])


def photograph() -> np.ndarray:
    """A photograph, uint8 [427 640 3] (scikit-learn; CC BY, credits there)."""
    return np.array(load_sample_image("china.jpg"))


def patches(n: int = 12_000, side: int = 8, seed: int = 0) -> Float[Tensor, "n p"]:
    """Patches of two photographs, of equal contrast and with neighbours made independent (ZCA).

    The photographs are made smaller first, which takes the grain out, and the flattest third of the
    patches are left out. Without whitening, low frequencies are all that codes have to explain.
    """
    random = np.random.default_rng(seed)
    cut: list[np.ndarray] = []
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.fromarray(load_sample_image(name)).convert("L")
        small = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3))
        grey = np.asarray(small) / 255
        tops = random.integers(grey.shape[0] - side, size=3 * n // 4)
        lefts = random.integers(grey.shape[1] - side, size=3 * n // 4)
        cut += [grey[t : t + side, x : x + side] for t, x in zip(tops, lefts, strict=True)]
    flat = np.stack(cut).reshape(len(cut), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    contrast = flat.std(axis=1)
    sharp = np.sort(contrast.argsort()[-n:])
    flat = flat[sharp] / np.sqrt(contrast[sharp, None] ** 2 + 0.01)
    values, vectors = np.linalg.eigh(flat.T @ flat / n)
    whitening = vectors / np.sqrt(values + 0.3 * values.mean()) @ vectors.T
    return torch.from_numpy(flat @ whitening).float()


def pairs_of_classes(found: Digits, count: int) -> tuple[Tensor, Tensor]:
    """Rows of test digits and of others of another class."""
    a = torch.arange(count)
    labels = found.test_labels
    b = [int(np.flatnonzero(labels != labels[i])[(7 * i) % (labels != labels[i]).sum()]) for i in a]
    return a, torch.tensor(b)


def mlp(width: int, dim: int, depth: int = 1) -> dict[str, Any]:
    """An encoder for vectors of pixels."""
    args = {"width": width, "depth": depth, "dim": dim}
    return {"encoder": "mlp", "encoder_args": args, "width": width // 2}
