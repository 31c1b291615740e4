"""erg inpaint: images without what is laid over them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(inpaint, args=list(arguments), prog="erg inpaint")


def inpaint(
    picture: Path | None = None,
    /,
    *,
    model: Path | None = None,
    mask: Path | None = None,
    images: str | None = None,
    test: str | None = None,
    out: Path | None = None,
    size: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
) -> int:
    """Take text and holes out of a picture, or train a model that does.

    With --images a model is trained on images with text and rectangles laid over them, and tested
    on others beside the median of what is around and biharmonic filling. With a picture and
    --model the picture is restored.

    Args:
        picture: an image file.
        model: the folder of a model.
        mask: an image of the picture's size, bright where the picture is to be filled; the model
            looks for it itself if not given.
        images: images to train on.
        test: images to test on; a tenth of the others, chosen by content, if not given.
        out: the folder of the model; with a picture, the PNG file to write.
        size: side of the pieces that a model is trained on [pixels]; a multiple of 8 from 16 on,
            32 if not given.
        steps: of training; 1500 if not given.
        seed: of everything random in training; 0 if not given.
        device: cpu or cuda.
    """
    from erg.commands.options import check_seed, given, without
    from erg.commands.show import counting, tell

    said = given(size=size, steps=steps, seed=seed)
    if picture is not None and model is not None and images is None and test is None:
        without(said, f"{picture} is restored by a model as it was trained")
        target = out or picture.with_name(f"{picture.stem}-filled.png")
        return _apply(picture, model, mask, target, device)
    if images is None or picture is not None or model is not None or mask is not None:
        raise ValueError(
            "erg inpaint takes a picture and --model FOLDER, or --images DATA to train a model. "
            "See: erg inpaint --help."
        )
    from erg.apply.inpaint import learn_to_inpaint

    check_seed(seed)
    folder = out or Path("inpainter")
    scores = learn_to_inpaint(
        images, folder, test=test, device=device, tell=tell, counting=counting, **said
    )
    _print(scores)
    tell(f"The model and pictures.png are in {folder}.")
    return 0


def _apply(picture: Path, model: Path, mask: Path | None, out: Path, device: str) -> int:
    import io

    from PIL import Image

    from erg.apply.inpainter import Inpainter
    from erg.apply.restorer import load_restorer, put
    from erg.commands.show import tell
    from erg.data.decode import load_rgb
    from erg.durable import check_place, write_atomically

    check_place(out)
    network = put(load_restorer(Inpainter, model), device)
    image = load_rgb(picture)
    hidden = load_rgb(mask)[..., 0] >= 128 if mask is not None else None
    if hidden is not None and hidden.shape != image.shape[:2]:
        raise ValueError(
            f"the mask has {hidden.shape[1]} x {hidden.shape[0]} pixels and the picture "
            f"{image.shape[1]} x {image.shape[0]}. Give a mask of the picture's size."
        )
    if hidden is not None and (hidden.all() or not hidden.any()):
        raise ValueError(
            f"the mask is bright {'everywhere' if hidden.all() else 'nowhere'}. Write 255 where "
            "the picture is to be filled and 0 elsewhere, without transparency."
        )
    content = io.BytesIO()
    Image.fromarray(network.inpaint(image, hidden)).save(content, "PNG")
    write_atomically(out, content.getvalue())
    tell(f"Look at {out}.")
    return 0


def _print(scores: dict[str, Any]) -> None:
    """PSNR and SSIM of every way by kind of overlay."""
    from rich.table import Table

    from erg.commands.show import console

    titles = {"psnr": "PSNR in dB", "psnr_hidden": "of hidden pixels", "ssim": "SSIM"}
    for kind, found in scores["kinds"].items():
        title = f"{kind}: {100 * found['hidden']:.0f} % of {scores['images']} images hidden"
        table = Table(title=title, title_justify="left")
        for name in ("", *titles.values()):
            table.add_column(name, justify="right")
        for way in found["psnr"]["mean"]:
            means = {measure: found[measure]["mean"][way] for measure in titles}
            table.add_row(way, *(
                f"{m['value']:.{digits}f} ({m['low']:.{digits}f} to {m['high']:.{digits}f})"
                for m, digits in zip(means.values(), (1, 1, 3), strict=True)
            ))  # fmt: skip
        console.print(table)
