"""Inpainting: text and holes laid over images, training to take them away, and what it is worth."""

import functools
import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from erg.apply.embed import evenly
from erg.apply.inpainter import LEVELS, Inpainter
from erg.apply.pictures import sheet
from erg.apply.restorer import descend, put, save_restorer, seeded
from erg.data.cache import Cache, open_images
from erg.data.loader import Images, Loader
from erg.data.manifest import default_threads
from erg.data.source import open_source
from erg.data.splits import split
from erg.data.stream import Stream
from erg.durable import explained, write_atomically
from erg.evaluate.intervals import bootstrap, difference
from erg.evaluate.restoration import biharmonic_fill, median_fill, psnr, ssim
from erg.train.features import computing_in
from erg.train.run import Optimiser, has_bf16_instructions
from erg.views.plan import WHOLE, Augmentation, Plan
from erg.views.random import uniform

OPTIMISER = Optimiser(lr=2e-3, weight_decay=0.01, clip=1.0)
BATCH = 32
VIEW = replace(WHOLE, flip=0.5)
"""As in the test: from crops made larger the network would learn to blur."""

STRIDE = 2**LEVELS
"""Sides of images that the network is trained on are multiples of it [pixels]."""

SMALLEST = 16
"""Smallest of them [pixels]: SSIM, which is measured in the end, needs 11."""

KINDS = ("text", "holes")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!?&%"

Kind = Literal["text", "holes"]
Progress = Callable[[int, int], None]


# Overlays ------------------------------------------------------------------------------------


def overlays(
    rows: np.ndarray, size: int, *, seed: int, step: int, kind: Kind | None = None
) -> tuple[Bool[Tensor, "b 1 h w"], Float[Tensor, "b 3 1 1"]]:
    """What is hidden and in which colour: a function of the image, the seed and the step.

    Text: one to three lines of letters and digits, an eighth to a third of the side high. Holes:
    one to three rectangles with sides of an eighth to three eighths.

    Args:
        rows: of the images.
        size: their side [pixels].
        seed: of the draws.
        step: its number.
        kind: text or holes; either with equal chances if not given.
    """
    drawn = uniform(seed, step, rows[:, None], np.arange(64))  # [b 64]
    hidden = np.zeros((len(rows), size, size), dtype=bool)
    for i, numbers in enumerate(drawn):
        chosen = kind or KINDS[int(2 * numbers[0])]
        hidden[i] = (_text if chosen == "text" else _holes)(size, numbers[4:])
    colours = torch.from_numpy(drawn[:, 1:4]).float()
    return torch.from_numpy(hidden)[:, None], colours[:, :, None, None]


def _text(size: int, numbers: np.ndarray) -> Bool[np.ndarray, "h w"]:
    page = Image.new("1", (size, size))
    draw = ImageDraw.Draw(page)
    draw.fontmode = "1"  # no half-covered pixels
    for line in range(1 + int(3 * numbers[0])):
        high, x, y, *letters = numbers[1 + 15 * line : 16 + 15 * line]
        font = _font(max(8, round(size * (1 / 8 + high * (1 / 3 - 1 / 8)))))
        word = "".join(LETTERS[int(letter * len(LETTERS))] for letter in letters)
        draw.text(((x - 0.5) * size / 2, (0.8 * y - 0.1) * size), word, fill=1, font=font)
    return np.asarray(page)


@functools.cache
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def _holes(size: int, numbers: np.ndarray) -> Bool[np.ndarray, "h w"]:
    hidden = np.zeros((size, size), dtype=bool)
    for hole in range(1 + int(3 * numbers[0])):
        high, wide, y, x = numbers[1 + 4 * hole : 5 + 4 * hole]
        h, w = (max(2, round(size * (1 / 8 + side / 4))) for side in (high, wide))
        top, left = round(y * (size - h)), round(x * (size - w))
        hidden[top : top + h, left : left + w] = True
    return hidden


# Training ------------------------------------------------------------------------------------


def images_of(
    images: Images, rows: np.ndarray, size: int, seed: int, view: Augmentation, batch: int
) -> Loader:
    """Views in [0, 1] of square images."""
    return Loader(
        images, rows, Plan(main=(view,), pairs="alone"), batch=batch, seed=seed, image_size=size,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), threads=default_threads(),
    )  # fmt: skip


def train_inpainter(
    images: Images,
    rows: np.ndarray,
    *,
    size: int = 32,
    steps: int = 1500,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Inpainter:
    """A network that restores images like these; the same one again under the same seed.

    Args:
        images: decoded images by row.
        rows: of the images to train on.
        size: side of the pieces it sees [pixels]; a multiple of 8 from 16 on.
        steps: of 32 images each, of which half are told where the overlay is.
        seed: of weights, crops and overlays.
        device: cpu or cuda.
        progress: called with (steps done, steps).

    Raises:
        ValueError: there are no pieces of that size, or no such device.
        Diverged: the loss is not finite.
    """
    _check_size(size)
    seeded(seed)
    network = put(Inpainter(), device).to(memory_format=torch.channels_last)
    loader = images_of(images, rows, size, seed, VIEW, BATCH)
    on = torch.device(device)
    half = torch.bfloat16 if on.type == "cpu" and has_bf16_instructions() else None

    def loss(step: int) -> Tensor:
        views = loader.views(step)
        index = views.index.numpy()
        hidden, colours = overlays(index, size, seed=seed, step=step)
        told = torch.from_numpy(uniform(seed, step, index, 64) < 0.5)[:, None, None, None]
        y = views.main[0].data.to(on)
        x = torch.where(hidden, colours, views.main[0].data).to(on)
        with computing_in(on, half):
            return network.loss(x, y, hidden.to(y), (hidden & told).to(y))

    try:
        descend(network, loss, OPTIMISER, steps, progress=progress)
    finally:
        loader.close()
    return network


def _check_size(size: int) -> None:
    if size < SMALLEST or size % STRIDE:
        near = max(SMALLEST, STRIDE * round(size / STRIDE))
        raise ValueError(
            f"the side of the pieces should be a multiple of {STRIDE}, for the network halves it "
            f"{LEVELS} times, and {SMALLEST} at least (got {size}). Choose for example {near}."
        )


# What it is worth ----------------------------------------------------------------------------

CAP = 60.0
"""Highest PSNR that counts [dB]: an image of one colour is filled without any error."""

WAYS = ("corrupted", "median", "biharmonic", "erg, blind", "erg")
TOLD = ("median", "biharmonic")
"""What is compared, and the baselines, which are told where the overlay is as `erg` is."""


def restored(
    network: Inpainter, y: np.ndarray, hidden: np.ndarray, colour: np.ndarray
) -> dict[str, np.ndarray]:
    """An image [h w 3] with an overlay, and as every way restores it, all in [0, 1].

    The median, biharmonic filling and `erg` are told where the overlay is, `erg, blind` is not.
    """
    x = np.where(hidden[..., None], colour, y).astype(np.float32)
    pixels = (x * 255).round().astype(np.uint8)
    return {
        "corrupted": x,
        "median": median_fill(x, hidden),
        "biharmonic": biharmonic_fill(x, hidden).clip(0, 1),
        "erg, blind": network.inpaint(pixels).astype(np.float32) / 255,
        "erg": network.inpaint(pixels, hidden).astype(np.float32) / 255,
    }


def score_inpainter(
    network: Inpainter,
    images: Images,
    rows: np.ndarray,
    *,
    size: int = 32,
    count: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bytes]:
    """PSNR [dB] and SSIM of every way on images that training has not seen, and a picture.

    Args:
        network: the inpainter.
        images: decoded images by row.
        rows: of the images to test on.
        size: side at which they are seen [pixels].
        count: at most so many, evenly spread.
        seed: of the overlays and of the intervals.
        progress: called with (images done, images).

    Returns:
        By kind of overlay: for every way the mean of PSNR, PSNR of the hidden pixels and SSIM, and
        how much better the network is than each baseline, with 95 % intervals over images;
        and a PNG of the first images before and after.
    """
    rows = evenly(rows, count)
    with closing(images_of(images, rows, size, seed, WHOLE, len(rows))) as loader:
        originals = loader.make(rows, epoch=0).main[0].data.permute(0, 2, 3, 1).numpy()
    found: dict[str, Any] = {}
    shown: list[np.ndarray] = []
    for place, kind in enumerate(KINDS):
        hidden, colours = overlays(rows, size, seed=seed, step=0, kind=kind)
        values = {way: np.zeros((len(rows), 3)) for way in WAYS}
        shares = hidden.float().mean().item()
        for i, y in enumerate(originals):
            where, colour = hidden[i, 0].numpy(), colours[i, :, 0, 0].numpy()
            made = restored(network, y, where, colour)
            for way, image in made.items():
                quality = (min(CAP, psnr(y, image, part)) for part in (None, where))
                values[way][i] = *quality, ssim(y, image)
            if i < 6:
                shown += [_shown(image, size) for image in (*made.values(), y)]
            if progress is not None:
                progress(place * len(rows) + i + 1, 2 * len(rows))
        found[kind] = {
            "hidden": shares,
            **{
                measure: _summary({way: values[way][:, k] for way in WAYS}, seed)
                for k, measure in enumerate(("psnr", "psnr_hidden", "ssim"))
            },
        }
    columns = [*WAYS, "original"]
    picture = sheet(shown, len(columns), columns)
    return {"format": 1, "images": len(rows), "size": size, "kinds": found}, picture


def _summary(values: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    return {
        "mean": {way: asdict(bootstrap(each, seed=seed)) for way, each in values.items()},
        "ahead": {way: asdict(difference(values["erg"], values[way], seed=seed)) for way in TOLD},
    }


def _shown(image: np.ndarray, size: int) -> UInt8[np.ndarray, "h w 3"]:
    times = max(1, 96 // size)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def learn_to_inpaint(
    data: Any,
    out: Path,
    *,
    test: Any = None,
    size: int = 32,
    steps: int = 1500,
    seed: int = 0,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda _: None,
    counting: Callable[[str], Any] = lambda _: nullcontext(None),
) -> dict[str, Any]:
    """Train on any images, test on others, and leave it in a folder.

    The folder gets config.json, model.safetensors, scores.json and pictures.png.

    Args:
        data: anything `open_source` opens.
        out: the folder.
        test: images to test on; a tenth of `data`, chosen by content, if not given.
        size: side of the pieces it sees [pixels]; a multiple of 8 from 16 on.
        steps: of training.
        seed: of everything random.
        device: cpu or cuda.
        tell: called with lines worth printing.
        counting: gives a context with a callback (done, in all), by what is counted.

    Returns:
        What is in scores.json.

    Raises:
        ValueError: the data or the size cannot be used, or no image is left to test on.
        Unwritable: there can be no such folder.
        Diverged: the loss is not finite.
    """
    _check_size(size)
    with explained(out):  # what cannot be kept need not be learned
        out.mkdir(parents=True, exist_ok=True)
    with counting("Reading images") as progress:
        manifest, images = _opened(data, size, progress)
    rows, held = (manifest.ok, None) if test is not None else split(manifest, share=0.1)
    learned = _contents(manifest, rows)
    others = images
    if test is not None:
        with counting("Reading test images") as progress:
            manifest, others = _opened(test, size, progress)
        held = manifest.ok
    assert held is not None
    if not len(held):
        raise ValueError(
            f"an image has to be left to test on, and all {len(rows)} have the same content. Give "
            "others as well, or name those to test on with --test."
        )
    tell(f"Training on {len(rows)} images; {len(held)} are for testing.")
    leaked = int(np.isin(_contents(manifest, held), learned).sum())
    if leaked:
        tell(f"{leaked:,} of {len(held):,} test images are also among those trained on.")
    with counting("Training") as progress:
        network = train_inpainter(
            images, rows, size=size, steps=steps, seed=seed, device=device, progress=progress
        )
    save_restorer(network, out)
    with counting("Testing") as progress:
        scores, picture = score_inpainter(
            network, others, held, size=size, seed=seed, progress=progress
        )
    tested = None if test is None else str(test)[:200]
    scores |= {
        "data": str(data)[:200], "test": tested, "n_leaked": leaked, "steps": steps, "seed": seed,
    }  # fmt: skip
    write_atomically(out / "scores.json", json.dumps(scores, indent=1).encode())
    write_atomically(out / "pictures.png", picture)
    return scores


def _contents(manifest: Any, rows: np.ndarray) -> np.ndarray:
    """Hashes of some images."""
    return manifest.hashes[rows].astype(np.str_)


def _opened(data: Any, size: int, progress: Progress | None) -> tuple[Any, Cache | Stream]:
    source = open_source(data)
    if source.kind != "image":
        raise ValueError("inpainting needs images (got vectors). Give images.")
    return open_images(source, short_side=2 * size, progress=progress)
