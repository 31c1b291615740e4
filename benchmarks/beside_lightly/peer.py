"""One method as lightly documents it, given what same.py says: seconds, and vectors of both sets.

    python benchmarks/beside_lightly/peer.py DATA --method SimCLR --vectors FILE.npz

Needs lightly, pyarrow and what lightly brings. Transforms, heads, losses and the order of a step
are those of the examples in its documentation. What same.py sets instead of their numbers is said
there; bf16 autocast is added, and the network is torchvision's ResNet with one block in each stage
and a 3 x 3 stem. Images are decoded beforehand, as torchvision's CIFAR10 keeps them, and there are
two workers. One line of JSON is printed.
"""

# pyright: reportMissingImports=false
import argparse
import copy
import io
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import same
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from lightly.transforms.simclr_transform import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock, ResNet

WIDTH = 512
COLOURS: dict[str, Any] = {
    "cj_prob": same.JITTER, "cj_strength": 1.0, "cj_bright": same.COLOURS,
    "cj_contrast": same.COLOURS, "cj_sat": same.COLOURS, "cj_hue": same.HUE,
    "random_gray_scale": same.GREY, "hf_prob": same.FLIP,
}  # fmt: skip
DOUBLED = {name: 2 * COLOURS[name] for name in ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")}
DINO_COLOURS = COLOURS | DOUBLED | {"cj_strength": 0.5}
"""The same changes. DINOTransform does not hand its strength on to the second large crop, which
takes half of what it is given, so all crops take half of the double."""


class Cifar(Dataset[Any]):
    """The first images of a file, decoded, and made into views when asked for.

    Args:
        file: parquet with `image`.
        count: number of images.
        transform: of a PIL image.
    """

    def __init__(self, file: Path, count: int, transform: Any = None) -> None:
        cells = pq.read_table(file, columns=["image"])["image"].slice(0, count)
        files = (io.BytesIO(cell.as_py()) for cell in cells)
        self.images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[i])), 0


def backbone() -> nn.Module:
    """ResNet-10 with a 3 x 3 stem and without pooling, one vector per image."""
    network: Any = ResNet(BasicBlock, [1, 1, 1, 1])
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return network


class SimCLR(nn.Module):
    """Softmax over the other views of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.head = SimCLRProjectionHead(WIDTH, same.SIMCLR["hidden"], same.SIMCLR["dim"])
        self.criterion = NTXentLoss(temperature=same.SIMCLR["temperature"])

    def loss(self, views: list[Tensor], momentum: float) -> Tensor:
        x0, x1 = views
        return self.criterion(self.head(self.backbone(x0)), self.head(self.backbone(x1)))


class VICReg(nn.Module):
    """Variance and covariance of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        hidden, dim = same.VICREG["hidden"], same.VICREG["dim"]
        self.head = VICRegProjectionHead(WIDTH, hidden_dim=hidden, output_dim=dim, num_layers=3)
        self.criterion = VICRegLoss()

    def loss(self, views: list[Tensor], momentum: float) -> Tensor:
        x0, x1 = views
        return self.criterion(self.head(self.backbone(x0)), self.head(self.backbone(x1)))


class BYOL(nn.Module):
    """A predictor and a slow teacher."""

    def __init__(self) -> None:
        super().__init__()
        hidden, dim = same.BYOL["hidden"], same.BYOL["dim"]
        self.backbone = backbone()
        self.head = BYOLProjectionHead(WIDTH, hidden, dim)
        self.predictor = BYOLPredictionHead(dim, hidden, dim)
        self.teacher, self.teacher_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, views: list[Tensor], momentum: float) -> Tensor:
        update_momentum(self.backbone, self.teacher, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)
        p0, p1 = (self.predictor(self.head(self.backbone(x))) for x in views)
        with torch.no_grad():
            z0, z1 = (self.teacher_head(self.teacher(x)) for x in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class DINO(nn.Module):
    """A slow teacher's centred and sharpened codes."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (WIDTH, same.DINO["hidden"], same.DINO["dim"], same.DINO["prototypes"])
        self.backbone, self.head = backbone(), DINOProjectionHead(*sizes)
        self.teacher, self.teacher_head = copy.deepcopy(self.backbone), DINOProjectionHead(*sizes)
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(
            output_dim=same.DINO["prototypes"], warmup_teacher_temp=same.TEACHER,
            teacher_temp=same.TEACHER, warmup_teacher_temp_epochs=0,
        )  # fmt: skip

    def loss(self, views: list[Tensor], momentum: float) -> Tensor:
        update_momentum(self.backbone, self.teacher, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)
        with torch.no_grad():
            taught = [self.teacher_head(self.teacher(x)) for x in views[:2]]
        learned = [self.head(self.backbone(x)) for x in views]
        return self.criterion(taught, learned, teacher_temp=same.TEACHER)


METHODS: dict[str, type[nn.Module]] = {
    "SimCLR": SimCLR, "BYOL": BYOL, "VICReg": VICReg, "DINO": DINO,
}  # fmt: skip


def transform_of(method: str) -> Any:
    """From an image to its views, without blur and solarisation."""
    if method != "DINO":
        return SimCLRTransform(input_size=32, min_scale=same.CROP[0], gaussian_blur=0.0, **COLOURS)
    return DINOTransform(
        global_crop_size=32, global_crop_scale=same.LARGE, local_crop_size=same.SMALL_SIDE,
        local_crop_scale=same.SMALL, n_local_views=same.SMALL_CROPS, gaussian_blur=(0.0, 0.0, 0.0),
        solarization_prob=0.0, **DINO_COLOURS,
    )  # fmt: skip


def rate(progress: float) -> float:
    """Share of the peak learning rate at a fraction of training."""
    if progress < same.WARMUP:
        return progress / same.WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - same.WARMUP) / (1 - same.WARMUP)))


def train(model: Any, images: Cifar, method: str, epochs: int) -> tuple[float, int]:
    """Seconds from the first batch asked for to the last step done, and the number of steps."""
    dataset: Any = LightlyDataset.from_torch_dataset(images, transform=transform_of(method))
    loader = DataLoader(dataset, batch_size=same.BATCH, shuffle=True, drop_last=True, num_workers=2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=same.RATE, weight_decay=0.0)
    steps = same.steps_of(len(images), epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step / steps))
    done = 0
    start = time.perf_counter()
    for _ in range(epochs):
        for views, _, _ in loader:
            momentum = cosine_schedule(done, steps, same.MOMENTUM, 1.0)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(list(views), momentum)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            done += 1
    return time.perf_counter() - start, done


def vectors(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Of every image whole, [n 512]."""
    normalise = transforms.Normalize(IMAGENET_NORMALIZE["mean"], IMAGENET_NORMALIZE["std"])
    found = []
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(images), 256):
            part = torch.from_numpy(images[start : start + 256]).permute(0, 3, 1, 2)
            found.append(network(normalise(part / 255)).float())
    return torch.cat(found).numpy()


def run() -> None:
    """Train and embed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", choices=same.METHODS, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="file to write")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tested", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    same.check(options.data)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    images = Cifar(options.data / same.TRAIN, options.images)
    tested = Cifar(options.data / same.TEST, options.tested)
    model: Any = METHODS[options.method]()
    seconds, steps = train(model, images, options.method, options.epochs)
    found: dict[str, Any] = {
        "train_after": vectors(model.backbone, images.images),
        "test_after": vectors(model.backbone, tested.images),
    }
    np.savez(options.vectors, **found)
    packages = ("lightly", "torch", "torchvision", "numpy")
    print(json.dumps({
        "seconds": round(seconds, 2),
        "steps": steps,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "versions": {name: version(name) for name in packages},
    }))  # fmt: skip


if __name__ == "__main__":
    run()
