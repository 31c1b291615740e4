"""What both sides are given: numbers, read by ours.py and peer.py."""

from pathlib import Path

METHODS = ("SimCLR", "BYOL", "VICReg", "DINO")
TRAIN, TEST = "cifar10_train.parquet", "cifar10_test.parquet"

BATCH = 128
RATE, WARMUP = 1e-3, 0.05
"""AdamW without weight decay: up in a straight line for a share of the steps, then half a cosine
down to 0."""

CROP, FLIP = (0.2, 1.0), 0.5
JITTER, COLOURS, HUE, GREY = 0.8, 0.4, 0.1, 0.2
"""Probability of the jitter; changes of brightness, contrast and saturation; of hue; of grey."""
LARGE, SMALL, SMALL_CROPS, SMALL_SIDE = (0.4, 1.0), (0.1, 0.4), 2, 16
"""DINO's crops: areas of the two large and of the small ones, number and side of these [pixels]."""

SIMCLR = {"temperature": 0.5, "hidden": 512, "dim": 128}
BYOL = {"hidden": 1024, "dim": 256}
VICREG = {"hidden": 1024, "dim": 1024}
DINO = {"hidden": 512, "dim": 256, "prototypes": 1024}
TEACHER = 0.04
"""DINO's temperature of the teacher, from start to end; the student's is 0.1."""
MOMENTUM = 0.99
"""Of teachers at the start, by half a cosine to 1 at the end."""


def steps_of(images: int, epochs: int) -> int:
    """Whole batches only."""
    return epochs * (images // BATCH)


def check(data: Path) -> None:
    """Refuse a folder without the images, in words."""
    for name in (TRAIN, TEST):
        if not (data / name).exists():
            raise SystemExit(f"{data} has no {name}. Give the folder with the parquet files.")
