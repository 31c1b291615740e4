"""erg anomalies: which items do not belong?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(anomalies_, args=list(arguments), prog="erg anomalies")


def anomalies_(
    model: Path,
    data: str,
    /,
    *,
    normal: str | None = None,
    label: str | None = None,
    normal_class: str | None = None,
    window: int = 0,
    stride: int = 0,
    masks: str | None = None,
    by: str | None = None,
    top: int | None = None,
    out: Path = Path("anomalies"),
    method: str | None = None,
    device: str | None = None,
) -> int:
    """Say of every image how badly it fits with normal ones, and show those that fit worst.

    Several energies are computed: the method's own where it is one of an image alone, distances of
    embeddings, and of pixels. Written are anomalies.parquet, a sheet of the most anomalous images
    and, where labels or masks say which are normal, how well each energy tells (anomalies.json).

    Args:
        model: a run folder, a folder with an encoder, or a file of embeddings of normal items (then
            data is a file of embeddings too).
        data: images to look at.
        normal: images that are normal; what the run was trained on if not given.
        label: where labels are found: a parquet column, or `folder`.
        normal_class: the label of normal images; those with another one are anomalous.
        window: side of windows that are looked at one by one [pixels], for maps; 0 for none.
        stride: from one window to the next [pixels]; a quarter of the side if not given.
        masks: parquet column of data with images that are white where something is wrong; without
            labels those are normal whose mask is white nowhere.
        by: the energy to sort by.
        top: images on the sheet; 32 if not given.
        out: the folder to write.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
    """
    from dataclasses import replace

    import numpy as np

    from erg.apply.anomalies import anomalies, of_embeddings, picture
    from erg.apply.embed import open_for
    from erg.apply.normal import check_name, names_of
    from erg.apply.windows import localised
    from erg.commands.options import given, is_run, where, without
    from erg.commands.show import compiling, tell
    from erg.durable import explained
    from erg.embeddings import Embeddings
    from erg.encoders import load_encoder
    from erg.train.fitted import load

    if model.is_file():
        of_images = given(
            normal=normal, label=label, window=window or None, stride=stride or None, masks=masks,
            top=top, method=method, device=device,
        )  # fmt: skip
        without(
            of_images,
            f"{model} is a file of embeddings, which bring their labels and have no pictures",
        )
    top = 32 if top is None else top
    if masks is not None and not window:
        raise ValueError("masks are compared with maps. Give the side of windows with --window.")
    if top < 1 or window < 0 or stride < 0:
        raise ValueError(
            f"the sheet shows one image at least, and windows have a size (got --top {top}, "
            f"--window {window}, --stride {stride})."
        )
    if stride and not window:
        raise ValueError(
            f"--stride {stride} is from one window to the next, and no windows are looked at. Give "
            "their side with --window, or leave it out."
        )
    place = None if model.is_file() else where(device)
    chosen = model
    if is_run(model, method):
        chosen = load(model, method=method, device=str(place))
    if by is not None:
        check_name(by, names_of(chosen, images=not model.is_file()))
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    opened = marks = None
    if model.is_file():
        known, asked = Embeddings.load(model), Embeddings.load(data)
        found = of_embeddings(known, asked, normal_class=normal_class)
    else:
        encoder = load_encoder(model) if isinstance(chosen, Path) else chosen.encoder
        compiling()
        opened = open_for(encoder, data, label=label, tell=tell)
        options: dict[str, Any] = {
            "normal": normal, "label": label, "normal_class": normal_class, "device": place,
        }  # fmt: skip
        if window:
            marks = None if masks is None else read_masks(data, masks, opened.rows)
            found = localised(
                chosen, opened, window=window, stride=stride or -(-window // 4), tell=tell,
                **options,
            )  # fmt: skip
        else:
            found = anomalies(chosen, opened, tell=tell, **options)
    if marks is not None and found.normal is None:
        whole = np.array([mask is None or not mask.any() for mask in marks])
        found = found if whole.all() or not whole.any() else replace(found, normal=whole)
    found.save(out / "anomalies.parquet")
    if opened is not None and not isinstance(opened.images, np.ndarray):
        picture(found, opened, out / "anomalies.webp", by=by, items=top)
    _judge(found, out / "anomalies.json", marks)
    tell(f"The most anomalous by {found.first if by is None else by}:")
    for i in found.order(by)[:10]:
        tell(f"  {found.energies[by or found.first][i]:10.4g}  {found.paths[i]}")
    tell(f"All are in {out}/anomalies.parquet.")
    return 0


def _judge(found: Any, file: Path, masks: list[Any] | None) -> None:
    """Print how well each energy tells, and write it down, where it is known what is normal."""
    from dataclasses import asdict

    from rich.table import Table

    from erg.commands.show import console, warn
    from erg.durable import write_atomically

    judged = _scores(found, masks)
    kinds = list(next(iter(judged.values())))
    if not kinds:
        return
    normal, odd = found.sides
    inside = 0 if found.fitted_on is None else int((normal & found.fitted_on).sum())
    if inside:
        warn(
            f"{inside} of the {int(normal.sum())} normal items that energies are judged by "
            "are among those they were fitted on: all but that of neighbours look better than they "
            "are. Judge by others (--normal names those to fit on)."
        )
    titles = {
        "auroc": "AUROC",
        "aupr": f"AUPR of anomalies (chance {odd.sum() / max(1, (normal | odd).sum()):.2f})",
        "aupr_normal": "AUPR of normal items",
        "auroc_pixels": "AUROC of pixels",
    }
    table = Table("energy", *(titles[kind] for kind in kinds))
    for name, scores in judged.items():
        cells = [f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for s in scores.values()]
        table.add_row(name, *cells)
    console.print(table)
    about = {
        "format": 1,
        "items": len(found),
        "normal": int(normal.sum()),
        "anomalous": int(odd.sum()),
        "normal_fitted_on": inside,
        "trained_on": None if found.trained_on is None else int(found.trained_on.sum()),
        "positive": "anomalous items; in aupr_normal the normal ones",
        "scores": {n: {k: asdict(s) for k, s in scores.items()} for n, scores in judged.items()},
    }
    write_atomically(file, json.dumps(about, indent=1).encode())


def _scores(found: Any, masks: list[Any] | None) -> dict[str, dict[str, Any]]:
    """By energy, what can be said of how well it tells; what cannot is told."""
    from erg.commands.show import tell, warn

    judged: dict[str, dict[str, Any]] = {name: {} for name in found.energies}
    if found.normal is not None:
        normal, odd = (int(side.sum()) for side in found.sides)
        if normal + odd < len(found):
            tell(f"{len(found) - normal - odd} items have no label, and nothing is judged by them.")
        if normal and odd:
            judged = found.judged()
        else:
            warn(
                f"{normal} items are known to be normal and {odd} not to be: energies are judged "
                "by both kinds, so here they are not. Ask about both, or look at --normal-class."
            )
    if masks is not None:
        sound = any(mask is None or not mask.all() for mask in masks)
        if sound and any(mask is not None and mask.any() for mask in masks):
            for name, score in found.located(masks).items():
                judged[name]["auroc_pixels"] = score
        else:
            warn("Masks are white nowhere, or everywhere: maps are not judged by them.")
    return judged


def read_masks(data: str | Path, column: str, ids: Any) -> list[Any]:
    """Masks of some rows of parquet files, bool [h w]; None where there is none.

    They are read a few at a time.

    Raises:
        ValueError: these are no parquet files, or have no such column, or a mask is damaged.
    """
    import pyarrow as pa

    from erg.data.decode import load_rgb
    from erg.data.opening import UnreadableImage
    from erg.data.source import open_source
    from erg.data.tables import Parquet

    source = open_source(data)
    wanted, found = {int(i) for i in ids}, {}
    try:
        if not isinstance(source, Parquet):
            raise ValueError("it is no table")
        start = 0
        for table in source.masks(column).tables:
            for batch in table.parquet.iter_batches(64, columns=[column]):
                values = batch.column(column)
                for i in wanted.intersection(range(start, start + len(values))):
                    value = values[i - start].as_py()
                    value = value["bytes"] if isinstance(value, dict) else value
                    found[i] = None if value is None else load_rgb(value)[..., 0] > 127
                start += len(values)
    except UnreadableImage as error:
        raise ValueError(
            f"a mask in the column {column!r} of {data} cannot be read: {error.reason} Write it "
            "again, or leave it empty where nothing is wrong."
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{data} has no masks in a column {column!r} ({reason}). Masks are read from parquet "
            "files."
        ) from None
    return [found.get(int(i)) for i in ids]
