"""What to do with a set of images nobody has said anything about, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erg import catalog
from erg.encoders import encoder_in
from erg.method import Method
from erg.schedule import Cosine
from erg.train.run import Optimiser, Run


@dataclass(frozen=True)
class Small:
    """What a method wants on a CPU, where minutes have to do: measured in benchmarks/eight_methods.

    Args:
        why: one sentence.
        arguments: of the method.
        batch: images per step; 0 for that of other methods.
        lr: peak learning rate; 0 for that of other methods.
        below: only for images whose shorter side is less [pixels]; 0 for all.
    """

    why: str
    arguments: dict[str, Any]
    batch: int = 0
    lr: float = 0.0
    below: int = 0


OF_PATCHES = ("MAE", "SimMIM")
"""Methods that ask for a ViT and one size of view."""
OF_MANY_PATCHES = ("DINOv2", "Data2Vec", "IBOT", "IJEPA", "MSN")
"""Which hide blocks of patches or make crops of two sizes."""
WITHOUT_A_CLASS: dict[str, dict[str, Any]] = {
    "Data2Vec": {"global_pool": "avg", "fc_norm": False},
    "IJEPA": {"global_pool": "avg", "fc_norm": False, "class_token": False},
    "SimMIM": {"global_pool": "avg", "fc_norm": False},
}
"""Which ask nothing of a ViT's class token, as arguments of one whose vector is the mean of its
patches: their papers take that."""
OF_TOKENS = ("BERT", "DelayedTransformer")
"""Which take sequences and no images."""
TRANSFORMERS = ("vit", "swin")
"""In the names of encoders whose papers decay weights by 0.05."""

ON_A_CPU = {
    "BYOL": Small(
        "heads of width 512, batch 64, a quicker teacher: at 0.996 it hardly moves in minutes.",
        {"hidden": 512, "momentum": Cosine(0.99, 1.0)},
        batch=64,
        lr=1e-3,
    ),
    "DenoisingAutoencoder": Small(
        "more noise and a lower rate than is best for its energy, for the sake of its features.",
        {"noise": 0.25},
        lr=7e-4,
    ),
    "SimCLR": Small(
        "batch 128 and temperature 0.1 learned most in minutes, see benchmarks/small_images.",
        {"temperature": 0.1},
        batch=128,
        below=64,
    ),
    "SwAV": Small(
        "64 prototypes and two crops, so that a batch of 64 fills them: more steps a minute.",
        {"prototypes": 64, "hidden": 512, "eps": 0.03, "queue": 0, "small_crops": 0},
        batch=64,
        lr=3e-3,
    ),
    "VICReg": Small(
        "an expander of width 512: at 2,048 it takes longer than the encoder and learns later.",
        {"hidden": 512, "dim": 512},
        lr=2e-3,
    ),
}


@dataclass(frozen=True)
class Seen:
    """What is known of the data and the machine.

    Args:
        images: number of readable images.
        side: median shorter side [pixels].
        accelerator: whether there is a GPU.
        vectors: number of features if the items are vectors, of tokens if they are sequences; 0
            if they are images.
        vocabulary: number of different tokens if they are sequences, else 0.
    """

    images: int
    side: int
    accelerator: bool
    vectors: int = 0
    vocabulary: int = 0


def default(
    seen: Seen,
    *,
    data: str = "",
    method: str | None = None,
    method_args: dict[str, Any] | None = None,
    encoder: str | None = None,
    encoder_args: dict[str, Any] | None = None,
    image_size: int | None = None,
    init: str | None = None,
    label: str | None = None,
    batch: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    lr: float | None = None,
    optimiser: Optimiser | None = None,
    seed: int = 0,
    **further: Any,
) -> tuple[Run, list[str]]:
    """A Run with everything filled in that was not said, and a sentence for each choice.

    Args:
        seen: the data and the machine.
        data: what to write into the run.
        method: as in Run.
        method_args: as in Run.
        encoder: as in Run.
        encoder_args: as in Run; where the encoder is chosen here, over what is chosen with it.
        image_size: as in Run.
        init: as in Run.
        label: as in Run.
        batch: as in Run.
        epochs: passes over the data, if steps are not given.
        steps: as in Run.
        lr: as in Optimiser.
        optimiser: the whole of it; then `lr` is not used.
        seed: as in Run.
        further: other fields of Run.

    Raises:
        ValueError: the method takes tokens, and the data are none; batch is less than 1, or epochs
            are not above 0.
    """
    why: list[str] = []
    if method is None:
        method, reason = _method(seen)
        why.append(reason)
    kind = catalog.find(method)
    small = None if seen.accelerator else ON_A_CPU.get(method)
    if small is not None and 0 < small.below <= seen.side:
        small = None
    if small is not None:
        method_args = {**small.arguments, **(method_args or {})}
        why.append(f"{method} for a CPU: {small.why}")
    if encoder is None:
        encoder, args, reason = _encoder(seen, method, kind.trains_encoder, init)
        encoder_args = {**args, **(encoder_args or {})}
        why.append(reason)
    if image_size is None:
        image_size, reason = _image_size(seen, encoder, encoder_args or {})
        why.append(reason)
    if batch is None:
        batch, reason = _batch(seen, kind, small)
        why.append(reason)
    if batch < 1:
        raise ValueError(f"batch should be at least 1 (got {batch}).")
    per_epoch = max(1, int(0.95 * seen.images) // batch)
    if steps is None:
        if epochs is None:
            epochs = _epochs(seen)
            why.append(
                f"{epochs:g} epochs: enough to judge; more help (--epochs), --minutes sets a limit."
            )
        if not epochs > 0:
            raise ValueError(f"epochs should be above 0 (got {epochs:g}).")
        steps = max(1, round(epochs * per_epoch))
    if optimiser is None:
        rate, reason = _rate(batch, encoder, kind, small)
        optimiser = Optimiser(
            lr=rate if lr is None else lr,
            weight_decay=0.05 if any(name in encoder for name in TRANSFORMERS) else 1e-4,
        )
        if lr is None and kind.trains_encoder:
            why.append(reason)
    if method == "KMeans" and "k" not in (method_args or {}) and seen.images < 136:
        k = max(1, int(0.95 * seen.images) // 2)  # some are held out
        method_args = {**(method_args or {}), "k": k}
        why.append(f"{k} prototypes: for {seen.images} items.")
    run = Run(
        method=method, method_args=method_args or {}, encoder=encoder,
        encoder_args=encoder_args or {}, image_size=image_size, init=init, data=data, label=label,
        batch=batch, steps=steps, seed=seed, optimiser=optimiser, **further,
    )  # fmt: skip
    return run, why


def _method(seen: Seen) -> tuple[str, str]:
    if seen.vocabulary:
        return "BERT", "method BERT: the items are sequences of tokens."
    if seen.vectors:
        return "KMeans", "method KMeans: the items are vectors."
    return "SimCLR", "method SimCLR: a sound first choice, measured in benchmarks/cifar10."


def _encoder(
    seen: Seen, method: str, trains: bool, init: str | None
) -> tuple[str, dict[str, Any], str]:
    if seen.vocabulary:
        args = {"vocabulary": seen.vocabulary}
        return "sequence", args, "encoder sequence, 4 blocks: the items are sequences of tokens."
    if method in OF_TOKENS:
        raise ValueError(
            f"{method} needs sequences of tokens, and the data are none. Give a .txt, or an array "
            "of integers [rows n]."
        )
    if init is not None and Path(init).is_dir() and method not in OF_PATCHES + OF_MANY_PATCHES:
        name, args = encoder_in(Path(init))
        return name, args, f"encoder {name}: that is what {init} holds."
    if seen.vectors:
        name = "mlp" if trains else "identity"
        return name, {}, f"encoder {name}: the items are vectors."
    if not trains:
        args = {"contrast": True}
        return "pixels", args, f"encoder pixels, contrast taken out: {method} trains no network."
    if method in OF_PATCHES + OF_MANY_PATCHES:
        why = f"{method} needs patches."
        form: dict[str, Any] = {"dynamic_img_size": True} if method in OF_MANY_PATCHES else {}
        form |= WITHOUT_A_CLASS.get(method, {})
        if init is not None:
            form.pop("class_token", None)  # which weights to start from have
        small = seen.side < 64
        patch = (8 if small else 16) if method in OF_PATCHES else (4 if small else 12)
        if seen.accelerator:
            form = {"patch_size": patch, **form} if small else form
            return "vit_small_patch16_224", form, f"encoder vit_small_patch16_224: {why}"
        args = {"patch_size": patch, "depth": 6, **form}
        return "vit_tiny_patch16_224", args, f"encoder vit_tiny, 6 blocks: {why}"
    if init is not None:
        return "resnet18", {}, "encoder resnet18: its public weights are the starting point."
    if seen.accelerator and seen.side >= 64 and method != "UNetAutoencoder":
        return "resnet50", {}, "encoder resnet50: there is a GPU."
    if seen.side >= 64:
        args = {"width": 32, "stages": 5}
        why = "it shows its stages" if seen.accelerator else "small enough for a CPU"
        return "conv", args, f"encoder conv, 5 stages: {why}."
    args = {"width": 64, "stages": 4}
    return "conv", args, "encoder conv, 4 stages: fast on small images, see benchmarks."


def _image_size(seen: Seen, encoder: str, args: dict[str, Any]) -> tuple[int, str]:
    if seen.vectors:
        what = "tokens a sequence" if seen.vocabulary else "features"
        return seen.vectors, f"{seen.vectors} {what}."
    if encoder == "pixels":
        return 32, "image size 32: pixels are averaged down further."
    if seen.side < 64:
        size = 64 if encoder.startswith("resnet") and not args.get("small_stem") else 32
        return size, f"image size {size}: for images of {seen.side} pixels."
    if seen.accelerator:
        return 224, "image size 224: there is a GPU."
    return 96, "image size 96: on a CPU; 224 shows more, slower."


def _batch(seen: Seen, kind: type[Method], small: Small | None) -> tuple[int, str]:
    batch = 512 if seen.side < 64 or seen.accelerator else 256
    why = "at least eight batches an epoch"
    if small is not None and small.batch:
        batch, why = small.batch, "as measured on a CPU"
    elif (
        kind.cell.architecture == "latent-variable" and kind.trains_encoder and not seen.accelerator
    ):
        batch, why = 64, "its loss needs no other images, so more steps are better than larger ones"
    while batch > 16 and batch * 8 > seen.images:
        batch //= 2
    return batch, f"batch {batch}: for {seen.images:,} images; {why}."


def _rate(batch: int, encoder: str, kind: type[Method], small: Small | None) -> tuple[float, str]:
    """Learning rate of AdamW; for autoencoders see benchmarks/eight_methods."""
    if small is not None and small.lr:
        return small.lr, f"AdamW, learning rate {small.lr:g}: as measured on a CPU."
    if encoder == "conv" and kind.cell.architecture == "latent-variable":
        return (
            2e-3,
            "AdamW, learning rate 0.002: better than 0.0007 for an autoencoder at batch 64.",
        )
    rate = 2e-3 * (batch / 512) ** 0.5
    return rate, f"AdamW, learning rate {rate:.2g}: 2e-3 at batch 512, by its square root."


def _epochs(seen: Seen) -> float:
    """About 400,000 images in all on a CPU and 10 million on a GPU, within 5 to 200 epochs."""
    wanted = (10_000_000 if seen.accelerator else 400_000) / max(1, seen.images)
    return float(min(200, max(5, round(wanted))))
