"""Threads of which it is known when they come."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Early(ThreadPoolExecutor):
    """Its threads do all there is to do before the caller goes on."""

    def submit(self, *given: Any, **further: Any) -> Future[Any]:
        made = super().submit(*given, **further)
        made.exception()
        return made
