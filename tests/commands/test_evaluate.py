"""erg evaluate, from its arguments."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erg.apply import scores
from erg.commands import evaluate
from erg.commands.evaluate import main
from erg.train import fitted, launch, processes


class Asked(Exception):
    """For scores, in place of computing them."""


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ([], "shape"),
        (["--label", "texture"], "texture"),
        (["elsewhere"], None),
        (["--test", "elsewhere"], None),
        (["elsewhere", "--label", "texture"], "texture"),
    ],
)
def test_a_run_is_judged_by_its_own_labels_on_its_own_data(
    arguments: list[str], label: str | None, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, or with other processes, which embed with labels too."""
    asked: list[str | None] = []

    def score(*_: Any, label: str | None, **__: Any) -> None:
        asked.append(label)
        raise Asked

    def opened(_: Any, sets: dict[str, Any], label: str | None) -> dict[str, Any]:
        asked.append(label)
        return sets

    run = SimpleNamespace(run=SimpleNamespace(data="here", label="shape"), folder=Path("run"))
    monkeypatch.setattr(fitted, "load", lambda *_, **__: run)
    monkeypatch.setattr(scores, "score", score)
    monkeypatch.setattr(launch, "in_group", lambda: together)
    monkeypatch.setattr(processes, "join", lambda device: device)
    monkeypatch.setattr(evaluate, "_with_others", opened)
    with pytest.raises(Asked):
        main(["run", *arguments])
    assert asked == [label] * (1 + together)
