"""One process to fork from, for all tests that kill; counts of what was tried so far."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.forks import Parent

EVERY = 30.0
"""Between two reports of how far a long test is [s]."""

COUNTED: Counter[str] = Counter()
LAST = [time.monotonic()]


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with Parent(tmp_path_factory.mktemp("parent") / "log") as started:
        yield started


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """Counts what has been tried and was right; told now and then, and at the end, also of tests
    that are interrupted."""
    plugins = request.config.pluginmanager
    reporter: Any = plugins.getplugin("terminalreporter")
    capture: Any = plugins.getplugin("capturemanager")

    def count(what: str, number: int) -> None:
        COUNTED[what] += number
        if time.monotonic() - LAST[0] > EVERY:
            LAST[0] = time.monotonic()
            with capture.global_and_fixture_disabled():
                reporter.write_line(f"\n{what}: {COUNTED[what]:,}")

    return count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for what, number in COUNTED.items():
        terminalreporter.write_line(f"{what}: {number:,}")
