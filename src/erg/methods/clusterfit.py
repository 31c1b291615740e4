"""ClusterFit (Yan et al. 2020)."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from erg import distributed, energy, inference
from erg.encoders import Encoder, build_encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import BYOL_FIRST, LARGE, SIMCLR_SMALL, WHOLE, Plan, two_views
from erg.views.types import View, Views


class ClusterFit(Method):
    """F(x, y) = -log softmax(W f(x))_k at k(y), the cluster of y's features in a finished encoder.

    The encoder that is given (`init` of the run) is finished: its features of all images are
    clustered by k-means before the first step, and then a new encoder f of the same architecture
    starts from random weights and learns to tell the cluster of an image from any view of it (Yan
    et al. 2020). Clusters lose what the old features knew too well of their pretext task.

    Departs from the paper: the new encoder cannot be of another architecture than the old one.
    Fewer clusters by default, since 16,000 are meant for 1.3 million images.
    Checked against: clusters known beforehand; a loop over images; weights that start anew while
    the finished encoder stays as it was.

    Args:
        clusters: of k-means; a set of fewer images than that is refused.
        iterations: of k-means.
        seed: of its start and of the new weights.
    """

    cell = Cell("joint-embedding", "regularised", by="fixed clusters of a finished encoder")
    centroids: Tensor
    started: Tensor

    def __init__(
        self, encoder: Encoder, *, clusters: int = 256, iterations: int = 20, seed: int = 0
    ) -> None:
        super().__init__(encoder)
        self.iterations, self.seed = iterations, seed
        self.finished = copy.deepcopy(encoder).requires_grad_(False)
        self.classifier = nn.Linear(encoder.dim, clusters)
        self.register_buffer("centroids", torch.zeros(clusters, encoder.dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def train(self, mode: bool = True) -> "ClusterFit":
        """As in torch, but the finished encoder stays in evaluation mode."""
        super().train(mode)
        self.finished.eval()
        return self

    def plan(self) -> Plan:
        return two_views(BYOL_FIRST if self.encoder.image_size >= LARGE else SIMCLR_SMALL, WHOLE)

    @torch.no_grad()
    def cluster(self, view: View) -> Int[Tensor, " b"]:
        """k(y)."""
        return inference.nearest(self.finished(view.data), self.centroids)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.of_class(self.classifier(self.encoder(x.data)), self.cluster(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        return Loss(pull={"cluster": distributed.mean(self.energy(x, y))})

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        if self.started:
            return
        generator = torch.Generator().manual_seed(self.seed)
        found = inference.kmeans_plus_plus(features, len(self.centroids), generator)
        for _ in range(self.iterations):
            found = inference.lloyd_step(features, found)
        self.centroids.copy_(found)
        self.start_anew()
        self.started.fill_(True)

    def needs_features(self) -> bool:
        return not self.started

    def start_anew(self) -> None:
        """Random weights in place of the finished ones: an optimiser may hold them already."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = self.encoder
            fresh = build_encoder(encoder.name, encoder.image_size, **encoder.arguments)
        self.encoder.load_state_dict(fresh.state_dict())
