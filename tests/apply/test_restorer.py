"""Descent, and folders that may come from anywhere."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from erg.apply.denoiser import Denoiser
from erg.apply.inpainter import Inpainter
from erg.apply.restorer import descend, load_restorer, put, save_restorer, seeded
from erg.train.checkpoint import Diverged
from erg.train.run import Optimiser


def test_descent_finds_a_minimum_and_says_how() -> None:
    network = nn.Linear(2, 1)
    seen: list[int] = []
    losses = descend(
        network, lambda _: (network(torch.eye(2)) - torch.tensor([[1.0], [3.0]])).square().mean(),
        Optimiser(lr=0.1, weight_decay=0.0), 200, progress=lambda n, of: seen.append(n),
    )  # fmt: skip
    assert len(losses) == 200
    assert losses[0] > 1
    assert losses[-1] < 1e-3
    assert seen == list(range(1, 201))
    assert not network.training


def test_a_loss_that_is_not_finite_stops() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(Diverged, match="not finite"):
        descend(network, lambda _: network.weight.sum() * torch.inf, Optimiser(), 2)


def test_training_takes_a_step() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="one step at least"):
        descend(network, lambda _: network.weight.sum(), Optimiser(), 0)


def test_a_network_is_put_where_it_is_wanted() -> None:
    network = Denoiser(width=8, blocks=1)
    assert put(network, "cpu") is network
    with pytest.raises(ValueError, match="no device 'abacus' here") as raised:
        put(network, "abacus")
    assert "\n" not in str(raised.value)


def small(kind: type) -> nn.Module:
    seeded(3)
    return kind(width=8, blocks=1).eval()


@pytest.mark.parametrize("kind", [Denoiser, Inpainter])
def test_a_folder_gives_the_same_network_back(kind: type, tmp_path: Path) -> None:
    network = small(kind)
    save_restorer(network, tmp_path / "model")
    again = load_restorer(kind, tmp_path / "model")
    assert again.arguments == network.arguments
    ours, theirs = network.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not again.training
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["format"] == 1
    other = Inpainter if kind is Denoiser else Denoiser
    with pytest.raises(ValueError, match=f"of no {other.__name__}"):
        load_restorer(other, tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 1"),
        ({"arguments": {"width": 10**9}}, "width should be"),
        ({"arguments": {"width": "x"}}, "width should be|Type-check"),
        ({"arguments": {"width": True}}, "width should be"),
        ({"arguments": {"colour": 1}}, "colour"),
        ({"arguments": {"width": 9, "blocks": 1}}, "Error"),
        ({"arguments": []}, "mapping"),
    ],
)
def test_a_hostile_config_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    save_restorer(small(Denoiser), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said) as raised:
        load_restorer(Denoiser, tmp_path)
    assert "holds no model for erg denoise" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model"):
        load_restorer(Denoiser, tmp_path / "nowhere")
    save_restorer(small(Denoiser), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="holds no model"):
        load_restorer(Denoiser, tmp_path)
