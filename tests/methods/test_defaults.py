"""Defaults of methods with a teacher, and of SwAV, beside those of their authors.

The table is the reference's, section by section. What the authors give in epochs is here a share of
the run that the same section names. Sizes made for 1.3 million images (numbers of prototypes and
negatives), which the methods say they depart from, are not in it.
"""

from typing import Any

import pytest

from erg import catalog
from erg.schedule import Constant, Cosine, Linear, Schedule

CODES = {
    "temperature": 0.1, "teacher_start": 0.04, "teacher_end": 0.07, "warmup": 30 / 300,
    "centre": 0.9, "momentum": Cosine(0.996, 1.0), "freeze": 1 / 100, "hidden": 2048, "dim": 256,
}  # fmt: skip
"""DINO's, section 16: T' rises over 30 epochs (of 300, section 17) and the directions wait for the
first of 100."""

BLOCKS = {"ratio": 0.3, "spread": 0.2, "masked": 0.5}
"""Half of the large crops hide a share of 0.1 to 0.5, section 18."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "SimCLR": {"momentum": Constant(0.999), "memory": 0, "depth": 2, "dim": 128},  # 3 and, m, 4
    "MoCo": {"momentum": Constant(0.999), "temperature": 0.2, "dim": 128},  # 5: v2
    "MoCoV3": {  # 6: of ViTs
        "momentum": Cosine(0.99, 1.0), "temperature": 0.2, "hidden": 4096, "dim": 256,
        "freeze_patches": True,
    },
    "SwAV": {  # 7: the queue waits for epoch 15 and the prototypes for the first, of 100
        "temperature": 0.1, "eps": 0.05, "iterations": 3, "hidden": 2048, "dim": 128,
        "queue": 3840, "queue_from": 15 / 100, "freeze": 1 / 100, "small_crops": 6,
    },
    "BYOL": {"momentum": Cosine(0.996, 1.0), "hidden": 4096, "dim": 256},  # 10: 1000 epochs
    "CBYOL": {  # 11: 1000 epochs
        "momentum": Cosine(0.996, 1.0), "concentration": 16_384, "backward": 10, "weight": 2.0,
        "compression": 1.0, "hidden": 4096, "dim": 256,
    },
    "DINO": {**CODES, "small_crops": 8},  # 16
    "IBOT": {**CODES, **BLOCKS, "shared": True, "blocks": True, "small_crops": 10},  # 18
    "EsViT": {**CODES, "regions": 0.5, "small_crops": 8},  # 19
    "RELIC": {"momentum": Cosine(0.996, 1.0), "teacher": True},  # 20: RELICv2's; others not known
    "RELICv2": {  # 20
        "momentum": Cosine(0.996, 1.0), "temperature": 0.2, "contrast": 0.3, "invariance": 5.0,
        "negatives": 10, "background": 0.1, "large_crops": 4, "small_crops": 2,
    },
    "MSN": {  # 22: ViT-S
        "momentum": Linear(0.996, 1.0), "temperature": 0.1, "sharpen": 0.25, "sinkhorn": 3,
        "weight": 1.0, "ratio": 0.15, "prototypes": 1024, "hidden": 2048, "dim": 256,
        "small_crops": 10,
    },
    "DINOv2": {  # 23: on ImageNet-1k, 30 and 1 of 100 epochs; heads and targets of the larger runs
        **CODES, **BLOCKS, "momentum": Cosine(0.992, 1.0), "warmup": 30 / 100, "koleo": 0.1,
        "centring": "sinkhorn", "untied": True, "small_crops": 8,
    },
    "IJEPA": {  # 26
        "momentum": Linear(0.996, 1.0), "targets": 4, "area": (0.15, 0.2), "aspect": (0.75, 1.5),
        "context": (0.85, 1.0), "crop": 0.3,
    },
    "Data2Vec": {  # 27: the momentum is fairseq's, the mask that of the authors' own code
        "momentum": Linear(0.999, 0.9998), "ratio": 120 / 196, "top": 6, "beta": 2.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_are_those_of_the_authors(method: str) -> None:
    known = catalog.arguments(catalog.find(method))
    found = {name: known[name].default for name in DEFAULTS[method]}
    for name, wanted in DEFAULTS[method].items():
        if isinstance(wanted, float):  # epochs over epochs
            wanted = pytest.approx(wanted)
        assert found[name] == wanted, name


def test_no_momentum_is_left_out() -> None:
    """TiCo's is in its own tests, since the reference has no section on it."""
    scheduled = {
        method
        for method in catalog.names()
        for parameter in catalog.arguments(catalog.find(method)).values()
        if parameter.name == "momentum" and isinstance(parameter.default, Schedule)
    }
    assert scheduled == {name for name in DEFAULTS if "momentum" in DEFAULTS[name]} | {"TiCo"}
