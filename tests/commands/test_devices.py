"""Where commands put a model: on what it was trained on. Nobody here has an accelerator."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erg.apply import anomalies as apply_anomalies
from erg.apply import embed as apply_embed
from erg.commands import finetune, options, show
from erg.commands.options import where
from erg.embeddings import Embeddings
from erg.encoders import build_encoder, save_encoder
from erg.train import fitted, processes

META = torch.device("meta")


class Asked(Exception):
    """In place of work."""


def accelerators(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    """As if there were some."""
    there = torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: there)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.parametrize(
    ("asked", "found"),
    [(None, "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_the_accelerator_is_taken_and_computes_as_in_training(
    asked: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(monkeypatch, "cuda", 2)
    assert where(asked) == torch.device(found)
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize(("kind", "count"), [("cuda", 0), ("xpu", 1)])
def test_without_one_that_training_takes_it_is_the_cpu(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(monkeypatch, kind, count)
    assert where(None) == where("cpu") == torch.device("cpu")
    for absent in ("cuda", "mps", "xpu", "meta"):
        with pytest.raises(ValueError, match=f"no device '{absent}' here .there is only the CPU"):
            where(absent)


@pytest.mark.parametrize(
    ("asked", "why"), [("cuda:2", "of cuda there are 2"), ("mps", "of cuda"), ("gpu", "")]
)
def test_what_is_not_there_is_refused(
    asked: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerators(monkeypatch, "cuda", 2)
    with pytest.raises(ValueError, match=rf"no device '{asked}' here \(.*{why}") as told:
        where(asked)
    assert "\n" not in str(told.value)


def test_each_process_has_one_of_its_own_or_all_use_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerators(monkeypatch, "cuda", 2)
    for here, found in (("2", "cuda"), ("3", "cpu")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        assert where(None) == torch.device(found)
    assert where("cuda") == torch.device("cuda")


COMMANDS = {
    "anomalies": ["RUN", "data"],
    "embed": ["RUN", "data"],
    "evaluate": ["RUN"],
    "finetune": ["RUN", "data", "--label", "shape"],
    "layers": ["RUN", "--label", "shape"],
    "report": ["RUN", "--redraw"],
    "search": ["VECTORS", "one.png", "--model", "RUN"],
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What words of a command stand for; nothing is compiled."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    Embeddings(np.eye(3, dtype=np.float32), np.arange(3)).save(tmp_path / "vectors.parquet")
    save_encoder(build_encoder("conv", 16, width=4, stages=2), tmp_path / "encoder")
    monkeypatch.setattr(show, "compiling", lambda: None)
    monkeypatch.chdir(tmp_path)
    names = {"RUN": "run", "VECTORS": "vectors.parquet", "ENCODER": "encoder"}
    return {word: str(tmp_path / name) for word, name in names.items()}


def carry_out(command: str, words: list[str], places: dict[str, str]) -> int:
    main = importlib.import_module(f"erg.commands.{command}").main
    return main([places.get(word, word) for word in words])


@pytest.mark.parametrize(("asked", "device"), [([], "cuda"), (["--device", "cpu"], "cpu")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_is_loaded_to_where_it_was_trained(
    command: str,
    asked: list[str],
    device: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def load(*_: Any, device: str = "cpu", **__: Any) -> None:
        seen.append(device)
        raise Asked

    accelerators(monkeypatch, "cuda", 1)
    monkeypatch.setattr(fitted, "load", load)
    monkeypatch.setattr(processes, "join", lambda own: own)
    with pytest.raises(Asked):
        carry_out(command, [*COMMANDS[command], *asked], places)
    assert seen == [device]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there_is_said_before_anything_is_loaded(
    command: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted, "load", None)
    with pytest.raises(ValueError, match="no device 'abacus' here"):
        carry_out(command, [*COMMANDS[command], "--device", "abacus"], places)


def test_an_encoder_of_a_folder_is_put_there_too(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def note(device: torch.device) -> None:
        seen.append(device)
        raise Asked

    monkeypatch.setattr(options, "where", lambda _: META)
    monkeypatch.setattr(apply_embed, "open_for", lambda *_, **__: None)
    monkeypatch.setattr(apply_embed, "embed", lambda *_, device: note(device))
    monkeypatch.setattr(apply_anomalies, "anomalies", lambda *_, device, **__: note(device))
    monkeypatch.setattr(
        finetune, "compared", lambda encoder, *_: note(next(encoder.parameters()).device)
    )
    for command, words in (
        ("search", ["VECTORS", "one.png", "--model", "ENCODER"]),
        ("anomalies", ["ENCODER", "data"]),
        ("finetune", ["ENCODER", "data", "--label", "shape"]),
    ):
        with pytest.raises(Asked):
            carry_out(command, words, places)
    assert seen == [META] * 3


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("search", ["VECTORS", "0"], "--device would change nothing: without --model"),
        ("anomalies", ["VECTORS", "VECTORS"], "--device would change nothing: .* of embeddings"),
        ("report", ["RUN"], "--device cpu changes nothing. Leave it out, or add --redraw"),
    ],
)
def test_a_device_for_no_model_is_refused(
    command: str, words: list[str], said: str, places: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=said):
        carry_out(command, [*words, "--device", "cpu"], places)
