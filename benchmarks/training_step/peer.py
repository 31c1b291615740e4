"""SimCLR on CIFAR-10 as lightly documents it: seconds of a step, or accuracy after some images.

    python benchmarks/training_step/peer.py DATA [--precision bf16]
    python benchmarks/training_step/peer.py DATA --precision bf16 --points 50176 100352

Needs lightly, pyarrow and what lightly brings. The recipe is that of lightly's documentation
(examples, SimCLR, PyTorch): its transform without blur, projection head and loss, batches of 256,
SGD with learning rate 0.06. Two things are not: ResNet-18 has the stem of lightly's own CIFAR-10
benchmark (3 x 3, stride 1, no pooling), and there are as many workers as cores here. Images are
decoded beforehand, as torchvision's CIFAR10 keeps them. One line of JSON is printed.
"""

# pyright: reportMissingImports=false
import argparse
import io
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.benchmarking import knn_predict
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet18


class Cifar(Dataset[Any]):
    """Decoded images and their labels, made into views when asked for.

    Args:
        file: parquet with `image` and `label`.
        transform: of a PIL image.
    """

    def __init__(self, file: Path, transform: Any = None) -> None:
        table = pq.read_table(file, columns=["image", "label"])
        files = (io.BytesIO(cell.as_py()) for cell in table["image"])
        self.images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        self.labels = table["label"].to_pylist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class SimCLR(nn.Module):
    """ResNet-18 with a 3 x 3 stem, and the projection head of the paper."""

    def __init__(self) -> None:
        super().__init__()
        network: Any = resnet18()
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
        self.backbone = nn.Sequential(*list(network.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def training(model: SimCLR, images: Cifar, batch: int, precision: Any) -> Iterator[None]:
    """Trains for ever, giving way after every step."""
    transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
    dataset: Any = LightlyDataset.from_torch_dataset(images, transform=transform)
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=2)
    criterion = NTXentLoss()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.06)
    while True:
        for (x0, x1), _, _ in loader:
            with precision:
                loss = criterion(model(x0), model(x1))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            yield


def features(model: SimCLR, images: Cifar, precision: Any) -> Tensor:
    """Of every image whole, [n 512], scaled to length 1."""
    normalise = transforms.Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"])
    found = []
    model.eval()
    with torch.no_grad(), precision:
        for start in range(0, len(images), 256):
            part = torch.from_numpy(images.images[start : start + 256]).permute(0, 3, 1, 2)
            found.append(model.backbone(normalise(part / 255)).flatten(start_dim=1).float())
    model.train()
    return nn.functional.normalize(torch.cat(found), dim=1)


def accuracy(model: SimCLR, train: Cifar, test: Cifar, precision: Any) -> float:
    """Of 200 nearest neighbours at temperature 0.1, by lightly's own function."""
    bank, queries = (features(model, images, precision) for images in (train, test))
    labels, wanted = torch.tensor(train.labels), torch.tensor(test.labels)
    right = 0
    for start in range(0, len(queries), 500):
        part = queries[start : start + 500]
        guess = knn_predict(part, bank.T.contiguous(), labels, 10, knn_k=200, knn_t=0.1)[:, 0]
        right += int((guess == wanted[start : start + 500]).sum())
    return right / len(queries)


def run() -> None:
    """Train, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those")
    parser.add_argument("--points", type=int, nargs="+", help="images after which to look")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16")
    model, images = SimCLR(), Cifar(options.data / "cifar10_train.parquet")
    steps = training(model, images, options.batch, precision)
    found: dict[str, Any] = {
        "batch": options.batch,
        "seed": options.seed,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "versions": {name: version(name) for name in ("lightly", "torch", "torchvision", "numpy")},
    }
    if options.points:
        test, found["curve"], done = Cifar(options.data / "cifar10_test.parquet"), [], 0
        for point in sorted(options.points):
            while done < point:
                next(steps)
                done += options.batch
            found["curve"].append([done, accuracy(model, images, test, precision)])
    else:
        for _ in range(options.warm_up):
            next(steps)
        found["seconds"] = []
        for _ in range(options.steps):
            start = time.perf_counter()
            next(steps)
            found["seconds"].append(round(time.perf_counter() - start, 4))
    print(json.dumps(found))


if __name__ == "__main__":
    run()
