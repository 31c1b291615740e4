"""timm's backbones by name, and where their weights come from. The only file that imports timm."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.vision_transformer import VisionTransformer

from erg.durable import read_json

OURS_TO_GIVE = {
    "cache_dir", "checkpoint_path", "features_only", "in_chans", "num_classes",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
}  # fmt: skip
"""Arguments of timm that would open files of other formats, or change what comes out."""

SIZED = (
    "beit", "cait", "crossvit", "deit", "eva", "hiera", "maxxvit", "mlp_mixer", "swin", "twins",
    "vision_transformer", "volo", "xcit",
)  # fmt: skip
"""Families of timm (their files) whose image size is part of the architecture."""

PUBLIC = "pretrained"

BEYOND = {
    "regnety_10b": RegNetCfg(w0=1744, wa=620.83, wm=2.52, group_size=1010, depth=27, se_ratio=0.25),
}
"""RegNets that timm has no name for: SEER's with 10 billion parameters (Goyal et al. 2022)."""


def create(
    name: str,
    image_size: int,
    init: str | None,
    arguments: dict[str, Any],
    others: Iterable[str] = (),
) -> Any:
    """A timm model without classifier.

    Args:
        name: architecture, with or without a tag.
        image_size: side of its input [pixels].
        init: None for random weights; `pretrained` or a tag for public ones; a .safetensors file;
            a folder in timm's form.
        arguments: further ones, passed to timm.
        others: names that somebody may have meant although timm does not know them.

    Raises:
        ValueError: unknown names, arguments or weights.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture) and architecture not in BEYOND:
        known = [*others, *BEYOND, *timm.list_models()]
        near = difflib.get_close_matches(architecture, known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "timm.list_models() lists all."
        raise ValueError(f"no encoder is called {architecture!r}. {hint}")
    refused = sorted(OURS_TO_GIVE & arguments.keys())
    refused += ["an empty global_pool"] * (arguments.get("global_pool") == "")
    if refused:
        raise ValueError(
            f"{', '.join(refused)} cannot be given as encoder arguments. Use init for weights; the "
            "output is always one vector per image."
        )
    options = {"num_classes": 0, **arguments}
    if architecture in BEYOND:
        return _beyond(architecture, init, options)
    if takes_image_size(architecture):
        options["img_size"] = image_size
    try:
        if init is None:
            return timm.create_model(architecture, pretrained=False, **options)
        return _with_weights(architecture, name, init, options)
    except TypeError as error:
        raise ValueError(
            f"timm refuses the arguments {arguments} for {architecture} ({error}). "
            "Leave out what it does not know."
        ) from None


def _beyond(name: str, init: str | None, options: dict[str, Any]) -> Any:
    if init is not None:
        raise ValueError(f"there are no weights of {name} to start from. Leave init out.")
    network: Any = RegNet(BEYOND[name], **options)
    network.pretrained_cfg = {}
    return network


def takes_image_size(architecture: str) -> bool:
    """Whether the image size is part of the architecture, as for vision transformers."""
    if architecture in BEYOND:
        return False
    file = timm.model_entrypoint(architecture).__module__.rsplit(".", 1)[-1]
    return file.startswith(SIZED)


def is_plain_vit(network: Any) -> bool:
    """Whether patches can be left out: timm's VisionTransformer, position added before blocks."""
    return isinstance(network, VisionTransformer)


def model_arguments(folder: Path) -> dict[str, Any]:
    """The arguments a folder's model was built with, without its image size."""
    found = _config(folder).get("model_args") or {}
    return {name: value for name, value in found.items() if name != "img_size"}


def timm_config(
    network: Any,
    name: str,
    image_size: int,
    dim: int,
    arguments: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    """What timm's `local-dir:` loading reads from config.json."""
    architecture = name.split(".")[0]
    fixed = takes_image_size(architecture)
    known: dict[str, Any] = network.pretrained_cfg
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": dim,
        "model_args": {**arguments, **({"img_size": image_size} if fixed else {})},
        "pretrained_cfg": {
            "tag": "erg",
            "input_size": [3, image_size, image_size],
            "fixed_input_size": fixed,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _with_weights(architecture: str, name: str, init: str, options: dict[str, Any]) -> Any:
    place = Path(init)
    if place.is_dir():
        return _from_folder(architecture, place, options)
    if place.suffix == ".safetensors":
        return _from_file(architecture, place, options)
    if place.suffix or "/" in init:
        raise ValueError(
            f"init = {init!r} is neither a folder, a .safetensors file nor a tag of timm. "
            "Pickled weights (.pt, .pth) are never loaded: convert them to safetensors."
        )
    tag = name.split(".")[1] if init == PUBLIC and "." in name else init
    full = architecture if tag == PUBLIC else f"{architecture}.{tag}"
    try:
        return timm.create_model(full, pretrained=True, **options)
    except TypeError:
        raise
    except Exception as error:  # timm raises many kinds where there is no network or no weights
        tags = [known.split(".", 1)[1] for known in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(
            f"the public weights {full} could not be had ({type(error).__name__}); timm knows the "
            f"tags {', '.join(tags[:6]) or 'none'}. Where this machine has no network, download "
            "them elsewhere and give the .safetensors file or folder as init."
        ) from None


def _from_folder(architecture: str, folder: Path, options: dict[str, Any]) -> Any:
    theirs = _config(folder).get("architecture")
    if theirs != architecture:
        raise ValueError(
            f"{folder} holds a {theirs}, not a {architecture}. Add --encoder {theirs}."
        )
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise _misfit(folder / "model.safetensors", error) from None


def _from_file(architecture: str, file: Path, options: dict[str, Any]) -> Any:
    if not file.is_file():
        raise ValueError(f"there is no file {file}. Check the path given as init.")
    model: Any = timm.create_model(architecture, **options)
    head = model.pretrained_cfg.get("classifier") or "head"
    heads = tuple(f"{h}." for h in ((head,) if isinstance(head, str) else head))
    try:
        weights = load_file(file)
        model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(heads)})
    except (SafetensorError, RuntimeError) as error:
        raise _misfit(file, error) from None
    return model


def _misfit(place: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the weights in {place} do not fit ({str(error).splitlines()[0]}). Give those of the same "
        "architecture and arguments."
    )


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a folder in timm's form."""
    if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json with model.safetensors beside it. "
            "Give a folder in timm's form, such as the encoder/ of an erg run."
        )
    return read_json(folder / "config.json")
