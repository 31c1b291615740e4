"""One process to fork from, for all tests that kill."""

from collections.abc import Iterator

import pytest

from tests.faults.forks import Parent


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    with Parent(tmp_path_factory.mktemp("parent") / "log") as started:
        yield started
