"""Which rows are trained on and which are kept to judge by: a function of their content alone."""

from collections.abc import Sequence

import numpy as np

from erg.data.manifest import Manifest, digest


def hold_out(
    manifest: Manifest, share: float = 0.05, at_most: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, both ascending.

    Chosen by content hash: the same images whatever their names or order. Exact duplicates stay
    on one side.

    Args:
        manifest: of which the readable rows are shared out.
        share: of the rows to hold out.
        at_most: largest number of rows to hold out; 0 for none, else at least one group of
            duplicates is, where there are two.
    """
    if at_most == 0:
        return manifest.ok, manifest.ok[:0]
    wanted = min(at_most, round(share * len(manifest.ok)))
    rest, held = _share_out(manifest.hashes[manifest.ok], wanted, b"hold out")
    return manifest.ok[rest], manifest.ok[held]


def split(
    manifest: Manifest | Sequence[str] | np.ndarray, share: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Rows for fitting and rows for testing, both ascending, chosen as `hold_out` does.

    Args:
        manifest: a manifest, of which the readable rows are split, or content hashes.
        share: of the rows to test on.
    """
    if isinstance(manifest, Manifest):
        rows, hashes = manifest.ok, manifest.hashes[manifest.ok]
    else:
        rows, hashes = np.arange(len(manifest), dtype=np.int64), np.asarray(manifest)
    rest, held = _share_out(hashes, round(share * len(rows)), b"split")
    return rows[rest], rows[held]


def _share_out(hashes: np.ndarray, wanted: int, purpose: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions that remain, and about `wanted` positions taken, by a keyed hash of each hash.

    Groups of duplicates larger than what is still wanted are passed over. At least one group is
    taken where there are two.
    """
    unique, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort([digest(str(h).encode(), key=purpose) for h in unique], kind="stable")
    taken = np.zeros(len(unique), dtype=bool)
    for g in order:
        if counts[g] <= wanted:
            taken[g] = True
            wanted -= int(counts[g])
    if not taken.any() and len(unique) > 1:
        taken[order[np.argmin(counts[order])]] = True
    held = taken[group]
    return np.flatnonzero(~held), np.flatnonzero(held)
