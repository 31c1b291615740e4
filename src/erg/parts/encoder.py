"""What an encoder is: it gives one vector per item, and knows how its input was normalised."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from erg.parts.recompute import recompute
from erg.views.types import Mask

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        patch: height and width of the patches that a ViT's tokens stand for [pixels]; None for
            everything else.
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
    patch: tuple[int, int] | None = None
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

    def units(self) -> list[nn.Module]:
        """Its blocks, each of which can be computed, kept and shared out for itself; maybe none."""
        return []

    def recompute(self) -> None:
        """Keep nothing of its blocks but their inputs; the backward pass computes them again.

        Raises:
            ValueError: it has no blocks.
        """
        blocks = self.units()
        if not blocks:
            raise ValueError(
                f"{self.name} has no blocks to compute again. Use a ResNet, a RegNet or a ViT, or "
                "leave recompute out."
            )
        for block in blocks:
            recompute(block)

    def refuses(self, side: int) -> str:
        """What speaks against images of a size, in words; nothing where it takes them.

        Args:
            side: of the images [pixels].
        """
        return ""

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
