"""How large images are once they are decoded, and how much room there is for them."""

import math
import shutil
from pathlib import Path

import numpy as np

from erg.data.decode import shrunk
from erg.data.manifest import Manifest
from erg.data.opening import MAX_PIXELS, UnreadableImage, opened
from erg.data.source import Item, Source

_SAMPLE = 64  # items whose headers are read to estimate the size of all


def kept_side(image_size: int) -> int:
    """Shorter side [pixels] at which images are kept for an encoder of a size: twice that, enough
    for crops of a quarter of the area at full sharpness."""
    return max(64, 2 * image_size)


def decoded_sizes(manifest: Manifest, short_side: int | None) -> np.ndarray:
    """Height and width of every decoded image [pixels]."""
    sizes, which = np.unique(manifest.sizes, axis=0, return_inverse=True)
    small = [shrunk((int(h), int(w)), short_side) for h, w in sizes]
    return np.array(small, dtype=np.int64)[which.reshape(-1)]


def decoded_bytes(manifest: Manifest, short_side: int | None) -> int:
    """Size of all decoded images [bytes]."""
    return 3 * int(decoded_sizes(manifest, short_side).prod(axis=1).sum())


def estimated_bytes(source: Source, short_side: int | None) -> float:
    """Size of all decoded images [bytes], from the headers of some of them."""
    rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int))
    sizes = []
    for i in rows.tolist():
        try:
            item = source.item(i)
            sizes.append(3 * math.prod(shrunk(_stored_size(item), short_side)))
        except (UnreadableImage, OSError):
            continue  # the pass over all items reports it
    return len(source) * float(np.mean(sizes)) if sizes else 0.0


def _stored_size(item: Item) -> tuple[int, int]:
    """The two sides of an image [pixels], not turned: for that some formats are decoded whole."""
    if isinstance(item, np.ndarray):
        return item.shape[0], item.shape[1]
    with opened(item, MAX_PIXELS) as image:
        return image.size


def default_budget(file: Path | None) -> int:
    """A third of what is free [bytes]: of the disk the file will lie on, or of the memory."""
    if file is None:
        return free_memory() // 3
    folder = file.absolute().parent
    while not folder.exists():
        folder = folder.parent
    own = file.stat().st_size if file.exists() else 0  # of this run, from before it was stopped
    return (shutil.disk_usage(folder).free + own) // 3


def free_memory() -> int:
    """Memory [bytes] that can be taken without swapping, within the limit of a container.

    Where the system does not tell (other than Linux), 4 GiB are assumed.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {name: rest.split()[0] for name, _, rest in (x.partition(":") for x in lines)}
        free = int(values["MemAvailable"]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return 4 << 30
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit, which is the word "max"
        pass
    return max(free, 0)
