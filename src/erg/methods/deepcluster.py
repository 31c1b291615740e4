"""DeepCluster v2 (Caron et al. 2020, SwAV, section 4 and appendix)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from erg import distributed, energy, inference
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.bank import Memory
from erg.parts.crops import by_size, swav_crops
from erg.parts.heads import mlp
from erg.views.plan import Plan
from erg.views.types import View, Views


class DeepCluster(Method):
    """F(x, y) = -log softmax_k(c_k . z_x / T) at k(y), the k-means cluster that y was put into.

    The centroids c are those of k-means on the sphere over a bank with one z of every image, made
    anew after every epoch and never trained; k(y) = argmax_k c_k . m_y with m_y what the bank holds
    of the image, and every crop of it is to tell the same k. L is the mean of F over all crops and
    over several heads, whose clusterings take turns in starting from the bank of the first large
    crop and of the second (Caron et al. 2020, DeepCluster-v2).

    Departs from the paper: an image that is not in the bank yet, as in the first epoch, is put into
    a cluster by its own crop (the authors fill the bank beforehand); the first centroids are those
    of images seen whole. An empty cluster moves to the image farthest from its centroid (theirs
    stays). Fewer clusters by default, since 3,000 are meant for 1.3 million images.
    Checked against: a loop over crops and heads; the closed form for one-hot centroids; clusters
    known beforehand, which k-means must find.

    Args:
        size: rows of the memory, at least as many as images.
        clusters: number of centroids of each head; a set of fewer images than that is refused.
        heads: number of clusterings.
        iterations: of k-means.
        temperature: T.
        hidden: width of the projector's hidden layer [features].
        dim: width of z [features].
        small_crops: number of small crops per image.
        seed: of the images that k-means starts from.
    """

    cell = Cell("joint-embedding", "regularised", by="k-means over all images after every epoch")
    centroids: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        size: int = 65_536,
        clusters: int = 256,
        heads: int = 3,
        iterations: int = 10,
        temperature: float = 0.1,
        hidden: int = 2048,
        dim: int = 128,
        small_crops: int = 6,
        seed: int = 0,
    ) -> None:
        super().__init__(encoder)
        if small_crops:
            encoder.need_sizes("DeepCluster")
        self.iterations, self.temperature, self.seed = iterations, temperature, seed
        self.small_crops = small_crops
        self.projector = mlp(encoder.dim, hidden, dim)
        self.banks = nn.ModuleList(Memory(size, dim) for _ in range(2))
        for i in range(2):
            self.bank(i).rows.zero_()  # nothing seen yet
        self.register_buffer("centroids", energy.normalise(torch.randn(heads, clusters, dim)))

    def plan(self) -> Plan:
        return swav_crops(self.encoder.image_size, self.small_crops)

    def embed(self, *crops: View) -> Float[Tensor, "all d"]:
        return energy.normalise(self.projector(by_size(self.encoder, crops)))

    def cross_entropy(
        self, z: Float[Tensor, "b d"], head: int, cluster: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """-log softmax(c . z / T) at the cluster."""
        return energy.of_class(energy.products(z, self.centroids[head]) / self.temperature, cluster)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        z, m = self.embed(x), self.embed(y)
        errors = [
            self.cross_entropy(z, head, inference.nearest(m, c))
            for head, c in enumerate(self.centroids)
        ]
        return torch.stack(errors).mean(dim=0)

    def loss(self, views: Views, progress: float) -> Loss:
        crops = [*views.need(2), *views.local]
        z = self.embed(*crops).chunk(len(crops))
        errors: list[Tensor] = []
        for head, c in enumerate(self.centroids):
            m = self.remembered(head % 2, views.index, z[head % 2])
            cluster = inference.nearest(m, c)
            errors += [self.cross_entropy(each, head, cluster) for each in z]
        if self.training:
            for i in range(2):
                self.bank(i).update(views.index, z[i], momentum=0.0)
        return Loss(pull={"cluster": distributed.mean(torch.stack(errors, dim=1)).mean()})

    def remembered(
        self, i: int, index: Int[Tensor, " b"], z: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b d"]:
        """m: what bank i holds of the images; of those it has never seen, the z of now."""
        m = self.bank(i).of(index).to(z)
        return torch.where(m.any(dim=1, keepdim=True), m, z.detach())

    def bank(self, i: int) -> Memory:
        """Of the large crop i."""
        bank = self.banks[i]
        assert isinstance(bank, Memory)
        return bank

    @torch.no_grad()
    def after_epoch(self, features: Float[Tensor, "n d"]) -> None:
        points = [self.bank(i).rows for i in range(2)]
        points = [rows[rows.any(dim=1)] for rows in points]
        if not len(points[0]):
            # As batch norms see a batch of training, but without moving their averages.
            state = {name: t.clone() for name, t in self.projector.state_dict().items()}
            z = energy.normalise(functional_call(self.projector, state, features))
            points = [z, z]
        generator = torch.Generator().manual_seed(self.seed)
        for head, c in enumerate(self.centroids):
            c.copy_(self.on_the_sphere(points[head % 2], generator))

    def needs_features(self) -> bool:
        return not self.bank(0).rows.any()  # later on, what is remembered is enough

    def on_the_sphere(
        self, z: Float[Tensor, "n d"], generator: torch.Generator
    ) -> Float[Tensor, "k d"]:
        """Centroids of norm 1 by k-means, from random images."""
        k = self.centroids.shape[1]
        if len(z) < k:
            raise ValueError(f"{k} clusters need as many images (got {len(z)}). Lower clusters.")
        c = z[torch.randperm(len(z), generator=generator)[:k].to(z.device)]
        for _ in range(self.iterations):
            c = energy.normalise(inference.lloyd_step(z, c))
        return c
