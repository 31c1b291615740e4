"""Images, vectors or sequences that are the rows of something: an array, a .npy file, a text."""

from pathlib import Path

import numpy as np

from erg.data.opening import MAX_PIXELS, UnreadableImage, check_size
from erg.data.source import DataError, Item, Source, Spec, printable

TEXTS = frozenset([".txt"])
"""Endings of texts."""

SEQUENCE = 128  # bytes of a text in a row


def open_npy(path: Path, label: str | None) -> Source:
    """A .npy file, mapped into memory; one that holds Python objects is refused.

    Raises:
        DataError: it holds no images and no vectors.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it holds several arrays")
    except Exception as error:  # its header is Python, whose parser has errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path.name} is no array of numbers that can be read ({reason}). Save it with "
            "numpy.save as uint8 or float32."
        ) from error
    return open_array(array, printable(path.name), str(path), label)


def open_array(array: np.ndarray, name: str, spec: Spec, label: str | None) -> Source:
    """An array of images, of vectors or of sequences of tokens.

    Raises:
        DataError: its shape or its numbers are none of them, or a label was asked for.
    """
    advice = (
        "Give uint8 or float images [n h w], [n h w 3] or [n 3 h w], float vectors [n d], or "
        "sequences of tokens [rows n] in int64."
    )
    what = f"{name} has shape {list(array.shape)} and type {array.dtype}"
    if label is not None:
        raise DataError(
            f"{name} holds no labels, but {label!r} was asked for. Leave out the label."
        )
    if array.ndim == 2 and array.shape[1] > MAX_PIXELS:
        raise DataError(f"{what}. Give rows of at most {MAX_PIXELS:,} numbers.")
    whole = array.dtype.kind in "iu" and array.dtype != np.uint8
    if array.size and array.ndim == 2 and whole:
        return Tokens(array, name, spec, vocabulary=int(array.max()) + 1)
    if not array.size or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(f"{what}. {advice}")
    if array.ndim == 2:
        return Vectors(array, name, spec)
    if array.ndim == 3 and array.shape[-1] == 3:
        raise DataError(f"{what}, which looks like one colour image. Give [1 h w 3] for one image.")
    colours = array.ndim == 4 and bool({1, 3} & {array.shape[1], array.shape[3]})
    if array.ndim != 3 and not colours:
        raise DataError(f"{what}. {advice}")
    scale = 1.0 if array.dtype == np.uint8 else _scale(array, name)
    return Pictures(array, name, spec, scale=scale)


def _scale(array: np.ndarray, name: str) -> float:
    """255 for floats in [0, 1], 1 for [0, 255]; looks at every number, a slice at a time."""
    low, high = np.inf, -np.inf
    for i in range(0, len(array), 256):
        part = array[i : i + 256]
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())  # they keep a NaN
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{name} holds numbers from {low:.3g} to {high:.3g}. Scale images to [0, 1] or "
            "[0, 255], without subtracting a mean."
        )
    return 255.0 if high <= 1 else 1.0


def as_rgb(image: np.ndarray, scale: float) -> np.ndarray:
    """One image of any layout as uint8 [h w 3].

    Raises:
        UnreadableImage: it has too many pixels, or none.
    """
    if image.ndim == 3 and image.shape[-1] not in (1, 3):
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[..., None]
    check_size((image.shape[1], image.shape[0]))
    if image.dtype != np.uint8:
        image = np.rint(image.astype(np.float64) * scale).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


class Pictures(Source):
    """Images of one size in one array.

    Args:
        array: [n h w], [n h w 3] or [n 3 h w].
        name: what to call it.
        spec: the path it was mapped from, or None.
        scale: what its numbers are multiplied with to fill [0, 255].
    """

    def __init__(self, array: np.ndarray, name: str, spec: Spec, *, scale: float) -> None:
        self.array, self.name, self.spec, self.scale = array, name, spec, scale

    def __len__(self) -> int:
        return len(self.array)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        return as_rgb(np.asarray(self.array[i]), self.scale)

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        return f"{len(self):,} images in {self.name}, shape {list(self.array.shape)}"


class Vectors(Source):
    """Vectors, one a row. `values` holds them all.

    Args:
        values: [n d].
        name: what to call it.
        spec: the path it was mapped from, or None.
    """

    kind = "array"

    def __init__(self, values: np.ndarray, name: str, spec: Spec) -> None:
        self.values, self.name, self.spec = values, name, spec

    def __len__(self) -> int:
        return len(self.values)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        vector = np.asarray(self.values[i], dtype=np.float32)
        if not np.isfinite(vector).all():
            raise UnreadableImage("The vector holds NaN or infinity.")
        return vector

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        return f"{len(self):,} vectors of {self.values.shape[1]:,} numbers in {self.name}"


# Sequences -----------------------------------------------------------------------------------


def open_text(path: Path, label: str | None) -> Source:
    """The bytes of a text, cut into sequences; the last one may be shorter.

    Raises:
        DataError: it is empty, or a label was asked for.
    """
    name = printable(path.name)
    if label is not None:
        raise DataError(
            f"{name} holds no labels, but {label!r} was asked for. Leave out the label."
        )
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content):
        raise DataError(f"{name} is empty. Give a text that is not.")
    rows = np.full((-(-len(content) // SEQUENCE), SEQUENCE), -1, dtype=np.int16)
    rows.reshape(-1)[: len(content)] = content
    return Tokens(rows, name, str(path), vocabulary=256)


class Tokens(Source):
    """Sequences of tokens, one a row. `values` holds them all.

    Args:
        values: whole numbers [rows n], with -1 behind the end of shorter sequences.
        name: what to call it.
        spec: the path it was read from, or None.
        vocabulary: tokens are smaller than this.
    """

    kind = "array"

    def __init__(self, values: np.ndarray, name: str, spec: Spec, *, vocabulary: int) -> None:
        self.values, self.name, self.spec, self.vocabulary = values, name, spec, vocabulary

    def __len__(self) -> int:
        return len(self.values)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        tokens = np.asarray(self.values[i], dtype=np.int64)
        length = int((tokens >= 0).sum())
        if not length:
            raise UnreadableImage("It holds no token, only numbers below 0.")
        if tokens[:length].min() < 0 or tokens.min() < -1:
            raise UnreadableImage("Its numbers are below 0 elsewhere than behind its end.")
        return tokens

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        return None

    def describe(self) -> str:
        rows, n = self.values.shape
        return f"{rows:,} sequences of {n:,} tokens, {self.vocabulary:,} different, in {self.name}"
