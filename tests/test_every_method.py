"""Every method found in the folder keeps the contract; and check_method notices what does not."""

import pytest
import torch
from torch import Tensor

from erg import catalog
from erg.method import Cell, Loss, Method
from erg.testing import check_method
from erg.views.plan import Plan, two_views, whole
from erg.views.types import View, Views

SMALL: dict[str, dict] = {
    "SimCLR": {},
    "VICReg": {"hidden": 32, "dim": 32},
    "BYOL": {"hidden": 32, "dim": 16},
    "SwAV": {"hidden": 32, "dim": 16, "prototypes": 12, "queue": 16, "small_crops": 2},
    "BarlowTwins": {"hidden": 32, "dim": 16},
    "SimSiam": {"dim": 16},
    "MoCo": {"queue": 12, "dim": 8, "groups": 2},
    "DINO": {"prototypes": 12, "hidden": 16, "dim": 8, "small_crops": 2},
    "MoCoV3": {"hidden": 16, "dim": 8},
    "NNCLR": {"queue": 12, "hidden": 16, "dim": 8, "predictor": 16},
    "DCL": {"dim": 8},
    "RELIC": {"hidden": 16, "dim": 8},
    "RELICv2": {"hidden": 16, "dim": 8, "negatives": 3, "large_crops": 2, "small_crops": 1},
    "CBYOL": {"hidden": 16, "dim": 8},
    "CSimCLR": {"hidden": 16, "dim": 8},
    "DeepCluster": {"size": 64, "clusters": 4, "hidden": 16, "dim": 8, "small_crops": 2},
    "SeLa": {"size": 64, "prototypes": 4, "heads": 2, "hidden": 16, "dim": 8, "small_crops": 2},
    "VICRegL": {"hidden": 16, "dim": 16, "local": 8, "matches": 5},
    "ClusterFit": {"clusters": 4},
    "Distillation": {},
    "InstanceDiscrimination": {"size": 64, "dim": 8},
    "TiCo": {"hidden": 16, "dim": 8},
    "WMSE": {"hidden": 16, "dim": 2, "group": 4},
    "LeJEPA": {"hidden": 16, "dim": 8, "directions": 16, "views": 2},
    "Rotation": {},
    "RelativePosition": {"hidden": 16},
    "Jigsaw": {"width": 8},
    "MultiTask": {"jigsaw": 0.5, "hidden": 16, "width": 8, "channels": 16, "step": 40.0},
    "PIRL": {"size": 64, "dim": 8},
    "DenoisingAutoencoder": {"width": 16},
    "KMeans": {"k": 4},
    "PCA": {"k": 4},
    "GaussianMixture": {"k": 3},
    "SparseCoding": {"k": 12, "iterations": 10},
    "ConvolutionalSparseCoding": {"k": 4, "side": 3, "iterations": 10},
    "Autoencoder": {"dim": 16, "width": 16},
    "VariationalAutoencoder": {"dim": 8, "width": 16},
    "ContractiveAutoencoder": {"dim": 16, "width": 16},
    "BinaryAutoencoder": {"bits": 16, "width": 16},
    "ContextEncoder": {"width": 16},
    "Colourisation": {"width": 16, "step": 40.0},
    "BERT": {},
    "DelayedTransformer": {"depth": 1, "heads": 2},
    "MAE": {"depth": 1, "width": 32},
    "IJEPA": {"depth": 1, "heads": 2, "targets": 2},
    "Data2Vec": {"top": 1},
    "IBOT": {"prototypes": 12, "hidden": 16, "dim": 8, "small_crops": 0},
    "DINOv2": {"prototypes": 12, "hidden": 16, "dim": 8, "small_crops": 0},
    "MSN": {"prototypes": 12, "hidden": 16, "dim": 8, "small_crops": 0},
    "EsViT": {"prototypes": 12, "hidden": 16, "dim": 8, "small_crops": 2},
    "RBM": {"hidden": 8},
    "MaximumLikelihood": {"points": 16, "width": 8},
    "ContrastiveDivergence": {"steps": 2, "width": 8},
    "ScoreMatching": {"width": 8},
    "NoiseContrastiveEstimation": {"width": 8},
}
SEQUENCE = {
    "encoder": "sequence",
    "encoder_arguments": {"vocabulary": 16, "width": 16, "depth": 1, "heads": 2},
}
GREY = {"encoder": "pixels", "encoder_arguments": {"side": 6}}
PLANE = {"encoder_arguments": {"width": 1, "stages": 2}}  # two features
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_arguments": {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2},
}


@pytest.mark.parametrize("name", catalog.names())
def test_method_keeps_the_contract(name: str) -> None:
    check_method(
        catalog.find(name),
        arguments=SMALL.get(name, {}),
        **(VIT if name in ("MAE", "SimMIM", "IJEPA", "Data2Vec", "IBOT", "DINOv2", "MSN") else {}),
        **(SEQUENCE if name in ("BERT", "DelayedTransformer") else {}),
        **(GREY if name == "ConvolutionalSparseCoding" else {}),
        **(PLANE if name == "MaximumLikelihood" else {}),
    )


def test_kmeans_by_gradient_keeps_the_contract() -> None:
    arguments = {"k": 4, "by": "sgd", "beta": 2.0}
    check_method(catalog.find("KMeans"), arguments=arguments)


class Good(Method):
    """F(x, y) = ||z_x - z_y||^2, kept up by nothing: a contract kept, a method that collapses.

    Args:
        weight: of the energy.
    """

    cell = Cell("joint-embedding", "regularised", by="nothing")

    def __init__(self, encoder, *, weight: float = 1.0) -> None:
        super().__init__(encoder)
        self.weight = weight

    def plan(self) -> Plan:
        return two_views(whole().main[0])

    def energy(self, x: View, y: View) -> Tensor:
        return (self.encoder(x.data) - self.encoder(y.data)).square().sum(1)

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        noise = torch.randn_like(x.data)
        return Loss(pull={"energy": self.weight * self.energy(x.with_data(noise), y).mean()})


def test_an_outsiders_method_passes() -> None:
    check_method(Good)


class HiddenCounter(Good):
    """F(x, y) as in Good, with state that is not saved.

    Args:
        weight: of the energy.
    """

    def __init__(self, encoder, *, weight: float = 1.0) -> None:
        super().__init__(encoder, weight=weight)
        self.steps = 0

    def loss(self, views: Views, progress: float) -> Loss:
        self.steps += 1
        loss = super().loss(views, progress)
        return Loss(pull={name: part * self.steps for name, part in loss.pull.items()})


class WrongEnergy(Good):
    """F(x, y) as a single number, which is wrong.

    Args:
        weight: of the energy.
    """

    def energy(self, x: View, y: View) -> Tensor:
        return super().energy(x, y).mean()


class Unsteady(Good):
    """F(x, y) as in Good, with noise nobody seeds.

    Args:
        weight: of the energy.
    """

    def __init__(self, encoder, *, weight: float = 1.0) -> None:
        super().__init__(encoder, weight=weight)
        self.own = torch.Generator()
        self.own.seed()

    def loss(self, views: Views, progress: float) -> Loss:
        part = super().loss(views, progress).total * torch.rand((), generator=self.own)
        return Loss(pull={"energy": part})


class ChangesInEvaluation(Good):
    """F(x, y) as in Good; counts even when it is only looked at.

    Args:
        weight: of the energy.
    """

    def __init__(self, encoder, *, weight: float = 1.0) -> None:
        super().__init__(encoder, weight=weight)
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, data: Tensor) -> Tensor:
        self.seen += 1
        return super().encode(data)


class IdleHead(Good):
    """F(x, y) as in Good, with a head that nothing uses.

    Args:
        weight: of the energy.
    """

    def __init__(self, encoder, *, weight: float = 1.0) -> None:
        super().__init__(encoder, weight=weight)
        self.head = torch.nn.Linear(4, 4)


class Undocumented(Good):
    """F(x, y) as in Good, with an argument that the docstring leaves out."""


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (HiddenCounter, "resuming changes the losses"),
        (WrongEnergy, "not \\[b\\]"),
        (Unsteady, "two equal runs differ"),
        (ChangesInEvaluation, "changed in evaluation mode"),
        (IdleHead, "gets no gradient"),
        (Undocumented, "is not in the docstring"),
    ],
)
def test_a_broken_method_is_found_out(kind: type[Method], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_method(kind)
