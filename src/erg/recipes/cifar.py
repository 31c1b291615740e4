"""CIFAR-10 on a CPU, every method of the catalogue for images: 50,000 of 32 pixels.

The encoder, the batch and the rates are those of `recipes.default`, with what was measured there
(`ON_A_CPU`). What stands here beside them is chosen, not measured: heads of width 512 instead of
the papers' 2,048 and more, which would take longer than the encoder, few crops, and teachers that
start quick: at 0.996 and more they hardly move in some hundred steps.
"""

from typing import Any

from erg.recipes.default import ON_A_CPU, Seen, default
from erg.schedule import Cosine, Linear
from erg.train.run import Run

SEEN = Seen(images=50_000, side=32, accelerator=False)

HEADS: dict[str, dict[str, Any]] = {
    "BarlowTwins": {"hidden": 512, "dim": 512},
    "CBYOL": {"hidden": 512, "dim": 128, "momentum": Cosine(0.99, 1.0)},
    "CSimCLR": {"hidden": 512, "dim": 128},
    "DINO": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.99, 1.0)},
    "DINOv2": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.99, 1.0)},
    "Data2Vec": {"top": 3, "momentum": Linear(0.99, 0.9998)},
    "DeepCluster": {"hidden": 512, "clusters": 100, "small_crops": 0},
    "EsViT": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.99, 1.0)},
    "IBOT": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.99, 1.0)},
    "IJEPA": {"depth": 2, "heads": 4, "momentum": Linear(0.99, 1.0)},
    "LeJEPA": {"hidden": 512, "views": 2},
    "MSN": {
        "hidden": 512, "prototypes": 256, "small_crops": 2, "momentum": Linear(0.99, 1.0),
    },
    "MoCoV3": {"hidden": 512},
    "NNCLR": {"hidden": 512, "dim": 128, "predictor": 512},
    "RELIC": {"hidden": 512, "dim": 128, "momentum": Cosine(0.99, 1.0)},
    "RELICv2": {
        "hidden": 512, "dim": 128, "large_crops": 2, "small_crops": 1,
        "momentum": Cosine(0.99, 1.0),
    },
    "SeLa": {"hidden": 512, "prototypes": 100, "heads": 3, "small_crops": 0},
    "SimSiam": {"dim": 512},
    "TiCo": {"hidden": 512},
    "VICRegL": {"hidden": 512, "dim": 512, "local": 128, "matches": 4},
    "WMSE": {"hidden": 512},
}  # fmt: skip
"""Arguments of methods whose heads, crops and teachers are meant for accelerators."""

PLANE: dict[str, Any] = {"encoder": "conv", "encoder_args": {"width": 1, "stages": 2}}
"""Two features, as a method needs that adds up over a plane."""


def cifar(method: str, *, data: str = "", epochs: float = 10, seed: int = 0, **further: Any) -> Run:
    """A small run on CIFAR-10.

    Args:
        method: a name of the catalogue; one of tokens is refused.
        data: where the images are.
        epochs: passes over them.
        seed: as in Run.
        further: as in `default`; arguments of the method over those chosen here.
    """
    return small(SEEN, method, data=data, epochs=epochs, seed=seed, **further)


def small(seen: Seen, method: str, **further: Any) -> Run:
    """A run on a CPU with the heads above, where nothing was measured."""
    arguments = {} if method in ON_A_CPU else HEADS.get(method, {})
    arguments = {**arguments, **further.pop("method_args", {})}
    if method == "MaximumLikelihood":
        further = {**PLANE, **further}
    return default(seen, method=method, method_args=arguments, **further)[0]
