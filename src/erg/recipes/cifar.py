"""CIFAR-10 on a CPU, every method of the catalogue for images: 50,000 of 32 pixels.

The encoder and the rates are those of `recipes.default`, with what was measured there
(`ON_A_CPU`). What stands here beside them is chosen, not measured: heads of width 512 instead of
the papers' 2,048 and more, which would take longer than the encoder, few crops, small batches
where the loss allows them, questions that small images can answer, and teachers that start quick.
A teacher whose momentum rises from m to 1 forgets its start by exp(-steps (1 - m) / 2): at 0.996 it
hardly moves in some hundred steps. 0.99 is for convolutional networks, which take about 2,000 steps
in ten minutes, 0.97 for networks of patches, which take half as many or fewer.
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
    "ConvolutionalSparseCoding": {"iterations": 10},
    "DINO": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.97, 1.0)},
    "DINOv2": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.97, 1.0)},
    "Data2Vec": {"top": 3, "momentum": Linear(0.97, 0.999)},
    "DeepCluster": {"hidden": 512, "clusters": 100, "small_crops": 0},
    "EsViT": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.97, 1.0)},
    "IBOT": {"hidden": 512, "prototypes": 1024, "small_crops": 2, "momentum": Cosine(0.97, 1.0)},
    "IJEPA": {"depth": 2, "heads": 4, "momentum": Linear(0.97, 1.0)},
    "LeJEPA": {"hidden": 512, "views": 2},
    "MSN": {
        "hidden": 512, "prototypes": 256, "small_crops": 2, "momentum": Linear(0.97, 1.0),
    },
    "MoCo": {"groups": 4, "momentum": Cosine(0.99, 1.0)},
    "MoCoV3": {"hidden": 512, "momentum": Cosine(0.97, 1.0)},
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
"""Arguments of methods whose heads, crops, teachers and inner loops are meant for accelerators."""

TASKS: dict[str, dict[str, Any]] = {
    # The centre is where the object is, and the encoder would never see it.
    "ContextEncoder": {"region": "random"},
    # Descents that stay near the data: ends that are far away are told from it at once.
    "ContrastiveDivergence": {"clip": 0.1, "kick": 0.1},
    # Places of nine tiles of 7 pixels are hard to tell, the order of four of 14 less so.
    "MultiTask": {"position": 0.0, "jigsaw": 1.0},
    # Tiles of 8 pixels instead of 7, in colour: fringes of lenses are lost in images so small.
    "RelativePosition": {"drop": 0.0, "gap": 0.1},
    # Noise of 0.1 is seen in single pixels; of 1.0 shapes have to be known.
    "ScoreMatching": {"deviation": 1.0},
}
"""Arguments that make a question one for small images, of less than 64 pixels."""

BATCHES = {
    **dict.fromkeys(
        ("CBYOL", "Colourisation", "ConvolutionalSparseCoding", "Jigsaw", "MultiTask",
         "RelativePosition", "Rotation", "SimSiam"),
        64,
    ),
    **dict.fromkeys(
        ("CSimCLR", "ClusterFit", "DCL", "DeepCluster", "InstanceDiscrimination", "MoCo", "NNCLR",
         "PIRL", "RELIC", "RELICv2", "SeLa", "TiCo"),
        128,
    ),
}  # fmt: skip
"""Images per step where the loss needs few others, or a teacher many steps. Statistics over the
batch, as those of Barlow Twins, VICReg, VICRegL and W-MSE, keep the batch of `recipes.default`."""

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
    """A run on a CPU with the choices above, where nothing was measured."""
    arguments: dict[str, Any] = {}
    if method not in ON_A_CPU:
        arguments = {**HEADS.get(method, {}), **(TASKS.get(method, {}) if seen.side < 64 else {})}
    arguments |= further.pop("method_args", {})
    further = {"batch": BATCHES.get(method), **further}
    if method == "MaximumLikelihood":
        further = {**PLANE, **further}
    return default(seen, method=method, method_args=arguments, **further)[0]
