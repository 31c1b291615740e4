"""Embedding a folder of pictures as lightly documents it: images per second.

    python benchmarks/embedding/peer.py FOLDER [--precision bf16] [--image-size 128]

Needs lightly and what it brings. The recipe is that of lightly's tutorial 3: its dataset of a
folder, images resized and normalised, a loader, torchvision's ResNet-18 without classifier; as
many workers as there are cores here. One line of JSON is printed.
"""

# pyright: reportMissingImports=false
import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.models import resnet18


def embed(backbone: nn.Module, folder: Path, image_size: int, batch: int) -> Tensor:
    """Every picture of a folder as a vector [n 512]."""
    transform = transforms.Compose([
        transforms.Resize((image_size, image_size)),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"]),
    ])  # fmt: skip
    dataset: Any = LightlyDataset(input_dir=str(folder), transform=transform)
    loader = DataLoader(dataset, batch_size=batch, shuffle=False, drop_last=False, num_workers=2)
    with torch.no_grad():
        found = [backbone(images).flatten(start_dim=1) for images, _, _ in loader]
    return torch.cat(found)


def run() -> None:
    """Measure one repetition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    backbone = nn.Sequential(*list(resnet18().children())[:-1]).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
        with torch.no_grad():
            backbone(torch.zeros(options.batch, 3, options.image_size, options.image_size))
        start = time.perf_counter()
        vectors = embed(backbone, options.folder, options.image_size, options.batch)
        seconds = time.perf_counter() - start
    found = {
        "images": len(vectors),
        "seconds": round(seconds, 3),
        "versions": {name: version(name) for name in ("lightly", "torch", "torchvision")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    run()
