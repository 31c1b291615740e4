"""Two processes are one: values, gradients and state against one process with the whole batch.

CHECKS is the table: a name and a function of `Part`, which says what share of the global batch
this process holds. The same function runs in both of two gloo processes and, with the whole batch,
here; what it returns says how the three should agree. All in float64, so that nothing hides
behind rounding. The two processes are started once, for all checks: they run this very file.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erg import catalog, distributed, energy, inference, shaping
from erg.encoders import build_encoder
from erg.method import Method
from erg.parts.norm import BatchNorm, across_processes
from erg.schedule import Constant
from erg.views.masks import draw_mask, random_tiles
from erg.views.types import How, View, Views

WORLD = 2


@dataclass(frozen=True)
class Part:
    """A process's share of the global batch.

    Args:
        rank: number of the process.
        world: number of processes; 1 for the process that holds everything.
    """

    rank: int
    world: int

    def of(self, batch: Tensor) -> Tensor:
        """Rows rank, rank + world, ... of the global batch, as a leaf with a gradient."""
        return batch[self.rank :: self.world].clone().requires_grad_()


@dataclass
class Outcome:
    """What a check found.

    Args:
        same: equal on every process, and to what one process finds.
        rows: of this process's rows; interleaved they are what one process finds.
        mean: averaged over processes, as data-parallel training does with gradients, it is what
            one process finds.
    """

    same: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)

    def flat(self, check: str) -> dict[str, Tensor]:
        return {
            f"{check}|{kind}|{name}": tensor.detach().contiguous().clone()
            for kind in ("same", "rows", "mean")
            for name, tensor in getattr(self, kind).items()
        }


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def backward(part: Part, total: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients of this process's rows, divided as the mean over processes divides them."""
    total.backward()
    return [x.grad / part.world for x in inputs if x.grad is not None]


def of_gather(part: Part, n: int) -> Outcome:
    x = part.of(drawn(n, 3))
    everything = distributed.gather(x)
    # Weights that differ from row to row: a gradient handed to the wrong rows shows.
    total = (everything.pow(3) * torch.arange(3.0 * n).reshape(n, 3)).sum() + everything.logsumexp(
        dim=(0, 1)
    )
    (gradient,) = backward(part, total, x)
    return Outcome(same={"values": everything, "total": total}, rows={"gradient": gradient})


def of_gathered_images(part: Part) -> Outcome:
    return Outcome(same={"values": distributed.gather(part.of(drawn(5, 3, 2, 2)))})


def of_sum(part: Part, n: int) -> Outcome:
    x = part.of(drawn(n, 3))
    whole = distributed.sum(x.exp().sum(dim=0))
    total = (whole.square() * torch.tensor([1.0, 2.0, 3.0])).sum()
    (gradient,) = backward(part, total, x)
    return Outcome(same={"values": whole, "total": total}, rows={"gradient": gradient})


def of_mean(part: Part, n: int) -> Outcome:
    x = part.of(drawn(n, 3))
    mean, scalar = distributed.mean(x.exp()), distributed.mean(x.square().sum(1))
    total = mean.square().sum() + scalar.sin()
    (gradient,) = backward(part, total, x)
    return Outcome(
        same={"values": mean, "scalar": scalar, "total": total}, rows={"gradient": gradient}
    )


def of_facts(part: Part) -> Outcome:
    held = part.of(drawn(7, 1)).shape[0]
    return Outcome(
        same={
            "counted": torch.tensor(sum(distributed.counts(held))),
            "agreed": torch.tensor(distributed.agree(distributed.rank() == part.world - 1)),
            "not agreed": torch.tensor(distributed.agree(False)),
            "as told": torch.tensor(
                (distributed.rank(), distributed.world()) == (part.rank, part.world)
            ),
        },
    )


def of_batch_norm(part: Part, *shape: int, momentum: float | None = 0.1, **how: bool) -> Outcome:
    """Ours in two processes against torch's own in one: twice in training, then in evaluation."""
    torchs = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    kind: Any = torchs if part.world == 1 else BatchNorm
    norm = kind(shape[1], momentum=momentum, **how).double()
    if norm.affine:
        norm.weight.data.copy_(drawn(shape[1], seed=1))
        norm.bias.data.copy_(drawn(shape[1], seed=2))
    outcome, x = Outcome(), torch.empty(0)
    for step in range(2):
        x = part.of(3 * drawn(*shape, seed=10 + step) + 5)
        y = norm(x)
        share = drawn(*shape, seed=20)[part.rank :: part.world] * (y.sin() + y)
        (gradient,) = backward(part, distributed.mean(share.flatten(1).sum(1)), x)
        outcome.rows |= {f"output {step}": y, f"gradient {step}": gradient}
    outcome.mean = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    outcome.same = dict(norm.named_buffers())
    if norm.track_running_stats:  # without averages evaluation looks at its own rows alone
        outcome.rows["in evaluation"] = norm.eval()(x)
    return outcome


def of_replaced_norms(part: Part) -> Outcome:
    """What `across_processes` puts into a network of torch's layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    net = net.append(nn.Flatten()).append(nn.BatchNorm1d(2 * 4 * 4)).double()
    if part.world > 1:
        net = across_processes(net)
    x = part.of(drawn(7, 3, 8, 8))
    y = net(x)
    (gradient,) = backward(part, distributed.mean(y.pow(3).sum(1)), x)
    return Outcome(
        same=dict(net.named_buffers()),
        rows={"output": y, "gradient": gradient},
        mean={name: p.grad for name, p in net.named_parameters() if p.grad is not None},
    )


def of_sinkhorn(part: Part, n: int, eps: float) -> Outcome:
    scores = energy.normalise(drawn(n, 4)) @ energy.normalise(drawn(5, 4, seed=1)).T
    # One process holds the largest score of all: the others must subtract it too.
    scores[0, 2] = 1.5
    return Outcome(rows={"codes": inference.sinkhorn(part.of(scores), eps)})


def of_shaping(part: Part, n: int) -> Outcome:
    x, y = part.of(drawn(n, 4)), part.of(drawn(n, 4, seed=1))
    everyone = distributed.gather(x), distributed.gather(y)
    parts = {
        "alignment": shaping.alignment(*everyone, 0.2),
        "repulsion": shaping.repulsion(*everyone, 0.2),
        "cross": shaping.cross_repulsion(*everyone, 0.3),
        "variance": shaping.variance(everyone[0]),
        "covariance": shaping.covariance(everyone[1]),
        "uniformity": shaping.uniformity(everyone[0]),
    }
    of_x, of_y = backward(part, torch.stack(list(parts.values())).sum(), x, y)
    return Outcome(same=parts, rows={"gradient of x": of_x, "gradient of y": of_y})


@dataclass(frozen=True)
class Whole:
    """A method with all it needs, trained for two steps: on a batch of 8 and on one of 7, which two
    processes cannot share evenly.

    Args:
        name: of the method in the catalogue.
        arguments: of the method.
        encoder: name and arguments of its encoder.
        size: side of the images [pixels].
    """

    name: str
    arguments: dict[str, Any]
    encoder: tuple[str, dict[str, Any]] = ("conv", {"width": 8, "stages": 2})
    size: int = 16

    def build(self) -> Method:
        torch.manual_seed(0)
        encoder = build_encoder(self.encoder[0], self.size, **self.encoder[1])
        return catalog.find(self.name)(encoder, **self.arguments).double()

    def views(self, method: Method, step: int, n: int = 8) -> Views:
        """Views of the sizes, masks and turns of the method's plan, of random pixels."""
        plan, index = method.plan(), np.arange(n, dtype=np.int64)

        def view(number: int) -> View:
            how = [*plan.main, *plan.local][number]
            side = how.pixels(self.size)
            cut = how.tiles and random_tiles(how.tiles, side, 0, step, index, number)
            height, width = (len(cut.order[0]) * cut.tile, cut.tile) if cut else (side, side)
            mask = how.mask and draw_mask(how.mask, 0, step, step, index, number)
            turns = torch.arange(n) % 4 if how.turns is None else torch.full((n,), how.turns)
            made = How(
                box=torch.zeros(n, 4), flip=torch.zeros(n).bool(),
                turns=turns, source=torch.zeros(n, 2).long(),
                order=torch.from_numpy(cut.order) if cut else None,
            )  # fmt: skip
            data = drawn(n, 3, height, width, seed=97 * step + number)
            if plan.kind == "tokens":
                data = (10 * drawn(n, side, seed=97 * step + number)).long() % 16
            return View(data, made=made, mask=mask)

        made = [view(i) for i in range(len(plan.main) + len(plan.local))]
        return Views(
            main=tuple(made[: len(plan.main)]), local=tuple(made[len(plan.main) :]),
            index=torch.from_numpy(index), step=step, pairing=plan.pairs,
        )  # fmt: skip

    def __call__(self, part: Part) -> Outcome:
        method, outcome = self.build(), Outcome()
        mine = slice(part.rank, None, part.world)
        trained = [p for p in method.parameters() if p.requires_grad]
        method.after_epoch(drawn(20, method.encoder.dim, seed=5))
        for step, progress in enumerate((0.0, 0.5)):
            views = self.views(method, step, 8 - step).take(mine)
            total = method.train().loss(views, progress).total
            outcome.same[f"total {step}"] = total
            if total.requires_grad:
                total.backward()
            for parameter in method.frozen(progress):
                parameter.grad = None
            for parameter in trained:
                if parameter.grad is None:
                    continue
                if part.world > 1:  # as data-parallel training does
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= part.world
                parameter.data -= 0.1 * parameter.grad
            method.after_step(progress)
            if step == 0:
                method.zero_grad(set_to_none=True)
        method.after_epoch(drawn(20, method.encoder.dim, seed=6))  # memories hold something now
        outcome.same |= dict(method.state_dict())
        outcome.same |= {
            f"gradient of {name}": p.grad
            for name, p in method.named_parameters()
            if p.grad is not None
        }
        if not method.batch_coupled:
            with torch.no_grad():
                views = self.views(method.eval(), 7).take(mine)
                energies = [method.energy(x, y) for x, y in views.pairs()]
            outcome.rows = {f"energy {i}": e for i, e in enumerate(energies)}
        return outcome


VIT = ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2})
SMALL = (VIT[0], {**VIT[1], "patch_size": 4, "dynamic_img_size": True})
METHODS = [
    Whole("SimCLR", {"dim": 8}),
    Whole("SimCLR", {"dim": 8, "depth": 3, "memory": 12, "momentum": Constant(0.5)}),
    Whole("VICReg", {"hidden": 12, "dim": 8}),
    Whole("BYOL", {"hidden": 12, "dim": 8, "momentum": Constant(0.5)}),
    Whole("SwAV", {"hidden": 12, "dim": 8, "prototypes": 6, "queue": 6, "queue_from": 0.2,
                   "small_crops": 2}),
    Whole("BarlowTwins", {"hidden": 12, "dim": 8}),
    Whole("SimSiam", {"dim": 8}),
    Whole("MoCo", {"queue": 12, "dim": 8, "groups": 2, "momentum": Constant(0.5)}),
    Whole("DINO", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2, "freeze": 0.2,
                   "momentum": Constant(0.5)}),
    Whole("MoCoV3", {"hidden": 12, "dim": 8, "momentum": Constant(0.5)}),
    Whole("MoCoV3", {"hidden": 12, "dim": 8, "momentum": Constant(0.5)},
          encoder=(VIT[0], {**VIT[1], "mlp_batch_norm": True})),
    Whole("NNCLR", {"queue": 12, "hidden": 12, "dim": 8, "predictor": 12}),
    Whole("DCL", {"dim": 8, "sigma": 0.5}),
    Whole("RELIC", {"hidden": 12, "dim": 8, "momentum": Constant(0.5)}),
    Whole("RELIC", {"hidden": 12, "dim": 8, "teacher": False}),
    Whole("RELICv2", {"hidden": 12, "dim": 8, "negatives": 3, "large_crops": 3, "small_crops": 2,
                      "momentum": Constant(0.5)}),
    Whole("CBYOL", {"hidden": 12, "dim": 8, "concentration": 50.0, "momentum": Constant(0.5)}),
    Whole("CSimCLR", {"hidden": 12, "dim": 8, "concentration": 50.0}),
    Whole("DeepCluster", {"size": 20, "clusters": 4, "hidden": 12, "dim": 8, "small_crops": 2}),
    Whole("SeLa", {"size": 20, "prototypes": 4, "heads": 2, "hidden": 12, "dim": 8,
                   "small_crops": 2}),
    Whole("VICRegL", {"hidden": 12, "dim": 8, "local": 6, "matches": 5}),
    Whole("ClusterFit", {"clusters": 4}),
    Whole("Distillation", {"temperature": 2.0}),
    Whole("InstanceDiscrimination", {"size": 20, "dim": 8}),
    Whole("InstanceDiscrimination", {"size": 20, "dim": 8, "negatives": 5, "temperature": 0.5}),
    Whole("TiCo", {"hidden": 12, "dim": 8, "momentum": Constant(0.5)}),
    Whole("WMSE", {"hidden": 12, "dim": 2, "group": 4, "repeats": 2}),
    Whole("LeJEPA", {"hidden": 12, "dim": 4, "directions": 8, "views": 3}),
    Whole("Rotation", {}),
    Whole("RelativePosition", {"hidden": 12}),
    Whole("Jigsaw", {"width": 4}),
    Whole("MultiTask", {"jigsaw": 0.5, "hidden": 12, "width": 4, "channels": 8, "step": 40.0}),
    Whole("PIRL", {"size": 20, "dim": 4}),
    Whole("PIRL", {"size": 20, "dim": 4, "by": "both", "negatives": 7}),
    Whole("DenoisingAutoencoder", {"width": 8}),
    Whole("DenoisingAutoencoder", {"width": 8, "extreme": 0.4}),
    Whole("KMeans", {"k": 4}, encoder=("pixels", {"side": 4})),
    Whole("KMeans", {"k": 4, "by": "sgd", "beta": 0.1}, encoder=("pixels", {"side": 4})),
    Whole("KMeans", {"k": 4, "by": "winner"}, encoder=("pixels", {"side": 4})),
    Whole("KMeans", {"k": 4, "beta": 0.1, "warm": 0.01}, encoder=("pixels", {"side": 4})),
    Whole("PCA", {"k": 4}, encoder=("pixels", {"side": 4})),
    Whole("PCA", {"k": 4, "by": "sgd"}, encoder=("pixels", {"side": 4})),
    Whole("GaussianMixture", {"k": 3}, encoder=("pixels", {"side": 4})),
    Whole("SparseCoding", {"k": 6, "iterations": 10}, encoder=("pixels", {"side": 4})),
    Whole("SparseCoding", {"k": 6, "learned": "lista"}, encoder=("pixels", {"side": 4})),
    Whole("ConvolutionalSparseCoding", {"k": 3, "side": 3, "iterations": 10},
          encoder=("pixels", {"side": 6})),
    Whole("Autoencoder", {"dim": 6, "sparse": "kl", "width": 8}),
    Whole("VariationalAutoencoder", {"dim": 6, "width": 8, "deviation": 20.0}),
    Whole("ContractiveAutoencoder", {"dim": 6, "width": 8, "contraction": 1.0}),
    Whole("BinaryAutoencoder", {"bits": 6, "width": 8}),
    Whole("SimMIM", {"ratio": 0.5}, encoder=VIT),
    Whole("BERT", {"ratio": 0.4, "blank": 0.5, "random": 0.3},
          encoder=("sequence", {"vocabulary": 16, "width": 8, "depth": 2, "heads": 2})),
    Whole("DelayedTransformer", {"depth": 1, "heads": 2},
          encoder=("sequence", {"vocabulary": 16, "width": 8, "depth": 1, "heads": 2})),
    Whole("ContextEncoder", {"width": 8}),
    Whole("Colourisation", {"width": 8, "step": 40.0}),
    Whole("MAE", {"depth": 1, "width": 8, "heads": 2, "ratio": 0.5}, encoder=VIT),
    Whole("IJEPA", {"depth": 1, "heads": 2, "width": 8, "momentum": Constant(0.5)}, encoder=SMALL),
    Whole("Data2Vec", {"top": 1, "momentum": Constant(0.5)}, encoder=SMALL),
    Whole("IBOT", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2, "freeze": 0.2,
                   "shared": False, "momentum": Constant(0.5)}, encoder=SMALL),
    Whole("IBOT", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2, "stride": 4,
                   "momentum": Constant(0.5)}),
    Whole("DINOv2", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2,
                     "momentum": Constant(0.5)}, encoder=SMALL),
    Whole("DINOv2", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 0,
                     "centring": "mean", "gram": 1.0, "gram_from": 0.0,
                     "momentum": Constant(0.5)}, encoder=SMALL),
    # Without small crops, for whose sake timm resamples positions in float32.
    Whole("MSN", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 0,
                  "momentum": Constant(0.5)}, encoder=SMALL),
    Whole("MSN", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2, "ratio": 0.0,
                  "momentum": Constant(0.5)}),
    Whole("EsViT", {"prototypes": 6, "hidden": 12, "dim": 8, "small_crops": 2,
                    "momentum": Constant(0.5)}),
    Whole("RBM", {"hidden": 6, "k": 2}, encoder=("pixels", {"side": 4})),
    Whole("RBM", {"hidden": 6, "particles": 5}, encoder=("pixels", {"side": 4})),
    Whole("MaximumLikelihood", {"points": 8, "width": 8},
          encoder=("conv", {"width": 1, "stages": 2})),
    Whole("ContrastiveDivergence", {"steps": 2, "width": 8, "by": "hinge"}),
    Whole("ContrastiveDivergence", {"steps": 2, "width": 8, "particles": 12, "restart": 0.4}),
    Whole("ScoreMatching", {"width": 8}),
    Whole("NoiseContrastiveEstimation", {"width": 8, "ratio": 2}),
    Whole("UNetAutoencoder", {"skips": True}),
    Whole("UNetAutoencoder", {"transposed": True}),
]  # fmt: skip
CHECKS: dict[str, Callable[[Part], Outcome]] = {
    **{f"gather {n}": partial(of_gather, n=n) for n in (8, 7, 1)},
    "gather images": of_gathered_images,
    **{f"sum {n}": partial(of_sum, n=n) for n in (8, 7, 1)},
    **{f"mean {n}": partial(of_mean, n=n) for n in (8, 7, 1)},
    "facts": of_facts,
    "of first": lambda part: Outcome(
        same={"held": distributed.of_first(drawn(4, 3, seed=part.rank))}
    ),
    "batch norm 2-D": lambda part: of_batch_norm(part, 8, 3),
    "batch norm 2-D, uneven": lambda part: of_batch_norm(part, 7, 3),
    "batch norm 2-D, three rows": lambda part: of_batch_norm(part, 3, 3),
    "batch norm 4-D": lambda part: of_batch_norm(part, 6, 3, 4, 5),
    "batch norm 4-D, uneven": lambda part: of_batch_norm(part, 5, 3, 4, 5),
    "batch norm 4-D, one rank empty": lambda part: of_batch_norm(part, 1, 3, 4, 5),
    "batch norm, true averages": lambda part: of_batch_norm(part, 8, 3, momentum=None),
    "batch norm, plain": lambda part: of_batch_norm(part, 8, 3, affine=False),
    "batch norm, no memory": lambda part: of_batch_norm(part, 8, 3, track_running_stats=False),
    "replaced norms": of_replaced_norms,
    **{f"sinkhorn {n}": partial(of_sinkhorn, n=n, eps=0.05) for n in (8, 7, 1)},
    "sinkhorn, soft": partial(of_sinkhorn, n=8, eps=0.5),
    **{f"shaping {n}": partial(of_shaping, n=n) for n in (8, 7)},
    **{f"{i} {whole.name}": whole for i, whole in enumerate(METHODS)},
}


def work(rank: int, meeting: str, found: str) -> None:
    """One of the two processes: every check, its outcome into a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    outcomes: dict[str, Tensor] = {}
    for name, check in CHECKS.items():
        outcomes |= check(Part(rank, WORLD)).flat(name)
    save_file(outcomes, found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What both processes found, for all checks."""
    folder = tmp_path_factory.mktemp("two")
    files = [folder / f"{rank}.safetensors" for rank in range(WORLD)]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder / "meeting"), str(file)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank, file in enumerate(files)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return [load_file(file) for file in files]


def test_the_table_has_every_method() -> None:
    assert {whole.name for whole in METHODS} == set(catalog.names())


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes_are_one(name: str, found: list[dict[str, Tensor]]) -> None:
    tolerance = 1e-8 if isinstance(CHECKS[name], Whole) else 1e-10
    alone = CHECKS[name](Part(0, 1)).flat(name)
    ours = [{k: t for k, t in each.items() if k.startswith(f"{name}|")} for each in found]
    assert alone
    for each in ours:
        assert each.keys() == alone.keys()
    for key, wanted in alone.items():
        parts = [each[key] for each in ours]
        kind = key.split("|")[1]
        if kind == "rows":
            together = wanted.new_full(wanted.shape, float("nan"))
            for rank, rows in enumerate(parts):
                together[rank::WORLD] = rows
            parts = [together]
        elif kind == "mean":
            parts = [torch.stack(parts).mean(dim=0)]
        for each in parts:
            assert each.shape == wanted.shape, key
            off = (each.double() - wanted.double()).abs() / wanted.double().abs().clamp_min(1)
            worst = float(off.nan_to_num(nan=float("inf")).max())
            assert worst <= tolerance, f"{key} differs by {worst:.3g}"


def test_both_processes_hold_the_same_bits_of_state(found: list[dict[str, Tensor]]) -> None:
    """Buffers and averaged parameters are equal by construction, not merely close."""
    state = [key for key in found[0] if key.split("|")[1] == "same"]
    assert len(state) > 100
    for key in state:
        assert torch.equal(found[0][key], found[1][key]), key


if __name__ == "__main__":
    work(int(sys.argv[1]), *map(str, map(Path, sys.argv[2:])))
