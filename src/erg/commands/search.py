"""erg search: what is near a picture?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(search, args=list(arguments), prog="erg search")


def search(
    embeddings: Path,
    query: str,
    /,
    *,
    model: Path | None = None,
    k: int = 10,
    bits: int = 0,
    by: Literal["hamming", "dot", "jaccard"] | None = None,
    out: Path | None = None,
    method: str | None = None,
    device: str | None = None,
) -> int:
    """List the items among embeddings that are nearest to a picture.

    By cosine similarity of the vectors, or with --bits by the distance of binary codes, of which
    64 bits take 8 bytes. Vectors of zeros and ones (BinaryAutoencoder) are codes already.

    Args:
        embeddings: a file of `erg embed`.
        query: a picture, or several in a folder, for which a model is needed; or without a model
            the path or the id of one of the items.
        model: the run folder, or folder with an encoder, that made the embeddings.
        k: items to list.
        bits: length of the codes; 0 for the vectors as they are.
        by: what is counted between codes; hamming if not given.
        out: a JSON file to write too.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
    """
    import numpy as np

    from erg.commands.options import given, without
    from erg.commands.show import tell
    from erg.durable import check_place, write_atomically
    from erg.embeddings import Embeddings
    from erg.evaluate.knn import nearest
    from erg.explore.search import nearest_codes

    if k < 1 or bits < 0:
        raise ValueError(
            f"one item at least is listed, by no fewer than 0 bits (got --k {k}, --bits {bits})."
        )
    if model is None:
        without(given(method=method, device=device), "without --model no encoder is used")
    if out is not None:
        check_place(out)
    bank = Embeddings.load(embeddings)
    if not len(bank):
        raise ValueError(f"{embeddings} holds no item to find. Embed images first.")
    rows = np.zeros(0, dtype=np.int64)
    if model is None:
        rows = np.array([_item(bank, query)])
        asked = bank[rows]
    else:
        asked = _embedded(model, query, method, device)
        if asked.vectors.shape[1] != bank.vectors.shape[1]:
            raise ValueError(
                f"the queries have {asked.vectors.shape[1]} values and the embeddings "
                f"{bank.vectors.shape[1]}. Give the model that made them."
            )
    more = min(len(bank), k + len(rows))  # an item is no neighbour of itself
    codes = codes_of(bank.vectors, asked.vectors, bits)
    if codes is None and by is not None:
        raise ValueError(
            f"--by {by} compares codes, and {embeddings} holds vectors of other numbers than 0 and "
            "1. Leave it out, or make codes of them with --bits."
        )
    by = by or "hamming"
    if codes is None:
        near, how_near = nearest(bank.vectors, asked.vectors, k=more)
        tell(f"{len(bank):,} vectors of {4 * bank.vectors.shape[1]} bytes, cosine similarity:")
    else:
        near, how_near = nearest_codes(*codes, k=more, by=by)
        tell(f"{len(bank):,} codes of {codes[0].bytes_per_item} bytes, {by} distance:")
    told: list[dict[str, Any]] = []
    for i in range(len(asked)):
        name = _name(asked, i)
        tell(name)
        kept = [j for j in range(more) if near[i, j] not in rows][:k]
        found = [
            {
                "path": _name(bank, int(near[i, j])),
                "id": int(bank.ids[near[i, j]]),
                "cosine" if codes is None else by: round(float(how_near[i, j]), 4),
            }
            for j in kept
        ]
        for each, j in zip(found, kept, strict=True):
            label = "" if bank.labels is None else f"  {bank.labels[near[i, j]]}"
            tell(f"  {how_near[i, j]:8.4g}  {each['path']}{label}")
        told.append({"query": name, "found": found})
    if out is not None:
        about = json.dumps({"format": 1, "queries": told}, indent=1)
        write_atomically(out, about.encode())
    return 0


def codes_of(bank: Any, queries: Any, bits: int) -> Any:
    """Codes of both sides, or None where vectors are to be compared as they are.

    Raises:
        ValueError: they are codes, and others are asked for.
    """
    import numpy as np

    from erg.explore.search import Codes, Hash

    if all(np.isin(side, (0, 1)).all() for side in (bank, queries)):
        if bits:
            raise ValueError(
                f"vectors of zeros and ones are codes already, here of {bank.shape[1]} bits (got "
                f"--bits {bits}). Leave it out."
            )
        return Codes.pack(bank), Codes.pack(queries)
    if bits == 0:
        return None
    made = Hash.rotated if bits <= min(bank.shape) else Hash.random
    hashed = made(bank, bits)
    return hashed(bank), hashed(queries)


def _item(bank: Any, name: str) -> int:
    """The position of an item by its path or id."""
    import difflib

    paths = bank.paths or []
    if name in paths:
        return paths.index(name)
    if name.isdigit() and int(name) in bank.ids:
        return bank.ids.tolist().index(int(name))
    near = difflib.get_close_matches(name, paths[:10_000], n=1)
    hint = f"Did you mean {near[0]}?" if near else "For another picture, name the --model."
    raise ValueError(f"the embeddings hold no item {name!r}. {hint}")


def _name(items: Any, i: int) -> str:
    return items.paths[i] if items.paths is not None else f"id {items.ids[i]}"


def _embedded(model: Path, query: str, method: str | None, device: str | None) -> Any:
    from erg.apply.embed import embed
    from erg.commands.options import is_run, where
    from erg.train.fitted import load

    of_run, place = is_run(model, method), where(device)
    chosen = load(model, method=method, device=str(place)) if of_run else model
    return embed(chosen, query, device=place)
