"""Items made ahead in a thread: the same, in order, bounded, and never left running."""

import threading
from collections.abc import Generator

import pytest

from erg.data.ahead import ahead


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_same_items_in_order(depth: int) -> None:
    assert list(ahead((i for i in range(20)), depth)) == list(range(20))
    assert list(ahead((i for i in ()), depth)) == []


def test_no_more_are_made_than_may_wait() -> None:
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for i in range(100):
            made.append(i)
            yield i

    found = ahead(items(), 2)
    assert next(found) == 0
    threading.Event().wait(0.2)
    assert len(made) == 3  # one taken, two waiting
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("erg-ahead")]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_items_are_asked_for(depth: int) -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise KeyError("no such picture")

    found = ahead(items(), depth)
    assert next(found) == 1
    with pytest.raises(KeyError, match="no such picture"):
        next(found)
    assert not [t for t in threading.enumerate() if t.name.startswith("erg-ahead")]


@pytest.mark.parametrize("depth", [0, 2])
def test_leaving_early_closes_the_generator(depth: int) -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.set()

    found = ahead(items(), depth)
    next(found)
    found.close()
    assert closed.is_set()
