"""Classifiers: an encoder and a linear layer, and how they are written to a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from erg import backbones
from erg.durable import read_json, write_atomically
from erg.encoders import Encoder, TimmEncoder, build_encoder, load_weights


class Classifier(nn.Module):
    """An encoder and a linear layer: F(x, y) = -log softmax(W f(x) + b)_y.

    Args:
        encoder: f.
        classes: names of the classes, in the order of the output.
    """

    def __init__(self, encoder: Encoder, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder, self.classes = encoder, classes
        self.head = nn.Linear(encoder.dim, len(classes))

    def forward(self, data: Tensor) -> Float[Tensor, "b k"]:
        """Logits of normalised data."""
        return self.head(self.encoder(data))

    def of_unit(self, unit: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of images in [0, 1]."""
        mean, std = (
            unit.new_tensor(v).view(-1, 1, 1) for v in (self.encoder.mean, self.encoder.std)
        )
        return self((unit - mean) / std)


def save_classifier(model: Classifier, folder: Path) -> None:
    """Write config.json and model.safetensors: a classifier of timm where timm knows the backbone.

    Raises:
        ValueError: the backbone has two classifiers.
    """
    encoder, names = model.encoder, list(model.classes)
    ours = {
        "name": encoder.name,
        "image_size": encoder.image_size,
        "arguments": encoder.arguments,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "classes": names,
    }
    config: dict[str, Any] = {"architecture": encoder.name, "format": 1, "erg": ours}
    if isinstance(encoder, TimmEncoder):
        config |= backbones.timm_config(
            encoder.network, encoder.name, encoder.image_size, encoder.dim, encoder.arguments,
            encoder.mean, encoder.std,
        )  # fmt: skip
        config |= {"num_classes": len(names), "label_names": names}
        config["pretrained_cfg"] |= {"num_classes": len(names), "label_names": names}
    weights = {name: t.detach().cpu().contiguous() for name, t in _state(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())


def load_classifier(folder: Path) -> Classifier:
    """Read what `save_classifier` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds no classifier of erg, or its weights do not fit.
    """
    try:
        ours = read_json(folder / "config.json")["erg"]
        encoder = build_encoder(ours["name"], ours["image_size"], **ours["arguments"])
        encoder.mean, encoder.std = tuple(ours["mean"]), tuple(ours["std"])
        model = Classifier(encoder, tuple(ours["classes"]))
        weights = load_weights(folder / "model.safetensors")
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} holds no classifier of erg ({type(error).__name__}: {error}). Give a folder "
            "of `erg finetune`."
        ) from None
    mine = _state(model)
    wrong = mine.keys() ^ weights.keys() or {
        name for name, t in mine.items() if t.shape != weights[name].shape
    }
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit its config ({min(wrong)}). Write it again."
        )
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(weights[name])
    return model.eval()


def _state(model: Classifier) -> dict[str, Tensor]:
    """All weights by their names in the file: timm's where timm knows the backbone."""
    encoder = model.encoder
    if not isinstance(encoder, TimmEncoder):
        return model.state_dict()
    network: Any = encoder.network
    head = network.pretrained_cfg["classifier"]
    if not isinstance(head, str):
        raise ValueError(
            f"{encoder.name} has the classifiers {head}, not one. Use a backbone with one."
        )
    last = {f"{head}.{name}": t for name, t in model.head.state_dict().items()}
    return {**network.state_dict(), **last}
