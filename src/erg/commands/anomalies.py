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
    top: int = 32,
    out: Path = Path("anomalies"),
    method: str | None = None,
) -> int:
    """Say of every image how badly it fits with normal ones, and show those that fit worst.

    Several energies are computed: the method's own where it is one of an image alone, distances of
    embeddings, and of pixels. Written are anomalies.parquet, a sheet of the most anomalous images
    and, where labels say which are normal, how well each energy tells (anomalies.json).

    Args:
        model: a run folder, a folder with an encoder, or a file of embeddings of normal items (then
            data is a file of embeddings too).
        data: images to look at.
        normal: images that are normal; what the run was trained on if not given.
        label: where labels are found: a parquet column, or `folder`.
        normal_class: the label of normal images; all others are anomalous.
        window: side of windows that are looked at one by one [pixels], for maps; 0 for none.
        stride: from one window to the next [pixels]; a quarter of the side if not given.
        masks: parquet column of data with images that are white where something is wrong.
        by: the energy to sort by.
        top: images on the sheet.
        out: the folder to write.
        method: repeats a method given by path, which is code.
    """
    import numpy as np

    from erg.apply.anomalies import anomalies, localised, of_embeddings, picture
    from erg.apply.embed import open_for
    from erg.commands.show import compiling, tell
    from erg.embeddings import Embeddings
    from erg.encoders import load_encoder
    from erg.train.fit import load

    if masks is not None and not window:
        raise ValueError("masks are compared with maps. Give the side of windows with --window.")
    if top < 1 or window < 0 or stride < 0:
        raise ValueError(
            f"the sheet shows one image at least, and windows have a size (got --top {top}, "
            f"--window {window}, --stride {stride})."
        )
    if model.is_file() and (window or normal is not None or label is not None):
        raise ValueError(
            f"{model} is a file of embeddings of normal items, which bring their labels and have "
            "no windows. Leave out --normal, --label and --window."
        )
    out.mkdir(parents=True, exist_ok=True)
    if model.is_file():
        known, asked = Embeddings.load(model), Embeddings.load(data)
        found = of_embeddings(known, asked, normal_class=normal_class)
    else:
        chosen = load(model, method=method) if (model / "run.json").exists() else model
        encoder = load_encoder(model) if isinstance(chosen, Path) else chosen.encoder
        compiling()
        opened = open_for(encoder, data, label=label)
        options: dict[str, Any] = {"normal": normal, "label": label, "normal_class": normal_class}
        if window:
            found = localised(
                chosen, opened, window=window, stride=stride or -(-window // 4), tell=tell,
                **options,
            )  # fmt: skip
        else:
            found = anomalies(chosen, opened, tell=tell, **options)
        if not isinstance(opened.images, np.ndarray):
            picture(found, opened, out / "anomalies.webp", by=by, items=top)
    found.save(out / "anomalies.parquet")
    _judge(found, out / "anomalies.json", data if masks is not None else None, masks)
    tell(f"The most anomalous by {found.first if by is None else by}:")
    for i in found.order(by)[:10]:
        tell(f"  {found.energies[by or found.first][i]:10.4g}  {found.paths[i]}")
    tell(f"All are in {out}/anomalies.parquet.")
    return 0


def _judge(found: Any, file: Path, data: str | None, column: str | None) -> None:
    """Print how well each energy tells, and write it down, where it is known what is normal."""
    from dataclasses import asdict

    from rich.table import Table

    from erg.commands.show import console, warn
    from erg.durable import write_atomically

    if found.normal is None:
        return
    inside = int((found.normal & found.fitted_on).sum())
    if inside:
        warn(
            f"{inside} of the {int(found.normal.sum())} normal items that energies are judged by "
            "are among those they were fitted on: all but that of neighbours look better than they "
            "are. Judge by others (--normal names those to fit on)."
        )
    judged = found.judged()
    if data is not None and column is not None:
        for name, score in found.located(read_masks(Path(data), column, found.ids)).items():
            judged[name]["auroc_pixels"] = score
    titles = {
        "auroc": "AUROC",
        "aupr": f"AUPR of anomalies (chance {1 - found.normal.mean():.2f})",
        "aupr_normal": "AUPR of normal items",
        "auroc_pixels": "AUROC of pixels",
    }
    kinds = list(next(iter(judged.values())))
    table = Table("energy", *(titles[kind] for kind in kinds))
    for name, scores in judged.items():
        cells = [f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})" for s in scores.values()]
        table.add_row(name, *cells)
    console.print(table)
    about = {
        "format": 1,
        "items": len(found),
        "normal": int(found.normal.sum()),
        "normal_fitted_on": inside,
        "positive": "anomalous items; in aupr_normal the normal ones",
        "scores": {n: {k: asdict(s) for k, s in scores.items()} for n, scores in judged.items()},
    }
    write_atomically(file, json.dumps(about, indent=1).encode())


def read_masks(file: Path, column: str, ids: Any) -> list[Any]:
    """Masks of some rows of a parquet file, bool [h w]; None where there is none.

    Raises:
        ValueError: it is no parquet file, or has no such column.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from erg.data.decode import load_rgb

    try:
        values = pq.read_table(file, columns=[column])[column]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"{file} has no masks in a column {column!r} ({str(error).splitlines()[0]}). Masks "
            "are read from one parquet file."
        ) from None
    found: list[Any] = []
    for i in ids:
        value = values[int(i)].as_py()
        found.append(None if value is None else np.asarray(load_rgb(value))[..., 0] > 127)
    return found
