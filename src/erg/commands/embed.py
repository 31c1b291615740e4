"""erg embed: a vector for every image."""

from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(embed_, args=list(arguments), prog="erg embed")


def embed_(
    model: Path,
    data: str,
    /,
    *,
    out: Path = Path("embeddings.parquet"),
    label: str | None = None,
    method: str | None = None,
) -> int:
    """Write a parquet file with id, path, vector and label of every readable image.

    Args:
        model: a run folder, or a folder with an encoder (an export).
        data: images.
        out: the parquet file.
        label: where labels are found, to be kept beside the vectors.
        method: repeats a method given by path, which is code.
    """
    from erg.apply.embed import embed
    from erg.commands.show import counting, tell
    from erg.train.fit import load

    chosen = load(model, method=method) if (model / "run.json").exists() else model
    with counting("Embedding") as progress:
        found = embed(chosen, data, label=label, progress=progress)
    found.save(out)
    tell(f"{len(found)} vectors of {found.vectors.shape[1]} values in {out}.")
    return 0
