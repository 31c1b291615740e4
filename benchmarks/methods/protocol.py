"""The protocol of the learning table: which methods, on which encoder, for how long and in which
order."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import erg
from erg import catalog
from erg.recipes.cifar import small
from erg.recipes.default import (
    OF_MANY_PATCHES,
    OF_PATCHES,
    OF_TOKENS,
    WITHOUT_A_CLASS,
    Seen,
)

IMAGES, TESTED = 20_000, 10_000
GAIN = 3.0
"""Points of 20-NN that a method should gain over its encoder before training."""


@dataclass(frozen=True)
class Family:
    """Methods that share an encoder.

    Args:
        title: of their table.
        minutes: of training, without small crops.
        choices: fields of the run, over those of `recipes.cifar`.
    """

    title: str
    minutes: float
    choices: dict[str, Any] = field(default_factory=dict)


CONVNET, PIXELS, VIT, SWIN = "convnet", "pixels", "ViT", "Swin"
FAMILIES = {
    CONVNET: Family("Convolutional network of 4 stages, the default for small images", 3),
    PIXELS: Family("No network: pixels, contrast taken out", 3),
    VIT: Family(
        "ViT of width 128, patches of 4 pixels, 6 blocks", 10,
        {
            "encoder": "vit_tiny_patch16_224",
            "encoder_args": {
                "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4,
                "dynamic_img_size": True,
            },
            "batch": 128,
        },
    ),
    SWIN: Family(
        "Swin of widths 64 and 128, patches of 4 pixels, 6 blocks", 10,
        {
            "encoder": "swin_tiny_patch4_window7_224",
            "encoder_args": {
                "embed_dim": 64, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4,
                "strict_img_size": False,
            },
            "batch": 128,
        },
    ),
}  # fmt: skip
CROPPED_MINUTES = 10

OF_VIT = (*OF_PATCHES, *OF_MANY_PATCHES, "DINO", "LeJEPA", "MoCoV3")
"""Which need patches, or whose papers rest on ViTs (recipes/leaderboard.py)."""
OF_SWIN = ("EsViT",)
LEFT_OUT = {
    **dict.fromkeys(OF_TOKENS, "takes sequences of tokens"),
    "Distillation": "needs a classifier that has seen labels",
    "MaximumLikelihood": "adds up over a plane: its encoder has two features",
}
TWICE = ("SimCLR", "BYOL", "VICReg", "SwAV", "DINO", "MAE")
"""Which are measured with two seeds, the others with one."""
CODES = ("Autoencoder", "BinaryAutoencoder", "ContractiveAutoencoder", "VariationalAutoencoder")
"""Whose `encode` is a code that they make of their encoder's features. What stands beside the
encoder before training is the encoder after it; the code has a column of its own."""


def family_of(method: str) -> str:
    """By the published form: the networks of the paper, and none where none is trained."""
    if not catalog.find(method).trains_encoder:
        return PIXELS
    return VIT if method in OF_VIT else SWIN if method in OF_SWIN else CONVNET


def chosen(method: str, seed: int) -> erg.Run:
    """The run of a row; its steps are measured to fit."""
    run = small(Seen(IMAGES, 32, False), method, seed=seed, **FAMILIES[family_of(method)].choices)
    form = WITHOUT_A_CLASS.get(method, {}) if family_of(method) == VIT else {}
    return replace(run, encoder_args={**run.encoder_args, **form})


@cache
def minutes_of(method: str) -> float:
    """How long a method trains [minutes]."""
    usual = FAMILIES[family_of(method)].minutes
    return max(usual, CROPPED_MINUTES) if chosen(method, 0).build().plan().local else usual


def known() -> list[str]:
    """The methods of the table."""
    return [name for name in catalog.names() if name not in LEFT_OUT]


def of_family(family: str) -> list[str]:
    """The methods of the table that share an encoder."""
    return [name for name in known() if family_of(name) == family]


def in_order(methods: list[str], seeds: list[int] | None) -> Iterator[tuple[str, int]]:
    """Those of two seeds first, with both, then the others; the convolutional network before the
    other encoders.

    Args:
        methods: by name.
        seeds: of all of them, instead of one or two.
    """
    order = sorted(methods, key=lambda name: list(FAMILIES).index(family_of(name)))
    twice = [name for name in order if name in TWICE]
    once = [name for name in order if name not in TWICE]
    for names, usual in ((twice, [0, 1]), (once, [0])):
        yield from ((name, seed) for seed in seeds or usual for name in names)
