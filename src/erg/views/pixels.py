"""Images of different sizes side by side in one flat buffer: what the view kernels read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pixels(NamedTuple):
    """A batch of uint8 RGB images of any sizes.

    Image i is `flat[offset[i] : offset[i] + height[i] * width[i] * 3]`, row-major, channels last.
    `flat` may be a memory map; several images may share bytes. `masks`, where there are any, are
    images of the same sizes, bright where something stands out; of 0 x 0 where an image has none.
    """

    flat: np.ndarray  # uint8 [bytes]
    offset: np.ndarray  # int64 [b]
    height: np.ndarray  # int64 [b], pixels
    width: np.ndarray  # int64 [b], pixels
    masks: "Pixels | None" = None

    def image(self, i: int | np.integer) -> np.ndarray:
        """Image i as uint8 [h w 3], a view of the buffer."""
        h, w = int(self.height[i]), int(self.width[i])
        start = int(self.offset[i])
        return self.flat[start : start + h * w * 3].reshape(h, w, 3)

    @classmethod
    def pack(cls, images: Sequence[np.ndarray]) -> "Pixels":
        """Copy uint8 [h w 3] images into one buffer."""
        sizes = np.array([image.size for image in images], dtype=np.int64)
        return cls(
            flat=np.concatenate([image.reshape(-1) for image in images]),
            offset=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64),
            height=np.array([image.shape[0] for image in images], dtype=np.int64),
            width=np.array([image.shape[1] for image in images], dtype=np.int64),
        )
