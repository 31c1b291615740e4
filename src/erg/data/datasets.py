"""Data sets like torchvision's as sources."""

import threading
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from erg.data.arrays import as_rgb
from erg.data.decode import to_rgb
from erg.data.opening import UnreadableImage, check_size
from erg.data.source import Item, Source, label_of


@runtime_checkable
class DataSet(Protocol):
    """What torchvision's data sets have."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Indexed(Source):
    """A data set like torchvision's: `data[i]` is an image, or an image and its label.

    Images are PIL images, uint8 arrays or tensors, or floats in [0, 1]. Read one at a time, since
    a data set promises nothing about threads.

    Args:
        data: the data set. Its `classes`, if it has them, name the labels.
        labelled: whether labels are asked for.
    """

    def __init__(self, data: DataSet, labelled: bool) -> None:
        self.data, self.labelled = data, labelled
        self.names = [str(name) for name in getattr(data, "classes", [])]
        self.labels: dict[int, str | None] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.data)

    def path(self, i: int) -> str:
        return f"{i:06d}"

    def item(self, i: int) -> Item:
        with self.lock:
            value = self.data[i]
            image, *rest = value if isinstance(value, tuple | list) else (value,)
            if self.labelled and rest:
                self.labels[i] = self._label_name(rest[0])
            if isinstance(image, Image.Image):
                check_size(image.size)
                return to_rgb(image)
        array = np.asarray(image)
        colours = array.ndim == 2 or (array.ndim == 3 and {1, 3} & {array.shape[0], array.shape[2]})
        if not colours or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise UnreadableImage(f"It is {array.dtype} of shape {list(array.shape)}, no image.")
        if array.dtype != np.uint8 and not (array.min() >= 0 and array.max() <= 1):
            raise UnreadableImage("Its numbers are outside [0, 1], perhaps already normalised.")
        return as_rgb(array, 255.0)

    def _label_name(self, label: Any) -> str | None:
        if hasattr(label, "item") and np.asarray(label).size == 1:  # of NumPy or PyTorch
            label = label.item()
        return label_of(label, self.names)

    def offset(self, i: int) -> int:
        return i

    def label(self, i: int) -> str | None:
        if self.labelled and i not in self.labels:
            self.item(i)
        return self.labels.get(i)

    def describe(self) -> str:
        return f"{len(self):,} images of the data set {type(self.data).__name__}"
