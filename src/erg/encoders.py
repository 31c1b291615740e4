"""Encoders: any timm backbone by name, and small ones of ours for pixels, vectors and 2-D worlds.

An encoder knows its image size and the mean and standard
deviation its input was normalised with, so that nothing else has to.
"""

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erg import backbones
from erg.durable import write_atomically
from erg.energy import normalise
from erg.parts.norm import across_processes
from erg.views.types import Mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module, ABC):
    """Normalised data [b c h w] or [b d] to one vector per item [b dim].

    Attributes:
        name: what it was built from.
        arguments: further constructor arguments, JSON-able.
        image_size: side of its input [pixels]; number of features for vectors.
        dim: width of its output [features].
        grid: rows and columns of its patch tokens; None where it gives one vector per image.
        mean: per channel, subtracted from inputs in [0, 1].
        std: per channel, by which they are then divided.
        exportable: whether timm alone can rebuild it from name and arguments.
    """

    name: str
    arguments: dict[str, Any]
    image_size: int
    dim: int
    grid: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exportable: bool = False

    @abstractmethod
    def forward(self, data: Tensor) -> Float[Tensor, "b d"]:
        """One vector per item."""

    def tokens(self, data: Float[Tensor, "b c h w"], mask: Mask | None = None) -> Tensor:
        """Patch tokens [b n d]; with a mask only those it keeps, and no work for the others.

        Raises:
            ValueError: this encoder has no tokens, or cannot leave some out.
        """
        raise ValueError(
            f"{self.name} gives one vector per image, no patch tokens. "
            "Use a ViT, for example vit_tiny_patch16_224."
        )


class TimmEncoder(Encoder):
    """A backbone of timm without its classifier.

    Args:
        name: timm architecture, for example resnet18 or vit_tiny_patch16_224; with a tag
            (resnet18.a1_in1k) only the architecture is taken, unless `init` says pretrained.
        image_size: side of its input [pixels].
        init: nothing for random weights, `pretrained` or a tag for timm's public weights, a
            .safetensors file, or a folder in timm's form (an erg export too).
        arguments: passed to timm.
    """

    exportable = True

    def __init__(
        self, name: str, image_size: int, init: str | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        self.name, self.image_size = name, image_size
        if init is not None and Path(init).is_dir():
            arguments = {**backbones.model_arguments(Path(init)), **arguments}
        self.arguments = arguments
        network = backbones.create(name, image_size, init, arguments, OURS)
        config = network.pretrained_cfg
        if init is not None and config.get("mean") is not None:
            self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.network = across_processes(network)
        # Some heads widen the features on their way out, and timm then says so here.
        self.dim = int(getattr(network, "head_hidden_size", network.num_features))
        self.is_vit = backbones.is_plain_vit(network)
        if self.is_vit:
            rows, columns = network.patch_embed.grid_size
            self.grid = (int(rows), int(columns))

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data)

    def tokens(self, data: Float[Tensor, "b c h w"], mask: Mask | None = None) -> Tensor:
        net: Any = self.network
        if not self.is_vit:
            if mask is not None:
                return super().tokens(data, mask)
            return self._cells(net.forward_features(data), getattr(net, "num_prefix_tokens", 0))
        x = net._pos_embed(net.patch_embed(data))  # [b prefix+n d]
        if mask is not None:
            prefix = net.num_prefix_tokens
            keep = mask.keep()[..., None].expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, keep)], dim=1)
        x = net.norm_pre(net.patch_drop(x) if mask is None else x)
        for block in net.blocks:
            x = block(x)
        return net.norm(x)[:, net.num_prefix_tokens :]

    def _cells(self, x: Tensor, prefix: int) -> Tensor:
        """Feature maps [b d h w] or [b h w d], or tokens [b n d] behind a prefix, as [b n d]."""
        if x.ndim == 4:
            first = x.shape[1] == self.dim and x.shape[-1] != self.dim
            x = x.flatten(2).transpose(1, 2) if first else x.flatten(1, 2)
        else:
            x = x[:, prefix:]
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{self.name} gives features {list(x.shape)} that are no tokens of width "
                f"{self.dim}. Use a ResNet, a ViT or a Swin."
            )
        return x


class Pixels(Encoder):
    """No network: the values themselves, images averaged down to a small side and flattened.

    Args:
        image_size: side of its input [pixels].
        side: side after averaging [pixels].
        contrast: whether brightness and contrast are taken out: each image has mean 0 and norm 1.
    """

    name = "pixels"

    def __init__(self, image_size: int, *, side: int = 16, contrast: bool = False) -> None:
        super().__init__()
        self.image_size, self.contrast = image_size, contrast
        self.arguments = {"side": side, "contrast": contrast}
        self.side = min(side, image_size)
        self.dim = 3 * self.side**2

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        x = nn.functional.adaptive_avg_pool2d(data, self.side).flatten(1)
        return normalise(x - x.mean(dim=1, keepdim=True)) if self.contrast else x


class Identity(Encoder):
    """Vectors as they are.

    Args:
        image_size: number of features.
    """

    name = "identity"
    mean, std = (), ()

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size, self.arguments = image_size, {}
        self.dim = image_size

    def forward(self, data: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return data


class VectorMLP(Encoder):
    """A fully connected network for vectors and 2-D worlds.

    Args:
        image_size: number of features.
        width: of the hidden layers [features].
        depth: number of hidden layers.
        dim: width of the output [features].
    """

    name = "mlp"
    mean, std = (), ()

    def __init__(self, image_size: int, *, width: int = 128, depth: int = 2, dim: int = 64) -> None:
        super().__init__()
        self.image_size, self.dim = image_size, dim
        self.arguments = {"width": width, "depth": depth, "dim": dim}
        widths = [image_size, *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, data: Float[Tensor, "b features"]) -> Float[Tensor, "b d"]:
        return self.network(data)


class SmallConv(Encoder):
    """A plain convolutional network, stride 2 per stage, for tests and very small images.

    Args:
        image_size: side of its input [pixels].
        width: channels of the first stage, doubled at each further one.
        stages: number of stages.
        blocks: residual 3 x 3 convolutions x + relu(bn(conv x)) that follow in each of the last
            stages, given from the first such stage to the last: (1, 2) puts one into the last but
            one and two into the last.
        whole: whether the first stage keeps the resolution of the image.
    """

    name = "conv"

    def __init__(
        self,
        image_size: int,
        *,
        width: int = 16,
        stages: int = 3,
        blocks: Sequence[int] = (),
        whole: bool = False,
    ) -> None:
        super().__init__()
        if len(blocks) > stages:
            raise ValueError(
                f"blocks names {len(blocks)} stages, and there are {stages}. Name at most those."
            )
        self.image_size = image_size
        self.arguments = {"width": width, "stages": stages, "blocks": list(blocks), "whole": whole}
        widths = [3, *[width * 2**i for i in range(stages)]]
        residual = [0] * (stages - len(blocks)) + list(blocks)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += _conv(a, b, stride=1 if whole and i == 0 else 2)
            layers += [Residual(nn.Sequential(*_conv(b, b, stride=1))) for _ in range(residual[i])]
        self.network = across_processes(nn.Sequential(*layers))
        self.dim = widths[-1]

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data).mean(dim=(2, 3))


class Residual(nn.Module):
    """x + f(x).

    Args:
        inside: f.
    """

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


def _conv(fan_in: int, fan_out: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True)]


OURS: dict[str, type[Encoder]] = {
    kind.name: kind for kind in (Pixels, Identity, VectorMLP, SmallConv)
}


def build_encoder(
    name: str, image_size: int, *, init: str | None = None, **arguments: Any
) -> Encoder:
    """An encoder by name: one of ours (pixels, identity, mlp, conv) or any timm architecture.

    Raises:
        ValueError: unknown name, arguments or weights.
    """
    if name not in OURS:
        return TimmEncoder(name, image_size, init, **arguments)
    if init is not None:
        raise ValueError(
            f"{name} has no public weights, so init = {init!r} cannot be loaded. "
            "Leave init out, or use an encoder of timm."
        )
    try:
        return OURS[name](image_size, **arguments)  # type: ignore[call-arg]
    except TypeError as error:
        raise ValueError(f"encoder {name}: {error}. See erg.encoders for its arguments.") from None


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(math.prod(p.shape) for p in module.parameters() if p.requires_grad)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write config.json and model.safetensors, in timm's form where timm can rebuild it.

    The key `erg` of the config holds what `load_encoder` needs; timm ignores it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = {
        "name": encoder.name,
        "image_size": encoder.image_size,
        "arguments": encoder.arguments,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    config: dict[str, Any] = {"architecture": encoder.name, "format": 1, "erg": ours}
    module: nn.Module = encoder
    if isinstance(encoder, TimmEncoder):
        module = encoder.network
        config |= backbones.timm_config(
            encoder.network, encoder.name, encoder.image_size, encoder.dim, encoder.arguments,
            encoder.mean, encoder.std,
        )  # fmt: skip
    weights = {
        k: t.detach().cpu().float().contiguous().clone()
        if t.is_floating_point()
        else t.detach().cpu().clone()
        for k, t in module.state_dict().items()
    }
    content = save(weights, metadata={"format": "pt"})
    for name, data in (
        ("model.safetensors", content),
        ("config.json", json.dumps(config, indent=2).encode()),
    ):
        write_atomically(folder / name, data)


def load_encoder(folder: Path) -> Encoder:
    """Read what `save_encoder` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds no encoder of ours, or its weights do not fit.
    """
    try:
        ours = json.loads((folder / "config.json").read_text())["erg"]
        encoder = build_encoder(ours["name"], ours["image_size"], **ours["arguments"])
        weights = load_file(folder / "model.safetensors")
    except (OSError, KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} holds no encoder of erg ({type(error).__name__}: {error}). Give the "
            "encoder/ folder of a run, or an export."
        ) from None
    encoder.mean, encoder.std = tuple(ours["mean"]), tuple(ours["std"])
    module = encoder.network if isinstance(encoder, TimmEncoder) else encoder
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config ({_first_line(error)}). Export again."
        ) from None
    return encoder.eval()
