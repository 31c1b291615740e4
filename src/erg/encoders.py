"""Encoders by name, any backbone of timm or one of ours, and how they are saved and loaded.

What an encoder is stands in `parts/encoder.py`, our own networks beside it; timm's are wrapped
here.
"""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erg import backbones
from erg.durable import open_regular, read_json, write_atomically
from erg.parts.conv import SmallConv
from erg.parts.convolution import with_right_gradients
from erg.parts.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder
from erg.parts.norm import across_processes, batch_norms_before_mlps
from erg.parts.resnet import WideResNet, small_stem
from erg.parts.transformer import TokenTransformer
from erg.parts.values import Identity, Pixels
from erg.parts.vector_mlp import VectorMLP
from erg.views.types import Mask

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "OURS", "Encoder", "Identity", "Pixels",
    "SmallConv", "TimmEncoder", "TokenTransformer", "VectorMLP", "WideResNet", "build_encoder",
    "encoder_in", "load_encoder", "load_weights", "parameter_count", "save_encoder",
]  # fmt: skip


CHANGES: dict[str, Callable[[nn.Module, str], None]] = {
    "small_stem": small_stem,
    "mlp_batch_norm": batch_norms_before_mlps,
}
"""Arguments of ours beside those of timm, and what they change in one of its networks.

- small_stem: a ResNet starts with a 3 x 3 convolution of stride 1 and pools nothing.
- mlp_batch_norm: a ViT normalises over the batch in front of its MLPs, as MoCo v3's ViT-BN.
"""


DAMAGE = (
    *(OSError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, SafetensorError),
)
"""What a config with wrong values may raise beside ValueError, which says it in words already."""


class TimmEncoder(Encoder):
    """A backbone of timm without its classifier.

    Args:
        name: timm architecture, for example resnet18 or vit_tiny_patch16_224; with a tag
            (resnet18.a1_in1k) only the architecture is taken, unless `init` says pretrained.
        image_size: side of its input [pixels].
        init: nothing for random weights, `pretrained` or a tag for timm's public weights, a
            .safetensors file, or a folder in timm's form (an erg export too).
        arguments: passed to timm, but for those of `CHANGES`.
    """

    def __init__(
        self, name: str, image_size: int, init: str | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        self.name, self.image_size = name, image_size
        if init is not None and Path(init).is_dir():
            arguments = {**backbones.model_arguments(Path(init)), **arguments}
        changes = {key: change for key, change in CHANGES.items() if arguments.get(key)}
        timms = {key: value for key, value in arguments.items() if key not in CHANGES}
        self.arguments = {**timms, **dict.fromkeys(changes, True)}
        self.exportable = not changes and name.split(".")[0] not in backbones.BEYOND
        network = backbones.create(name, image_size, None if changes else init, timms, OURS)
        for change in changes.values():
            change(network, name)
        config = network.pretrained_cfg
        if init is not None and config.get("mean") is not None:
            self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.network = across_processes(network)
        # Some heads widen the features on their way out, and timm then says so here.
        self.dim = int(getattr(network, "head_hidden_size", network.num_features))
        embedding = getattr(network, "patch_embed", None)
        self.one_size = bool(getattr(embedding, "strict_img_size", False))
        self.is_vit = backbones.is_plain_vit(network)
        if self.is_vit:
            rows, columns = network.patch_embed.grid_size
            self.grid, self.depth = (int(rows), int(columns)), len(network.blocks)
            tall, wide = network.patch_embed.feat_ratio(as_scalar=False)
            self.patch = int(tall), int(wide)
        if changes and init is not None:
            _start_from(self, Path(init), f"{name} with {', '.join(changes)}")

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data)

    def tokens(self, data: Float[Tensor, "b c h w"], mask: Mask | None = None) -> Tensor:
        net: Any = self.network
        if not self.is_vit:
            if mask is not None:
                return super().tokens(data, mask)
            return self._cells(net.forward_features(data), getattr(net, "num_prefix_tokens", 0))
        x = self._embedded(data, mask)
        for block in net.blocks:
            x = block(x)
        return net.norm(x)[:, net.num_prefix_tokens :]

    def masked(
        self,
        data: Float[Tensor, "b c h w"],
        mask: Mask,
        blank: Float[Tensor, " d"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        net: Any = self.network
        if not self.is_vit:
            return super().masked(data, mask, blank)
        x = self._embedded(data, mask, blank)
        for block in net.blocks:
            x = block(x)
        x = net.norm(x)
        return net.forward_head(x), x[:, net.num_prefix_tokens :]

    def refuses(self, side: int) -> str:
        """What its patch embedding says to a blank image: nobody knows better."""
        embedding: Any = getattr(self.network, "patch_embed", None)
        strict = getattr(embedding, "strict_img_size", None)
        if strict is None:  # none of those that look at sizes
            return ""
        if strict and self.is_vit and side != self.image_size:  # stems look at none, positions do
            what = f"it takes {self.image_size} pixels only"
        else:
            tried = copy.deepcopy(embedding).eval()
            try:
                with torch.no_grad():
                    tried(next(tried.parameters()).new_zeros(1, 3, side, side))
            except AssertionError as error:
                what = first_line(error).rstrip(".")
            else:
                return ""
        way = "dynamic_img_size = True" if strict else "patches that divide these sizes"
        return f"{what}. Build it with {way}, or use one without patches, for example resnet18."

    def units(self) -> list[nn.Module]:
        """As timm names them."""
        matcher: Callable[[], dict[str, Any]] = getattr(self.network, "group_matcher", dict)
        told: str | list[tuple[str, Any]] = matcher().get("blocks", [])
        patterns = [told] if isinstance(told, str) else [p for p, place in told if place is None]
        named = self.network.named_modules()
        return [m for name, m in named if any(re.fullmatch(p, name) for p in patterns)]

    def layers(self, data: Float[Tensor, "b c h w"], last: int) -> list[Tensor]:
        net: Any = self.network
        if last > self.depth:
            return super().layers(data, last)
        x, found = self._embedded(data), list[Tensor]()
        for block in net.blocks:
            x = block(x)
            found.append(x[:, net.num_prefix_tokens :])
        return found[self.depth - last :]

    def _embedded(
        self, data: Tensor, mask: Mask | None = None, blank: Tensor | None = None
    ) -> Tensor:
        """What a ViT's blocks are given [b prefix+n d]: hidden patches left out, or the blank."""
        net: Any = self.network
        x = net.patch_embed(data)  # [b n d], or [b rows columns d] for images of any size
        if mask is not None and blank is not None:
            hidden = mask.hidden.any(dim=1).reshape(*x.shape[:-1], 1)
            x = torch.where(hidden, blank.to(x.dtype), x)
        x = net._pos_embed(x)  # [b prefix+n d]
        if mask is not None and blank is None:
            prefix = net.num_prefix_tokens
            keep = mask.keep()[..., None].expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, :prefix], x[:, prefix:].gather(1, keep)], dim=1)
        return net.norm_pre(net.patch_drop(x) if mask is None else x)

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        net: Any = self.network
        x = net.forward_features(data)  # once for both
        return net.forward_head(x), self._cells(x, getattr(net, "num_prefix_tokens", 0))

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


OURS: dict[str, type[Encoder]] = {
    kind.name: kind
    for kind in (Pixels, Identity, VectorMLP, TokenTransformer, SmallConv, WideResNet)
}


def build_encoder(
    name: str, image_size: int, *, init: str | None = None, **arguments: Any
) -> Encoder:
    """An encoder by name: one of ours (see `OURS`) or any timm architecture.

    Raises:
        ValueError: unknown name, arguments or weights.
    """
    if name not in OURS:
        return with_right_gradients(TimmEncoder(name, image_size, init, **arguments))
    if init is not None and Path(init).is_dir():
        theirs, given = encoder_in(Path(init))
        if theirs != name:
            raise ValueError(f"{init} holds a {theirs}, not a {name}. Add --encoder {theirs}.")
        arguments = {**given, **arguments}
    try:
        encoder = OURS[name](image_size, **arguments)  # type: ignore[call-arg]
    except TypeError as error:
        raise ValueError(f"encoder {name}: {error}. See erg.encoders for its arguments.") from None
    if init is not None:
        _start_from(encoder, Path(init), name)
    return with_right_gradients(encoder)


def _start_from(encoder: Encoder, folder: Path, what: str) -> None:
    """Take the weights of one built in the same way by us: no others would fit."""
    if not folder.is_dir():
        raise ValueError(
            f"{what} has no public weights, so init = {str(folder)!r} cannot be loaded. Leave init "
            "out, or give the encoder/ folder of a run with the same arguments."
        )
    given = load_encoder(folder)
    try:
        encoder.load_state_dict(given.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit {what} ({first_line(error)}). Give those of the "
            "same architecture and arguments."
        ) from None
    encoder.mean, encoder.std = given.mean, given.std


def parameter_count(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(math.prod(p.shape) for p in module.parameters() if p.requires_grad)


def first_line(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def encoder_in(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the encoder in a folder of ours or of timm's form.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        config = read_json(folder / "config.json")
        if "erg" in config:
            return str(config["erg"]["name"]), dict(config["erg"]["arguments"])
        return str(config["architecture"]), backbones.model_arguments(folder)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no encoder ({type(error).__name__}: {error}). Give the encoder/ "
            "folder of a run, or one in timm's form."
        ) from None


def load_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file that may come from anywhere.

    Raises:
        OSError: it is not there, may not be read, or is a pipe, which would be waited for.
        SafetensorError: it is damaged.
    """
    open_regular(file).close()
    return load_file(file)


def load_encoder(folder: Path) -> Encoder:
    """Read what `save_encoder` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds no encoder of ours, or its weights do not fit.
    """
    try:
        ours = read_json(folder / "config.json")["erg"]
        # An init among the arguments, which might fetch weights, would be a second one.
        encoder = build_encoder(ours["name"], ours["image_size"], init=None, **ours["arguments"])
        encoder.mean, encoder.std = tuple(ours["mean"]), tuple(ours["std"])
        weights = load_weights(folder / "model.safetensors")
    except DAMAGE as error:
        raise ValueError(
            f"{folder} holds no encoder of erg ({type(error).__name__}: {first_line(error)}). Give "
            "the encoder/ folder of a run, or an export."
        ) from None
    module = encoder.network if isinstance(encoder, TimmEncoder) else encoder
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config ({first_line(error)}). Export again."
        ) from None
    return encoder.eval()
