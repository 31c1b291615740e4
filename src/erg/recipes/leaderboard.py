"""The runs behind the published figures on ImageNet, and what they would take.

Every row of the table in the reference (section 28) is a function that gives a Run, with the
hyper-parameters that its authors published. Departures that a Run cannot help are the same for all
of them and stand here once; what one row has beside them stands in its `departs`:

- gradients are clipped by their joint norm;
- learning rates warm up and then follow half a cosine, weight decay is constant;
- one rate for all parameters, no decay by layer, dropped paths only where the encoder has them;
- biases and gains are not decayed, but by LARC, and the momentum of sgd is Nesterov's;
  prototypes are decayed (MSN's authors do not);
- batch norms see the batch of all processes, but for MoCo's groups (PIRL: each GPU its own; SwAV:
  groups of 8; SEER: of 64);
- what the docstring of a method departs in holds here too;
- ResNets start with every block at nothing, which BYOL's did not;
- encoders are looked at on the largest centred square, resized bilinearly, where authors mostly
  keep the middle 224 of 256 pixels, bicubic;
- the encoder that is kept is the student's, also where authors look at their teacher's (DINO and
  what came of it, I-JEPA).

Figures that the reference only recalls are marked so. What a run takes is told by
`recipes.needs` and `recipes.estimates`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from erg import catalog
from erg.parts.crops import multi_crop
from erg.recipes.default import WITHOUT_A_CLASS
from erg.schedule import Constant, Cosine
from erg.train.run import Optimiser, Run
from erg.views.plan import (
    BYOL_SECOND,
    MOCO2,
    SIMCLR,
    SWAV_GLOBAL,
    SWAV_LOCAL,
    Masking,
    Plan,
    Tiles,
    two_views,
)

IMAGENET = 1_281_167
IMAGENET_22K = 14_197_122
A_BILLION = 1_000_000_000

_CROPS = {"dynamic_img_size": True}
_ANY = {"strict_img_size": False}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "R50": ("resnet50", {"zero_init_last": True}),
    "R50x2": ("resnet", {"depth": 50, "width": 2}),
    "R50x4": ("resnet", {"depth": 50, "width": 4}),
    "R50x5": ("resnet", {"depth": 50, "width": 5}),
    "R101": ("resnet", {"depth": 101}),
    "R152": ("resnet", {"depth": 152}),
    "R200x2": ("resnet", {"depth": 200, "width": 2}),
    "R152x3-SK": ("resnet", {"depth": 152, "width": 3, "selective": True}),
    "RG-256GF": ("regnety_2560", {}),
    "RG-10B": ("regnety_10b", {}),
    "ViT-S/16": ("vit_small_patch16_224", _CROPS),
    "ViT-S/16, 12 heads": ("vit_small_patch16_224", {"num_heads": 12}),
    "ViT-S/8": ("vit_small_patch8_224", _CROPS),
    "ViT-S/14": ("vit_small_patch14_dinov2", _CROPS),
    "ViT-B/16": ("vit_base_patch16_224", _CROPS),
    "ViT-B/8": ("vit_base_patch8_224", _CROPS),
    "ViT-B/14": ("vit_base_patch14_dinov2", _CROPS),
    "ViT-L/16": ("vit_large_patch16_224", _CROPS),
    "ViT-L/14": ("vit_large_patch14_dinov2", _CROPS),
    "ViT-L/7": ("vit_large_patch16_224", {"patch_size": 7, **_CROPS}),
    "ViT-H/14": ("vit_huge_patch14_224", _CROPS),
    "ViT-BN-H/14": ("vit_huge_patch14_224", {"mlp_batch_norm": True, **_CROPS}),
    "ViT-BN-L/7": ("vit_large_patch16_224", {"patch_size": 7, "mlp_batch_norm": True, **_CROPS}),
    "ViT-H/16": ("vit_huge_patch14_224", {"patch_size": 16, **_CROPS}),
    "ViT-g/14": ("vit_giant_patch14_reg4_dinov2", _CROPS),
    "ViT-7B/16": (
        "vit_giant_patch14_reg4_dinov2",
        {
            "patch_size": 16,
            "embed_dim": 4096,
            "depth": 40,
            "num_heads": 32,
            "mlp_ratio": 4.0,
            **_CROPS,
        },
    ),
    "XCiT-S12/16": ("xcit_small_12_p16_224", {}),
    "XCiT-S12/8": ("xcit_small_12_p8_224", {}),
    "XCiT-M24/16": ("xcit_medium_24_p16_224", {}),
    "XCiT-M24/8": ("xcit_medium_24_p8_224", {}),
    "Swin-S/7": ("swin_small_patch4_window7_224", _ANY),
    "Swin-S/14": ("swin_small_patch4_window7_224", {"window_size": 14, **_ANY}),
    "Swin-B/7": ("swin_base_patch4_window7_224", _ANY),
    "Swin-B/14": ("swin_base_patch4_window7_224", {"window_size": 14, **_ANY}),
}
"""Encoders by the names of the table."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        method: as its authors call it.
        backbone: a name of BACKBONES.
        recipe: the run, of the backbone.
        linear: top-1 of a linear classifier on frozen features [%]; 0 if there is none.
        neighbours: top-1 of nearest neighbours [%]; 0 if there is none.
        recalled: whether the reference recalls the figures without having seen a source.
        departs: from what was published, beside what all rows do.
    """

    method: str
    backbone: str
    recipe: Callable[[str], Run]
    linear: float = 0.0
    neighbours: float = 0.0
    recalled: bool = False
    departs: str = ""

    def run(self) -> Run:
        return self.recipe(self.backbone)


def _run(
    method: str,
    backbone: str,
    optimiser: Optimiser,
    *,
    epochs: float,
    batch: int,
    images: int = IMAGENET,
    side: int = 224,
    plan: Plan | None = None,
    **arguments: Any,
) -> Run:
    encoder, encoder_args = BACKBONES[backbone]
    if "size" in catalog.arguments(catalog.find(method)):
        arguments["size"] = images  # rows of its memory, which training would fill in
    return Run(
        method=method, method_args=arguments, encoder=encoder, encoder_args=encoder_args,
        image_size=side, plan=plan, optimiser=optimiser, batch=batch,
        steps=round(epochs * images / batch), precision="bf16",
    )  # fmt: skip


def _lars(lr: float, epochs: float, decay: float = 1e-6, end: float = 0.0) -> Optimiser:
    """With ten epochs of warm-up."""
    return Optimiser(name="lars", lr=lr, weight_decay=decay, warmup=10 / epochs, end=end)


def _larc(epochs: float, end: float = 1e-3) -> Optimiser:
    """SwAV's, with ten epochs of warm-up."""
    return Optimiser(name="larc", lr=4.8, weight_decay=1e-6, warmup=10 / epochs, end=end)


def _sgd(lr: float, decay: float = 1e-4, end: float = 0.0, warmup: float = 0.0) -> Optimiser:
    return Optimiser(name="sgd", lr=lr, weight_decay=decay, warmup=warmup, end=end)


def _adamw(lr: float, warmup: float, decay: float = 0.04, **further: Any) -> Optimiser:
    return Optimiser(name="adamw", lr=lr, weight_decay=decay, warmup=warmup, **further)


_IBOT_LARGE = multi_crop(
    224, 10, share=0.32,
    mask=Masking(grid=(14, 14), ratio=0.3, spread=0.2, masked=0.5, kind="random"),
)  # fmt: skip
"""iBOT's for ViT-B and L."""


_MEDIUM = Plan(
    main=(replace(SWAV_GLOBAL, crop=(0.08, 1.0)),) * 2,
    local=(replace(SWAV_LOCAL, size=96 / 160),) * 4,
)
"""Two crops of 160 pixels and four of 96, for encoders of 160 pixels."""


_SEER = replace(_MEDIUM, main=(replace(SWAV_GLOBAL, crop=(0.14, 1.0)),) * 2)


def instance_discrimination(backbone: str, negatives: int = 4096) -> Run:
    return _run(
        "InstanceDiscrimination", backbone, _sgd(0.03), epochs=200, batch=256,
        negatives=negatives,
    )  # fmt: skip


def instance_softmax(backbone: str) -> Run:
    return instance_discrimination(backbone, negatives=0)


def npid_plus(backbone: str) -> Run:
    view = replace(
        SIMCLR, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, grey=0.0,
        blur=0.0,
    )  # fmt: skip
    return _run(
        "InstanceDiscrimination", backbone, _sgd(0.12, end=1e-3), epochs=800, batch=1024,
        negatives=32_000, plan=Plan(main=(view,), pairs="alone"),
    )  # fmt: skip


def pirl(backbone: str) -> Run:
    return _run("PIRL", backbone, _sgd(0.12, end=1e-3), epochs=800, batch=1024)


def pirl_mlp(backbone: str) -> Run:
    tiles = replace(SIMCLR, crop=(0.6, 1.0), tiles=Tiles(gap=1 / 85, jitter=20 / 85))
    return _run(
        "PIRL", backbone, _sgd(0.12, end=1e-3), epochs=800, batch=1024,
        plan=Plan(main=(SIMCLR, tiles)), hidden=2048, softmax=True, temperature=0.1,
    )  # fmt: skip


def simclr(backbone: str) -> Run:
    optimiser = _lars(4.8, 1000)
    return _run("SimCLR", backbone, optimiser, epochs=1000, batch=4096, temperature=0.1)


def simclr_v2(backbone: str) -> Run:
    optimiser = Optimiser(name="lars", lr=6.4, weight_decay=1e-4, warmup=0.05)
    return _run("SimCLR", backbone, optimiser, epochs=800, batch=4096, temperature=0.1, depth=3)


def csimclr(backbone: str) -> Run:
    return _run("CSimCLR", backbone, _lars(3.2, 1000, 1.5e-6), epochs=1000, batch=4096)


def moco_v1(backbone: str) -> Run:
    view = replace(MOCO2, jitter=1.0, hue=0.4, blur=0.0)
    return _run(
        "MoCo", backbone, _sgd(0.03), epochs=200, batch=256, plan=two_views(view), queue=65_536,
        temperature=0.07, depth=1,
    )  # fmt: skip


def moco_v2(backbone: str) -> Run:
    return _run("MoCo", backbone, _sgd(0.03), epochs=800, batch=256, queue=65_536)


def moco_v3(backbone: str) -> Run:
    if backbone.startswith("R"):
        return _run(
            "MoCoV3", backbone, _lars(4.8, 1000, 1.5e-6), epochs=1000, batch=4096, temperature=1.0,
            momentum=Cosine(0.996, 1.0),
        )  # fmt: skip
    optimiser = _adamw(2.4e-3, 40 / 300, decay=0.1)
    return _run("MoCoV3", backbone, optimiser, epochs=300, batch=4096)


def swav(backbone: str) -> Run:
    epochs, batch, hidden, small, queue, end = {
        "R50": (800, 4096, 2048, 6, 0, 1e-3),
        "R50x2": (400, 4096, 8192, 4, 0, 1e-3),
        "R50x4": (400, 2560, 8192, 4, 2560, 1e-3),
        "R50x5": (400, 1536, 10_240, 4, 1536, 0.0),
    }[backbone]
    large, local = SWAV_GLOBAL, SWAV_LOCAL
    if backbone == "R50x4":
        large, local = replace(large, crop=(0.08, 1.0)), replace(local, crop=(0.08, 0.14))
    return _run(
        "SwAV", backbone, _larc(epochs, end), epochs=epochs, batch=batch,
        plan=Plan(main=(large,) * 2, local=(local,) * small), prototypes=3000, hidden=hidden,
        queue=queue, queue_from=0.0, freeze=313 * batch / (epochs * IMAGENET),
    )  # fmt: skip


def deepcluster(backbone: str) -> Run:
    return _run(
        "DeepCluster", backbone, _larc(800), epochs=800, batch=4096,
        clusters=3000,
    )  # fmt: skip


def sela_v1(backbone: str) -> Run:
    return _run(
        "SeLa", backbone, _sgd(0.08, 1e-5), epochs=400, batch=256, small_crops=0,
        prototypes=3000,
    )  # fmt: skip


def sela_v2(backbone: str) -> Run:
    return _run(
        "SeLa", backbone, _larc(400), epochs=400, batch=4096, plan=_MEDIUM,
        side=160, prototypes=3000,
    )  # fmt: skip


def byol(backbone: str) -> Run:
    return _run("BYOL", backbone, _lars(3.2, 1000, 1.5e-6), epochs=1000, batch=4096)


def cbyol(backbone: str) -> Run:
    epochs = 1500 if backbone == "R50" else 1000
    return _run("CBYOL", backbone, _lars(4.0, epochs, 1.5e-6), epochs=epochs, batch=4096)


def simsiam(backbone: str) -> Run:
    return _run("SimSiam", backbone, _sgd(0.1), epochs=100, batch=512)


def barlow_twins(backbone: str) -> Run:
    optimiser = _lars(1.6, 1000, end=1e-3)
    return _run("BarlowTwins", backbone, optimiser, epochs=1000, batch=2048, hidden=8192, dim=8192)


def vicreg(backbone: str) -> Run:
    optimiser = _lars(1.6, 1000, end=1e-3)
    return _run("VICReg", backbone, optimiser, epochs=1000, batch=2048, hidden=8192, dim=8192)


def wmse(backbone: str) -> Run:
    optimiser = _adamw(2e-3, 500 / 2_001_823, decay=1e-6)  # of the steps
    return _run("WMSE", backbone, optimiser, epochs=400, batch=256, views=4, dim=128)


def relic(backbone: str) -> Run:
    return _run("RELIC", backbone, _lars(4.8, 1000), epochs=1000, batch=4096)


def relic_v2(backbone: str) -> Run:
    wide = 0.3 if "x" in backbone else 0.2
    return _run("RELICv2", backbone, _lars(4.8, 1000), epochs=1000, batch=4096, temperature=wide)


def dino(backbone: str) -> Run:
    if backbone == "R50":
        return _run(
            "DINO", backbone, _sgd(0.12, warmup=10 / 800), epochs=800, batch=1024,
            plan=multi_crop(224, 8, share=0.14), prototypes=65_536, freeze=1 / 800,
        )  # fmt: skip
    epochs = {"ViT-S/16": 800, "ViT-S/8": 800, "ViT-B/16": 400, "ViT-B/8": 300}[backbone]
    warm, frozen, end = (30, 1, 5e-3) if "-S/" in backbone else (50, 3, 4e-3)
    if backbone.endswith("/8"):
        plan = multi_crop(224, 6, share=0.25)
    else:
        plan = multi_crop(224, 8, share=0.4)
    return _run(
        "DINO", backbone, _adamw(2e-3, 10 / epochs, clip=3.0, end=end), epochs=epochs, batch=1024,
        plan=plan, prototypes=65_536, warmup=warm / epochs, freeze=frozen / epochs,
    )  # fmt: skip


def dino_xcit(backbone: str) -> Run:
    end = 0.04 if "-S" in backbone else 0.01
    return _run(
        "DINO", backbone, _adamw(1e-3, 10 / 300, clip=3.0, end=end), epochs=300, batch=1024,
        plan=multi_crop(224, 8, share=0.3), prototypes=65_536, warmup=30 / 300,
        freeze=1 / 300,
    )  # fmt: skip


def ibot(backbone: str) -> Run:
    epochs = {"ViT-S/16": 800, "ViT-B/16": 400, "ViT-L/16": 250}[backbone]
    further: dict[str, Any] = {}
    if backbone != "ViT-S/16":  # the figures are those of patches hidden one by one
        further = {"plan": _IBOT_LARGE, "blocks": False}
    return _run(
        "IBOT", backbone, _adamw(2e-3, 10 / epochs, clip=3.0), epochs=epochs, batch=1024,
        prototypes=8192, warmup=30 / epochs, freeze=1 / epochs, **further,
    )  # fmt: skip


def ibot_22k(backbone: str) -> Run:
    return _run(
        "IBOT", backbone, _adamw(2e-3, 5 / 50, clip=3.0), epochs=50, batch=1024,
        images=IMAGENET_22K, plan=_IBOT_LARGE, blocks=False, prototypes=8192, freeze=1 / 50,
    )  # fmt: skip


def esvit(backbone: str) -> Run:
    return _run(
        "EsViT", backbone, _adamw(1e-3, 10 / 300, clip=3.0), epochs=300, batch=512,
        prototypes=65_536, warmup=30 / 300, freeze=1 / 300,
    )  # fmt: skip


def seer(backbone: str) -> Run:
    batch, warm = {"RG-256GF": (8192, 0.066), "RG-10B": (7936, 0.044)}[backbone]
    run = _run(
        "SwAV", backbone,
        Optimiser(name="larc", lr=0.3 * batch / 256, weight_decay=1e-5, warmup=warm, end=1e-3),
        epochs=1, batch=batch, images=A_BILLION, plan=_SEER, side=160, prototypes=16_000,
        hidden=8192, dim=256, depth=3, norm=False, iterations=10, eps=0.03, queue=0, freeze=0.0,
    )  # fmt: skip
    return replace(run, recompute=True, strategy="fsdp" if backbone == "RG-10B" else "ddp")


def msn(backbone: str) -> Run:
    view = replace(MOCO2, crop=(0.3, 1.0))
    hidden = replace(view, mask=Masking(grid=(32, 32), ratio=0.7))
    local = replace(view, crop=(0.05, 0.3), size=84 / 224)
    plan = Plan(main=(hidden, view), local=(local,) * 10)
    optimiser = _adamw(1e-3, 15 / 200, clip=3.0)
    return _run("MSN", backbone, optimiser, epochs=200, batch=1024, plan=plan, ratio=0.7)


def dinov2(backbone: str) -> Run:
    if backbone == "ViT-L/16":
        run = _run(
            "DINOv2", backbone, _adamw(5.7e-3, 0.1, clip=3.0), epochs=1, batch=2048, untied=False,
            centring="mean", prototypes=65_536, warmup=30 / 100, freeze=1 / 100,
        )  # fmt: skip
        return replace(run, steps=125_000)
    mask = Masking(grid=(16, 16), ratio=0.3, spread=0.2, masked=0.5, stratified=True, kind="blocks")
    plan = multi_crop(224, 8, share=0.32, mask=mask)
    plan = replace(plan, local=tuple(replace(view, size=84 / 224) for view in plan.local))
    run = _run(
        "DINOv2", backbone, _adamw(3.5e-4, 80 / 500, clip=3.0), epochs=1, batch=3072, plan=plan,
        prototypes=131_072, dim=384, momentum=Cosine(0.994, 1.0), warmup=30 / 500, freeze=1 / 500,
    )  # fmt: skip
    return replace(run, steps=625_000)


def dinov3(backbone: str) -> Run:
    if backbone == "ViT-L/16":
        run = _run(
            "DINOv2", backbone, _adamw(5.7e-3, 0.1, clip=3.0), epochs=1, batch=2048,
            prototypes=65_536,
        )  # fmt: skip
        return replace(run, steps=125_000)
    mask = Masking(grid=(16, 16), ratio=0.3, spread=0.2, masked=0.5, stratified=True, kind="blocks")
    plan = multi_crop(256, 8, share=0.32, mask=mask)
    plan = replace(plan, local=tuple(replace(view, size=112 / 256) for view in plan.local))
    run = _run(
        "DINOv2", backbone, _adamw(4e-4, 100 / 1230, clip=30.0, beta2=0.99), epochs=1, batch=4096,
        side=256, plan=plan, prototypes=262_144, hidden=8192, dim=512, momentum=Constant(0.994),
        warmup=100 / 1230, freeze=5 / 1230, gram=2.0, gram_from=1000 / 1230,
    )  # fmt: skip
    return replace(run, steps=1_230_000)


def ijepa(backbone: str) -> Run:
    run = _run(
        "IJEPA", backbone, _adamw(1e-3, 40 / 300), epochs=300, batch=2048,
        side=448 if backbone == "ViT-H/16" else 224, width=384, depth=12, heads=16,
    )  # fmt: skip
    return replace(run, encoder_args={**run.encoder_args, **WITHOUT_A_CLASS["IJEPA"]})


def lejepa(backbone: str) -> Run:
    view = replace(BYOL_SECOND, crop=(0.3, 1.0), blur=0.5)
    local = replace(view, crop=(0.05, 0.3), size=84 / 224)
    return _run(
        "LeJEPA", backbone, _adamw(5e-4, 0.1, decay=0.05, end=1e-3), epochs=100, batch=1024,
        plan=Plan(main=(view,) * 2, local=(local,) * 6), views=2, weight=0.05, dim=64,
        directions=1024,
    )  # fmt: skip


def data2vec(backbone: str) -> Run:
    lr, warm, epochs, batch = (
        (2e-3, 10, 800, 2048) if backbone == "ViT-B/16" else (1e-3, 80, 1600, 4096)
    )
    run = _run(
        "Data2Vec", backbone, _adamw(lr, warm / epochs, decay=0.05, clip=3.0), epochs=epochs,
        batch=batch, momentum=Constant(0.9998),
    )  # fmt: skip
    return replace(run, encoder_args={**run.encoder_args, **WITHOUT_A_CLASS["Data2Vec"]})


_SMALL = "small crops of 84 pixels, which the patches divide"
_DISTILLED = "trained by itself, where its authors distilled it from ViT-g/14; " + _SMALL
_ROTARY = "positions are learned, where its authors rotate queries and keys"
_REGIONS = "with regions from the start, where its authors begin without"
_SLOW = "the teacher keeps one momentum, where its authors slow it down half-way"
_MASKS = "backgrounds are removed only with saliency masks, which have to be given (`Run.mask`)"
_LIKE_SWAV = "the optimiser is SwAV's: its authors released no code to train it"

ROWS = (
    Row("InstDisc (NCE, 4k)", "R50", instance_discrimination, 54.99, 46.8),
    Row("InstDisc (CE, 65k)", "R50", instance_softmax, 58.5,
        departs="the softmax runs over all images"),
    Row("NPID++", "R50", npid_plus, 56.68),
    Row("NPID++", "R50x2", npid_plus, 62.73),
    Row("PIRL", "R50", pirl, 64.29),
    Row("PIRL, MLP and blur", "R50", pirl_mlp, 69.9),
    Row("SimCLR", "R50", simclr, 69.1),
    Row("SimCLR", "R50x2", simclr, 74.2),
    Row("SimCLR", "R50x4", simclr, 76.6),
    Row("SimCLRv2", "R50", simclr_v2, 71.7),
    Row("SimCLRv2", "R152x3-SK", simclr_v2, 79.8),
    Row("C-SimCLR", "R50", csimclr, 71.7),
    Row("C-SimCLR", "R50x2", csimclr, 75.0),
    Row("MoCo v1", "R50", moco_v1, 60.6,
        departs="views turn grey after the jitter, not before"),
    Row("MoCo v2", "R50", moco_v2, 71.1),
    Row("MoCo v3", "R50", moco_v3, 74.6),
    Row("MoCo v3", "ViT-S/16, 12 heads", moco_v3, 73.2),
    Row("MoCo v3", "ViT-B/16", moco_v3, 76.7),
    Row("MoCo v3", "ViT-L/16", moco_v3, 77.6),
    Row("MoCo v3", "ViT-H/14", moco_v3, 78.1),
    Row("MoCo v3", "ViT-BN-H/14", moco_v3, 79.1),
    Row("MoCo v3", "ViT-BN-L/7", moco_v3, 81.0),
    Row("SwAV", "R50", swav, 75.3),
    Row("SwAV", "R50x2", swav, 77.3),
    Row("SwAV", "R50x4", swav, 77.9),
    Row("SwAV", "R50x5", swav, 78.5),
    Row("DeepCluster-v2", "R50", deepcluster, 75.2),
    Row("SeLa", "R50", sela_v1, 61.5, departs="the head, prototypes and colours of v2"),
    Row("SeLa v2", "R50", sela_v2, 71.8, departs=_LIKE_SWAV),
    Row("BYOL", "R50", byol, 74.4),
    Row("BYOL", "R200x2", byol, 79.6),
    Row("BYOL", "R50x4", byol, 78.6, recalled=True),
    Row("C-BYOL", "R50", cbyol, 76.0),
    Row("C-BYOL", "R50x2", cbyol, 78.9),
    Row("C-BYOL", "R152", cbyol, 78.7),
    Row("SimSiam", "R50", simsiam, 68.1),
    Row("Barlow Twins", "R50", barlow_twins, 73.5),
    Row("VICReg", "R50", vicreg, 73.2),
    Row("VICReg", "R50x2", vicreg, 75.5),
    Row("VICReg", "R200x2", vicreg, 77.3),
    Row("W-MSE 4", "R50", wmse, 72.56, recalled=True),
    Row("RELIC", "R50", relic, 74.8, recalled=True),
    Row("RELICv2", "R50", relic_v2, 77.1, departs=_MASKS),
    Row("RELICv2", "R200x2", relic_v2, 80.6, departs=_MASKS),
    Row("DINO", "R50", dino, 75.3, 67.5),
    Row("DINO", "ViT-S/16", dino, 77.0, 74.5),
    Row("DINO", "ViT-S/8", dino, 79.7, 78.3),
    Row("DINO", "ViT-B/16", dino, 78.2, 76.1),
    Row("DINO", "ViT-B/8", dino, 80.1, 77.4),
    Row("DINO", "XCiT-S12/16", dino_xcit, 77.8, 76.0),
    Row("DINO", "XCiT-S12/8", dino_xcit, 79.2, 77.1),
    Row("DINO", "XCiT-M24/16", dino_xcit, 78.8, 76.4),
    Row("DINO", "XCiT-M24/8", dino_xcit, 80.3, 77.9),
    Row("DINO, looked at in 384 pixels", "XCiT-M24/8", dino_xcit, 80.9, recalled=True),
    Row("iBOT", "ViT-S/16", ibot, 77.9, 75.2),
    Row("iBOT", "ViT-B/16", ibot, 79.8, 77.3),
    Row("iBOT", "ViT-L/16", ibot, 81.3, 77.7),
    Row("iBOT, ImageNet-22k", "ViT-L/16", ibot_22k, 82.3, 72.9),
    Row("EsViT", "Swin-S/7", esvit, 79.5, 77.7),
    Row("EsViT", "Swin-B/7", esvit, 80.4, 78.9, departs=_REGIONS),
    Row("EsViT", "Swin-S/14", esvit, 80.8, 79.1, departs=_REGIONS),
    Row("EsViT", "Swin-B/14", esvit, 81.3, 79.3, departs=_REGIONS),
    Row("SEER", "RG-256GF", seer, 77.51),
    Row("SEER", "RG-10B", seer, 79.8),
    Row("MSN", "ViT-L/7", msn, 80.7, departs=_SMALL),
    Row("DINOv2", "ViT-L/16", dinov2, 82.9, 81.6),
    Row("DINOv2", "ViT-S/14", dinov2, 81.1, 79.0, departs=_DISTILLED),
    Row("DINOv2", "ViT-B/14", dinov2, 84.5, 82.1, departs=_DISTILLED),
    Row("DINOv2", "ViT-L/14", dinov2, 86.3, 83.5, departs=_DISTILLED),
    Row("DINOv2", "ViT-g/14", dinov2, 87.1, 83.7, departs=_SMALL),
    Row("DINOv3", "ViT-L/16", dinov3, 83.5, 82.0, departs=_ROTARY),
    Row("DINOv3", "ViT-7B/16", dinov3, 88.4, recalled=True,
        departs=_ROTARY + "; crops are mirrored too and keep one size to the end; patches have as "
        "many prototypes as views; the anchor is the last teacher of the first stage"),
    Row("I-JEPA", "ViT-H/14", ijepa, 79.3, recalled=True),
    Row("I-JEPA", "ViT-H/16", ijepa, 81.1, recalled=True),
    Row("LeJEPA", "ViT-H/14", lejepa, 79.0, departs=_SMALL),
    Row("data2vec", "ViT-B/16", data2vec, recalled=True),
    Row("data2vec", "ViT-L/16", data2vec, recalled=True, departs=_SLOW),
)  # fmt: skip
"""The table."""
