"""Freed memory is kept as long as somebody wants it, and comes back after that."""

import subprocess
import sys

import pytest

from erg import allocator

GLIBC = pytest.mark.skipif(allocator._glibc() is None, reason="the C library is another one")

MEASURED = """
import ctypes, resource, sys
from pathlib import Path
from erg.allocator import blocks_kept

libc = ctypes.CDLL(None)
libc.prctl(41, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # PR_SET_THP_DISABLE
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE = 40 << 20
PAGES = SIZE // resource.getpagesize()

def faults():
    '''Pages asked of the system in three rounds of taking, writing and freeing a block.'''
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = libc.malloc(SIZE)
        libc.memset(block, 1, SIZE)
        libc.free(block)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) / PAGES
"""


def run(code: str, **variables: str) -> list[float]:
    made = subprocess.run(
        [sys.executable, "-c", MEASURED + code], check=True, capture_output=True, text=True,
        timeout=120, env={"GLIBC_TUNABLES": "", **variables},
    )  # fmt: skip
    return [float(word) for word in made.stdout.split()]


@GLIBC
def test_blocks_are_asked_of_the_system_once_and_given_back_at_the_end() -> None:
    outside, first, nested, again, kept, after, left = run("""
print(faults())
empty = resident()
with blocks_kept():
    print(faults())
    with blocks_kept():
        print(faults())
    print(faults(), resident() - empty)
print(faults(), resident() - empty)
""")
    assert outside > 2.9
    assert 0.9 < first < 1.1
    assert max(nested, again) < 0.1
    assert kept > 0.9
    assert after > 2.9
    assert left < 0.1


@GLIBC
def test_a_function_keeps_blocks_and_an_error_ends_it() -> None:
    inside, after = run("""
@blocks_kept()
def work():
    faults()
    print(faults())
    raise KeyError

try:
    work()
except KeyError:
    print(faults())
""")
    assert inside < 0.1
    assert after > 2.9


@GLIBC
def test_whoever_is_inside_in_another_thread_keeps_them() -> None:
    (inside,) = run("""
import threading
entered, leave = threading.Event(), threading.Event()

@blocks_kept()
def work():
    entered.set()
    leave.wait()

thread = threading.Thread(target=work)
with blocks_kept():
    thread.start()
    entered.wait()
    faults()
print(faults())
leave.set()
thread.join()
""")
    assert inside < 0.1


@GLIBC
def test_what_was_chosen_from_outside_is_left_alone() -> None:
    code = "with blocks_kept():\n    print(faults())"
    assert run(code, MALLOC_ARENA_MAX="2")[0] < 1.1, "not one of the allocator's thresholds"
    assert run(code, MALLOC_MMAP_THRESHOLD_="1000000")[0] > 2.9
    assert run(code, GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000")[0] > 2.9


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    monkeypatch.setattr(allocator, "chosen", lambda: None)
    with allocator.blocks_kept():
        assert allocator._Inside.count == 0
    assert allocator.described() == "the system's"


def test_what_gives_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/libjemalloc.so.2")
    assert allocator.described() == "LD_PRELOAD=/lib/libjemalloc.so.2"
    monkeypatch.setenv("LD_PRELOAD", "/lib/libother.so")
    assert "libother" not in allocator.described()
