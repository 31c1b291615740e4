"""MoCo v3 (Chen et al. 2021)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy, shaping
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.parts.heads import mlp
from erg.parts.norm import BatchNorm
from erg.parts.teacher import Teacher
from erg.schedule import Cosine, Schedule
from erg.views.plan import BYOL_FIRST, BYOL_SECOND, LARGE, SIMCLR_SMALL, Plan, two_views
from erg.views.types import View, Views


class MoCoV3(Method):
    """F(x, y) = -cos(q_x, k_y); l_i = F(x_i, y_i) / T + log sum_j exp(-F(x_i, y_j) / T).

    q from encoder, projector and predictor, k from a slow teacher of encoder and projector, j over
    the keys of the other view in the global batch; L = 2 T [l(x, y) + l(y, x)] (Chen et al. 2021,
    eq. 1 and algorithm 1). The patch embedding of a vision transformer stays as it was drawn, which
    takes the instability out of training (section 4.2). Its ViT-BN is an encoder of timm with
    `mlp_batch_norm`.

    Departs from the paper: positions and initial weights are the encoder's own; the teacher moves
    after a step instead of before the next, so its momentum is one step older.
    Checked against: golden numbers at T = 1 and 0.2; a loop over all keys; finite differences with
    the keys held.

    Args:
        temperature: T, of the softmax over keys (0.2 for ViTs, 1 for ResNets).
        hidden: width of the hidden layers of projector and predictor [features].
        dim: width of z [features].
        momentum: m of theta_k <- m theta_k + (1 - m) theta_q, from the first step to the last.
        freeze_patches: whether a vision transformer's patch embedding stays random.
    """

    cell = Cell("joint-embedding", "contrastive", by="softmax over the other keys, EMA teacher")
    batch_coupled = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float = 0.2,
        hidden: int = 4096,
        dim: int = 256,
        momentum: Schedule = Cosine(0.99, 1.0),
        freeze_patches: bool = True,
    ) -> None:
        super().__init__(encoder)
        self.temperature, self.momentum = temperature, momentum
        vit = encoder.patch is not None
        widths = [encoder.dim, *[hidden] * (2 if vit else 1), dim]
        self.projector = mlp(*widths, hidden_bias=False, last_bias=False)
        self.projector.append(BatchNorm(dim, affine=False))
        self.predictor = mlp(dim, hidden, dim, hidden_bias=False, last_bias=False)
        if vit:
            self.predictor.append(BatchNorm(dim, affine=False))
        if vit and freeze_patches:
            encoder.get_submodule("network.patch_embed").requires_grad_(False)
        self.teacher = Teacher(nn.Sequential(encoder, self.projector))

    def plan(self) -> Plan:
        if self.encoder.image_size < LARGE:
            return two_views(SIMCLR_SMALL)
        # The authors' smallest crop is 0.08 of the area for ViTs and 0.2 for ResNets.
        crop = (0.08 if self.encoder.patch is not None else 0.2, 1.0)
        return two_views(replace(BYOL_FIRST, crop=crop), replace(BYOL_SECOND, crop=crop))

    def query(self, view: View) -> Float[Tensor, "b d"]:
        return self.predictor(self.projector(self.encoder(view.data)))

    def key(self, view: View) -> Float[Tensor, "b d"]:
        return self.teacher(view.data)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        return energy.cosine(self.query(x), self.key(y))

    def loss(self, views: Views, progress: float) -> Loss:
        x, y = views.need(2)
        qx, qy = (distributed.gather(self.query(view)) for view in (x, y))  # [global d]
        kx, ky = (distributed.gather(self.key(view)) for view in (x, y))
        t = self.temperature
        pull = shaping.alignment(qx, ky, t) + shaping.alignment(qy, kx, t)
        push = shaping.cross_repulsion(qx, ky, t) + shaping.cross_repulsion(qy, kx, t)
        return Loss(pull={"alignment": 2 * t * pull}, push={"repulsion": 2 * t * push})

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.momentum(progress))
