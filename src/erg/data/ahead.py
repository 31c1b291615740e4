"""Work done ahead in a thread, a bounded number of items before they are asked for."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made ahead of time in a thread of their own.

    With depth 0 they are made when asked for: on a CPU the thread would only take cores away from
    the one who asks. An error of the thread is raised here, at the item it belongs to. Leaving
    early, by whatever error, or `close` ends the thread once the item in its hands is made.

    Args:
        items: made in the thread; closed at the end.
        depth: items that may wait.
    """
    if depth == 0:
        yield from items
        return
    maker = ThreadPoolExecutor(1, "erg-ahead")
    try:
        waiting = deque(maker.submit(next, items, END) for _ in range(depth))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(maker.submit(next, items, END))
            yield item
    finally:
        maker.shutdown(wait=True, cancel_futures=True)
        items.close()
