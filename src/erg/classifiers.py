"""Classifiers: an encoder and a linear layer, and how they are written to a folder.

Between them may stand the first layers of the projector that the encoder was trained with, as in
SimCLRv2 (Chen et al. 2020, section 3).
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from erg import backbones
from erg.durable import read_json, write_atomically
from erg.encoders import DAMAGE, Encoder, TimmEncoder, build_encoder, first_line, load_weights
from erg.parts.heads import hidden_layers
from erg.parts.norm import BatchNorm


class Classifier(nn.Module):
    """An encoder and a linear layer: F(x, y) = -log softmax(W g(f(x)) + b)_y.

    Args:
        encoder: f.
        classes: names of the classes, in the order of the output.
        projector: g, hidden layers (see `first_layers`); None: the identity.
    """

    def __init__(
        self, encoder: Encoder, classes: tuple[str, ...], projector: nn.Sequential | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.classes, self.projector = encoder, classes, projector
        width = encoder.dim if projector is None else _about(projector)["widths"][-1]
        self.head = nn.Linear(width, len(classes))

    def features(self, data: Tensor) -> Float[Tensor, "b d"]:
        """What the linear layer sees of normalised data."""
        vectors = self.encoder(data)
        return vectors if self.projector is None else self.projector(vectors)

    def forward(self, data: Tensor) -> Float[Tensor, "b k"]:
        """Logits of normalised data."""
        return self.head(self.features(data))

    def of_unit(self, unit: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of images in [0, 1]."""
        mean, std = (
            unit.new_tensor(v).view(-1, 1, 1) for v in (self.encoder.mean, self.encoder.std)
        )
        return self((unit - mean) / std)


def first_layers(projector: Any, count: int) -> nn.Sequential:
    """A copy of the first layers of a projector, each with its normalisation and ReLU.

    Args:
        projector: as `parts.heads.mlp` makes it.
        count: linear layers to keep.

    Raises:
        ValueError: it has no so many before its last one, or is made in another way.
    """
    linear = [i for i, m in enumerate(projector or ()) if isinstance(m, nn.Linear)]
    if not 0 < count < len(linear):
        raise ValueError(
            f"{count} layers of the projector cannot be kept: it has {max(0, len(linear) - 1)} "
            "before its last one. Keep fewer, or none."
        )
    kept = copy.deepcopy(projector[: linear[count]])
    if [type(m) for m in kept] != [type(m) for m in hidden_layers(**_about(kept))]:
        raise ValueError(
            "the projector is not made of linear layers with BatchNorm and ReLU, so its layers "
            "cannot be kept. Keep none."
        )
    return kept


def _about(projector: nn.Sequential) -> dict[str, Any]:
    """Arguments of `hidden_layers`."""
    linear = [m for m in projector if isinstance(m, nn.Linear)]
    return {
        "widths": [linear[0].in_features, *(m.out_features for m in linear)],
        "norm": any(isinstance(m, BatchNorm) for m in projector),
        "bias": linear[0].bias is not None,
    }


def save_classifier(model: Classifier, folder: Path) -> None:
    """Write config.json and model.safetensors: a classifier of timm where timm knows the backbone
    and no layers of a projector are kept.

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
    if model.projector is not None:
        ours["projector"] = _about(model.projector)
    config: dict[str, Any] = {"architecture": encoder.name, "format": 1, "erg": ours}
    if _is_timms(model):
        assert isinstance(encoder, TimmEncoder)
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
        encoder = build_encoder(ours["name"], ours["image_size"], init=None, **ours["arguments"])
        encoder.mean, encoder.std = tuple(ours["mean"]), tuple(ours["std"])
        projector = hidden_layers(**ours["projector"]) if "projector" in ours else None
        model = Classifier(encoder, tuple(ours["classes"]), projector)
        weights = load_weights(folder / "model.safetensors")
    except DAMAGE as error:
        raise ValueError(
            f"{folder} holds no classifier of erg ({type(error).__name__}: {first_line(error)}). "
            "Give a folder of `erg finetune`."
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


def _is_timms(model: Classifier) -> bool:
    """Whether timm can build all of it."""
    return isinstance(model.encoder, TimmEncoder) and model.projector is None


def _state(model: Classifier) -> dict[str, Tensor]:
    """All weights by their names in the file: timm's where timm knows the backbone."""
    encoder = model.encoder
    if not _is_timms(model):
        return model.state_dict()
    assert isinstance(encoder, TimmEncoder)
    network: Any = encoder.network
    head = network.pretrained_cfg["classifier"]
    if not isinstance(head, str):
        raise ValueError(
            f"{encoder.name} has the classifiers {head}, not one. Use a backbone with one."
        )
    last = {f"{head}.{name}": t for name, t in model.head.state_dict().items()}
    return {**network.state_dict(), **last}
