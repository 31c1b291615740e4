"""Methods by name: found in the folder, at a path, with suggestions and without surprises."""

import inspect
import re
from pathlib import Path

import pytest

import erg.methods
from erg import catalog
from erg.method import Method

OURS = {
    "Autoencoder": "autoencoder",
    "BERT": "bert",
    "BYOL": "byol",
    "BarlowTwins": "barlow_twins",
    "BinaryAutoencoder": "binary_autoencoder",
    "Colourisation": "colourisation",
    "ContextEncoder": "context_encoder",
    "ConvolutionalSparseCoding": "convolutional_sparse_coding",
    "DelayedTransformer": "delayed_transformer",
    "ContrastiveDivergence": "contrastive_divergence",
    "ContractiveAutoencoder": "contractive_autoencoder",
    "CBYOL": "cbyol",
    "CSimCLR": "csimclr",
    "ClusterFit": "clusterfit",
    "DCL": "dcl",
    "DeepCluster": "deepcluster",
    "Distillation": "distillation",
    "DINO": "dino",
    "DINOv2": "dinov2",
    "Data2Vec": "data2vec",
    "EsViT": "esvit",
    "IBOT": "ibot",
    "IJEPA": "ijepa",
    "MSN": "msn",
    "DenoisingAutoencoder": "denoising_autoencoder",
    "GaussianMixture": "gaussian_mixture",
    "InstanceDiscrimination": "instance_discrimination",
    "Jigsaw": "jigsaw",
    "KMeans": "kmeans",
    "LeJEPA": "lejepa",
    "MAE": "mae",
    "MaximumLikelihood": "maximum_likelihood",
    "MoCo": "moco",
    "MoCoV3": "mocov3",
    "MultiTask": "multi_task",
    "NNCLR": "nnclr",
    "NoiseContrastiveEstimation": "noise_contrastive_estimation",
    "PCA": "pca",
    "PIRL": "pirl",
    "RelativePosition": "relative_position",
    "RBM": "rbm",
    "Rotation": "rotation",
    "RELIC": "relic",
    "RELICv2": "relicv2",
    "ScoreMatching": "score_matching",
    "SeLa": "sela",
    "SimCLR": "simclr",
    "SimMIM": "simmim",
    "SimSiam": "simsiam",
    "SparseCoding": "sparse_coding",
    "SwAV": "swav",
    "TiCo": "tico",
    "UNetAutoencoder": "unet_autoencoder",
    "VICReg": "vicreg",
    "VICRegL": "vicregl",
    "VariationalAutoencoder": "variational_autoencoder",
    "WMSE": "wmse",
}

MINE = '''
from erg.method import Cell, Loss, Method
from erg.views.plan import whole


class Base(Method):
    """Abstract: not a method yet."""


class Mine(Method):
    """F(x, y) = 0.

    Args:
        weight: of nothing.
    """

    cell = Cell("joint-embedding", "regularised", by="nothing")

    def __init__(self, encoder, *, weight: float = 1.0):
        super().__init__(encoder)

    def plan(self):
        return whole()

    def loss(self, views, progress):
        return Loss(pull={})

    def energy(self, x, y):
        return 0
'''


def test_every_file_of_the_folder_is_in_the_catalogue() -> None:
    names = catalog.names()
    assert len(set(names)) == len(names)
    for name, file in OURS.items():
        assert name in names
        assert catalog.find(name).__module__ == f"erg.methods.{file}"
    files = {p.stem for p in Path(erg.methods.__path__[0]).glob("*.py")} - {"__init__"}
    assert {catalog.find(name).__module__.rsplit(".", 1)[1] for name in names} >= files


def test_names_are_the_classes() -> None:
    for name in OURS:
        kind = catalog.find(name)
        assert kind.__name__ == name
        assert issubclass(kind, Method)
        assert not inspect.isabstract(kind)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("simclr", "SimCLR"), ("Simclr", "SimCLR"), ("byol2", "BYOL"), ("vicregl", "VICReg"),
     ("kmean", "KMeans"), ("denoising", "DenoisingAutoencoder")],
)  # fmt: skip
def test_wrong_names_get_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=f"no method is called '{wrong}'. Did you mean .*{right}"):
        catalog.find(wrong)


def test_names_like_no_other_get_the_list() -> None:
    with pytest.raises(ValueError, match=r"Known: .*SimCLR"):
        catalog.find("zzzzzz")


def test_a_method_at_a_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    kind = catalog.find(f"{file}:Mine")
    assert kind.__name__ == "Mine"
    assert issubclass(kind, Method)
    assert "Mine" not in catalog.names()
    assert list(catalog.arguments(kind)) == ["weight"]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    with pytest.raises(ValueError, match="there is no file"):
        catalog.find(f"{file}:Mine")
    file.write_text(MINE)
    with pytest.raises(ValueError, match=r"has no method 'Other'\. It has Mine"):
        catalog.find(f"{file}:Other")
    with pytest.raises(ValueError, match="has no method 'Base'"):
        catalog.find(f"{file}:Base")
    with pytest.raises(ValueError, match="has no method 'Method'"):
        catalog.find(f"{file}:Method")


def test_arguments_are_the_keyword_only_ones_with_their_defaults() -> None:
    found = catalog.arguments(catalog.find("SimCLR"))
    assert list(found) == ["temperature", "hidden", "dim", "depth", "memory", "momentum"]
    assert found["temperature"].default == 0.2
    for name in OURS:
        for argument, parameter in catalog.arguments(catalog.find(name)).items():
            assert parameter.default is not inspect.Parameter.empty
            documented = re.search(rf"^\s+{argument}: ", catalog.find(name).__doc__ or "", re.M)
            assert documented, f"{name}: {argument}"


def test_unknown_arguments_are_refused_with_a_suggestion() -> None:
    kind = catalog.find("SimCLR")
    catalog.check_arguments(kind, {"temperature": 0.1, "dim": 64})
    with pytest.raises(ValueError, match=r"SimCLR has no argument 'temprature'.*temperature"):
        catalog.check_arguments(kind, {"temprature": 0.1})
    with pytest.raises(ValueError, match="It has temperature, hidden, dim, depth"):
        catalog.check_arguments(kind, {"zzz": 0.1})
    with pytest.raises(ValueError, match="no argument 'encoder'"):
        catalog.check_arguments(kind, {"encoder": "resnet18"})


def test_schedules_by_name() -> None:
    assert {name: kind.__name__ for name, kind in catalog.SCHEDULES.items()} == {
        name: name for name in ("Constant", "Linear", "Cosine", "Step", "WarmupCosine")
    }
