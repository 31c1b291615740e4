"""Memory that one step gives back and the next one asks for is kept in between.

glibc hands freed blocks of 32 MB and more to the system at once, as it does the end of its heap,
and the system clears every page of what it gives again. A step of training on a CPU frees and asks
for its activations in these very sizes: ResNet-18 with 256 images spent a sixth of its time on it
(benchmarks/training_step).
"""

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Numbers of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4

KEEPING = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
USUAL = ((MMAP_MAX, 65_536), (MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 64 << 20))
"""Where the thresholds, which glibc moves by itself until one is set, would have come to rest."""


class _Inside:
    """How many are inside `blocks_kept`, of all threads."""

    count = 0
    lock = threading.Lock()


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Memory that the main thread frees stays with the process, which has about as much as it ever
    needed at once; at the end it is given back. Also a decorator.

    Nothing is changed where the C library is another one, or where `chosen` says that somebody
    chose an allocator or its settings from outside.
    """
    libc = None if chosen() else _glibc()
    if libc is None:
        yield
        return
    with _Inside.lock:
        if _Inside.count == 0:
            _set(libc, KEEPING)
        _Inside.count += 1
    try:
        yield
    finally:
        with _Inside.lock:
            _Inside.count -= 1
            if _Inside.count == 0:
                _set(libc, USUAL)
                libc.malloc_trim(0)


def chosen() -> str | None:
    """The variable of the environment that chose an allocator or its settings, and its value."""
    for name, value in sorted(os.environ.items()):
        other = name in ("LD_PRELOAD", "GLIBC_TUNABLES") and "malloc" in value
        if other or (name.startswith("MALLOC_") and name.endswith("_")):
            return f"{name}={value}"
    return None


def described() -> str:
    """What gives memory in this process, for a person."""
    if what := chosen():
        return what
    if _glibc() is None:
        return "the system's"
    return f"glibc {platform.libc_ver()[1]}, keeps memory between steps"


def _set(libc: ctypes.CDLL, options: tuple[tuple[int, int], ...]) -> None:
    for option, value in options:
        libc.mallopt(option, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)
