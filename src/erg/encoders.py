"""Encoders: any timm backbone by name, and small ones of ours for pixels, vectors and tokens.

An encoder knows its image size and the mean and standard
deviation its input was normalised with, so that nothing else has to.
"""

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erg import backbones
from erg.durable import read_json, write_atomically
from erg.energy import normalise
from erg.parts.attention import Block
from erg.parts.norm import across_processes
from erg.parts.resnet import ResNet
from erg.views.types import Mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Activation = Literal["relu", "silu"]
"""What stands behind the layers of our own networks: max(0, x), or x sigmoid(x), which has a second
derivative everywhere, as the slopes of an energy need."""


class Encoder(nn.Module, ABC):
    """Normalised data [b c h w] or [b d], or tokens [b n], to one vector per item [b dim].

    Attributes:
        name: what it was built from.
        arguments: further constructor arguments, JSON-able.
        image_size: side of its input [pixels]; number of features for vectors, of tokens for
            sequences.
        dim: width of its output [features].
        grid: rows and columns of its patch tokens, 1 and n for sequences; None where it gives one
            vector per image.
        mean: per channel, subtracted from inputs in [0, 1].
        std: per channel, by which they are then divided.
        map_widths: channels of its feature maps, the finest first; empty where `maps` gives none.
        exportable: whether timm alone can rebuild it from name and arguments.
        depth: number of blocks of a ViT; 0 for everything else.
        one_size: whether images of another size than `image_size` are refused.
        vocabulary: number of different tokens it takes; 0 for all that takes no tokens.
    """

    name: str
    arguments: dict[str, Any]
    image_size: int
    dim: int
    grid: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    map_widths: tuple[int, ...] = ()
    exportable: bool = False
    depth: int = 0
    one_size: bool = False
    vocabulary: int = 0

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

    def maps(self, data: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """The feature map [b c h w] behind every stage, the finest first; the last is pooled.

        Raises:
            ValueError: this encoder shows none.
        """
        raise ValueError(f"{self.name} shows no feature maps of its stages. Use conv.")

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        """The vector and the tokens (or cells of the last map, row-major) of every image.

        Raises:
            ValueError: this encoder has no tokens.
        """
        return self(data), self.tokens(data)

    def masked(
        self,
        data: Float[Tensor, "b c h w"],
        mask: Mask,
        blank: Float[Tensor, " d"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        """The vector and the tokens of what a mask leaves of every image.

        Args:
            data: the whole images.
            mask: of which only what it hides matters.
            blank: what stands where a patch is hidden, before positions are added; without it
                hidden patches are left out, and all images have to keep as many.

        Raises:
            ValueError: this encoder cannot hide patches.
        """
        raise ValueError(
            f"{self.name} cannot hide patches. Use a ViT, for example vit_tiny_patch16_224."
        )

    def layers(self, data: Float[Tensor, "b c h w"], last: int) -> list[Tensor]:
        """Tokens [b n d] behind each of the last blocks of a ViT, the lowest first, before the
        final norm.

        Raises:
            ValueError: this encoder has fewer blocks.
        """
        raise ValueError(
            f"{self.name} has no {last} blocks to look into. Use a ViT, or look into fewer."
        )

    def need_patches(self, who: str) -> tuple[int, int]:
        """Rows and columns of the patches, for a method that cannot do without.

        Args:
            who: name of the method.

        Raises:
            ValueError: it has none.
        """
        if self.grid is None:
            raise ValueError(
                f"{who} needs patch tokens; {self.name} gives one vector per image. "
                "Use a ViT, for example vit_tiny_patch16_224."
            )
        return self.grid

    def need_sizes(self, who: str) -> None:
        """Refuse, for a method that makes small crops, where only one size of image fits.

        Args:
            who: name of the method.

        Raises:
            ValueError: position embeddings are those of one size.
        """
        if self.one_size:
            raise ValueError(
                f"{who} makes small crops, and {self.name} takes one size of image only. Build it "
                "with dynamic_img_size = True, or use small_crops = 0."
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

    def __init__(
        self, name: str, image_size: int, init: str | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        self.name, self.image_size = name, image_size
        self.exportable = name.split(".")[0] not in backbones.BEYOND
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
        embedding = getattr(network, "patch_embed", None)
        self.one_size = bool(getattr(embedding, "strict_img_size", False))
        self.is_vit = backbones.is_plain_vit(network)
        if self.is_vit:
            rows, columns = network.patch_embed.grid_size
            self.grid, self.depth = (int(rows), int(columns)), len(network.blocks)

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
        activation: behind the hidden layers.
    """

    name = "mlp"
    mean, std = (), ()

    def __init__(
        self,
        image_size: int,
        *,
        width: int = 128,
        depth: int = 2,
        dim: int = 64,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.image_size, self.dim = image_size, dim
        self.arguments = {"width": width, "depth": depth, "dim": dim, "activation": activation}
        widths = [image_size, *[width] * depth]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), _activation(activation)]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, data: Float[Tensor, "b features"]) -> Float[Tensor, "b d"]:
        return self.network(data)


class TokenTransformer(Encoder):
    """A transformer on sequences of whole numbers, whose attention can be looked at.

    Norms stand before attention and before the small networks, and a last one behind all blocks;
    places are learned; the vector of a sequence is the mean of its tokens. Tokens below 0 stand
    behind the end of a sequence: nothing attends to them, and they have no part in the mean.

    Args:
        image_size: largest number of tokens in a sequence.
        vocabulary: number of different tokens, which are 0 to vocabulary - 1; 256 for bytes.
        width: of its tokens and its vector [features].
        depth: number of blocks.
        heads: of the attention in each, a divisor of the width.
    """

    name = "sequence"
    mean, std = (), ()

    def __init__(
        self,
        image_size: int,
        *,
        vocabulary: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.image_size, self.vocabulary, self.dim = image_size, vocabulary, width
        self.grid = (1, image_size)
        self.arguments = {
            "vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads,
        }  # fmt: skip
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(image_size, width).normal_(std=0.02))
        nn.init.normal_(self.embedding.weight, std=0.02)  # as BERT's
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, data: Shaped[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        return self.with_tokens(data)[0]

    def tokens(self, data: Shaped[Tensor, "b n"], mask: Mask | None = None) -> Tensor:
        return self._through(data, mask)[1]

    def with_tokens(
        self, data: Shaped[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        return self._through(data)[:2]

    def masked(
        self,
        data: Shaped[Tensor, "b n"],
        mask: Mask,
        blank: Float[Tensor, " d"] | None = None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b m d"]]:
        return self._through(data, mask, blank)[:2]

    def attention(
        self,
        data: Shaped[Tensor, "b n"],
        mask: Mask | None = None,
        blank: Float[Tensor, " d"] | None = None,
    ) -> Float[Tensor, "layers b h m m"]:
        """What share of its attention each place (last but one axis) gives to each (last) in every
        block and head; arguments as `masked`."""
        return torch.stack(self._through(data, mask, blank)[2])

    def _through(
        self, data: Tensor, mask: Mask | None = None, blank: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Vectors [b d], tokens [b n d] and the weights [b h n n] of every block."""
        data, n = data.long(), data.shape[1]  # embedding casts whatever it is given to floats
        self._check(data)
        valid = data >= 0
        x = self.embedding(data.clamp_min(0))
        if mask is not None and blank is not None:
            x = torch.where(mask.hidden.any(dim=1)[..., None], blank.to(x.dtype), x)
        x = x + self.places[:n]
        if mask is not None and blank is None:
            keep = mask.keep()
            x, valid = x.gather(1, keep[..., None].expand(-1, -1, self.dim)), valid.gather(1, keep)
        weights: list[Tensor] = []
        for block in self.blocks:
            x, seen = block(x, valid)
            weights.append(seen)
        x = self.norm(x)
        return (x * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True), x, weights

    def _check(self, data: Tensor) -> None:
        if data.shape[1] > self.image_size:
            raise ValueError(
                f"the sequences have {data.shape[1]} tokens, and this encoder takes at most "
                f"{self.image_size}. Cut them, or build it with image_size = {data.shape[1]}."
            )
        # An accelerator would have to be waited for.
        if data.device.type == "cpu" and bool((data >= self.vocabulary).any()):
            raise ValueError(
                f"there are tokens up to {int(data.max())}, and this encoder knows 0 to "
                f"{self.vocabulary - 1}. Build it with vocabulary = {int(data.max()) + 1}."
            )


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
        activation: behind the convolutions.
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
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if len(blocks) > stages:
            raise ValueError(
                f"blocks names {len(blocks)} stages, and there are {stages}. Name at most those."
            )
        self.image_size = image_size
        self.arguments = {
            "width": width, "stages": stages, "blocks": list(blocks), "whole": whole,
            "activation": activation,
        }  # fmt: skip
        widths = [3, *[width * 2**i for i in range(stages)]]
        residual = [0] * (stages - len(blocks)) + list(blocks)
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # number of the last layer of each stage
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += _conv(a, b, activation, stride=1 if whole and i == 0 else 2)
            for _ in range(residual[i]):
                layers.append(Residual(nn.Sequential(*_conv(b, b, activation, stride=1))))
            self.ends.append(len(layers) - 1)
        self.network = across_processes(nn.Sequential(*layers))
        self.dim, self.map_widths = widths[-1], tuple(widths[1:])

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data).mean(dim=(2, 3))

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        cells = self.network(data)
        return cells.mean(dim=(2, 3)), cells.flatten(2).transpose(1, 2)

    def maps(self, data: Float[Tensor, "b c h w"]) -> list[Tensor]:
        found: list[Tensor] = []
        for i, layer in enumerate(self.network.children()):
            data = layer(data)
            if i in self.ends:
                found.append(data)
        return found


class WideResNet(Encoder):
    """A ResNet with all widths multiplied, with selective kernels where wanted, as in SimCLRv2.

    Args:
        image_size: side of its input [pixels].
        depth: 26, 50, 101, 152 or 200 layers.
        width: factor of all widths.
        selective: whether 3 x 3 convolutions have selective kernels.
    """

    name = "resnet"

    def __init__(
        self, image_size: int, *, depth: int = 50, width: int = 1, selective: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.arguments = {"depth": depth, "width": width, "selective": selective}
        network = ResNet(depth, width, selective)
        self.network, self.dim = across_processes(network), network.channels

    def forward(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.network(data).mean(dim=(2, 3))

    def with_tokens(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n e"]]:
        cells = self.network(data)
        return cells.mean(dim=(2, 3)), cells.flatten(2).transpose(1, 2)


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


def _activation(name: Activation) -> nn.Module:
    if name not in get_args(Activation):
        raise ValueError(f"activation should be one of {get_args(Activation)} (got {name!r}).")
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU()


def _conv(fan_in: int, fan_out: int, activation: Activation, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(fan_out), _activation(activation)]


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
        ours = read_json(folder / "config.json")["erg"]
        encoder = build_encoder(ours["name"], ours["image_size"], **ours["arguments"])
        weights = load_file(folder / "model.safetensors")
    except (OSError, KeyError, TypeError, SafetensorError) as error:
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
