"""Search with binary codes: vectors become bits, distances are counted in packed words.

Letters in shapes: n items of the bank, m queries, d features, k bits, w words of 64 bits.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt64

from erg.evaluate.baselines import PCA

By = Literal["hamming", "dot", "jaccard"]

AT_ONCE = 1 << 21
"""Distances computed at once; bounds the memory to some tens of MB."""


class Found(NamedTuple):
    """Items of the bank per query, nearest first; of equally near ones the first in the bank.

    Args:
        rows: of the bank.
        distance: see `distances`.
    """

    rows: Int64[np.ndarray, "m k"]
    distance: Float32[np.ndarray, "m k"]


@dataclass(frozen=True, eq=False)
class Codes:
    """Binary codes, 64 bits a word; what is left of the last word is zero.

    Args:
        words: of every item.
        bits: length of a code.
    """

    words: UInt64[np.ndarray, "n w"]
    bits: int

    @classmethod
    def pack(cls, bits: Shaped[np.ndarray, "n k"]) -> "Codes":
        """Codes of bits, which are True, or greater than zero, where they are one.

        Raises:
            ValueError: there is no bit.
        """
        n, k = bits.shape
        if k < 1:
            raise ValueError("a code needs at least one bit (got none).")
        whole = np.zeros((n, -(-k // 64) * 8), dtype=np.uint8)
        packed = np.packbits(bits > 0, axis=1)
        whole[:, : packed.shape[1]] = packed
        return cls(whole.view(np.uint64), k)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def ones(self) -> Int64[np.ndarray, " n"]:
        """How many bits of each code are one."""
        return np.bitwise_count(self.words).sum(axis=1, dtype=np.int64)

    @property
    def bytes_per_item(self) -> int:
        """What a code takes in memory."""
        return self.words.shape[1] * 8


def distances(bank: Codes, queries: Codes, *, by: By = "hamming") -> Shaped[np.ndarray, "m n"]:
    """How far every item of the bank is from every query.

    From the number a.b of ones they share: Hamming |a| + |b| - 2 a.b, the squared distance; dot
    -a.b, as for sparse codes whose ones are features; Jaccard 1 - a.b / (|a| + |b| - a.b).

    Args:
        bank: codes to search.
        queries: codes to search for.
        by: what is counted.

    Raises:
        ValueError: the codes have different lengths.
    """
    if bank.bits != queries.bits:
        raise ValueError(
            f"the bank has codes of {bank.bits} bits and the queries of {queries.bits}. Make both "
            "in the same way."
        )
    count = np.zeros((len(queries), len(bank)), dtype=np.int32)
    for w in range(bank.words.shape[1]):
        a, b = queries.words[:, w, None], bank.words[:, w]
        count += np.bitwise_count(a ^ b if by == "hamming" else a & b)
    if by == "hamming":
        return count
    if by == "dot":
        return -count
    either = queries.ones[:, None] + bank.ones - count
    return 1 - np.divide(count, either, out=np.ones(count.shape), where=either > 0)


def nearest_codes(bank: Codes, queries: Codes, *, k: int, by: By = "hamming") -> Found:
    """The k items of the bank that are nearest, exactly.

    Args:
        bank: codes to search.
        queries: codes to search for.
        k: items per query.
        by: see `distances`.

    Raises:
        ValueError: k is not in 1 to n, or the codes have different lengths.
    """
    n = len(bank)
    if not 1 <= k <= n:
        raise ValueError(f"k should be in 1 to {n}, the size of the bank (got {k}).")
    rows = np.empty((len(queries), k), dtype=np.int64)
    distance = np.empty((len(queries), k), dtype=np.float32)
    block = max(1, AT_ONCE // n)
    for start in range(0, len(queries), block):
        batch = slice(start, start + block)
        some = Codes(queries.words[batch], queries.bits)
        far, at = np.empty((len(some), 0)), np.empty((len(some), 0), dtype=np.int64)
        for first in range(0, n, AT_ONCE):
            part = Codes(bank.words[first : first + AT_ONCE], bank.bits)
            there = _nearest(part, some, min(k, len(part)), by)
            far = np.concatenate([far, there.distance], axis=1)
            at = np.concatenate([at, first + there.rows], axis=1)
            order = np.argsort(far, axis=1, kind="stable")[:, :k]
            far, at = (np.take_along_axis(each, order, 1) for each in (far, at))
        distance[batch], rows[batch] = far, at
    return Found(rows, distance)


def _nearest(bank: Codes, queries: Codes, k: int, by: By) -> Found:
    """Of all distances at once."""
    found, n = distances(bank, queries, by=by), len(bank)
    if by == "jaccard":
        rows = np.argsort(found, axis=1, kind="stable")[:, :k]
        return Found(rows, np.take_along_axis(found, rows, 1).astype(np.float32))
    # Distance first, place in the bank second, as one integer: no two are equal.
    found = found.astype(np.int64) * n + np.arange(n)
    found = np.sort(np.partition(found, k - 1, axis=1)[:, :k], axis=1)
    distance, rows = np.divmod(found, n)
    return Found(rows, distance.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Hash:
    """Bits of vectors: on which side of k hyperplanes they lie, [(y - mean) . direction > 0].

    Args:
        mean: subtracted first.
        directions: normals of the hyperplanes.
    """

    mean: Float32[np.ndarray, " d"]
    directions: Float32[np.ndarray, "k d"]

    @classmethod
    def random(cls, vectors: Float[np.ndarray, "n d"], bits: int, *, seed: int = 0) -> "Hash":
        """Hyperplanes in random directions: bits differ with probability angle / pi.

        Charikar 2002, about the mean of the vectors.

        Args:
            vectors: whose mean the hyperplanes meet in.
            bits: number of hyperplanes, any.
            seed: of the directions.
        """
        drawn = np.random.default_rng(seed).normal(size=(bits, vectors.shape[1]))
        return cls(vectors.mean(axis=0, dtype=np.float64).astype(np.float32), _float(drawn))

    @classmethod
    def pca(cls, vectors: Float[np.ndarray, "n d"], bits: int) -> "Hash":
        """Signs of the first principal components; no more bits than features.

        Args:
            vectors: to fit on.
            bits: number of components.

        Raises:
            ValueError: there are fewer features, or fewer vectors, than bits.
        """
        if bits > min(vectors.shape):
            raise ValueError(
                f"{len(vectors)} vectors of {vectors.shape[1]} features have no {bits} principal "
                "components. Ask for fewer bits, or for random hyperplanes."
            )
        pca = PCA.fit(vectors, bits)
        return cls(pca.mean, pca.components)

    @classmethod
    def rotated(
        cls, vectors: Float[np.ndarray, "n d"], bits: int, *, rounds: int = 50, seed: int = 0
    ) -> "Hash":
        """Principal components turned so that they lie close to their signs (ITQ).

        min ||B - V R||^2 over signs B and rotations R, by turns: B = sign(V R), then R from the
        singular vectors of B^T V (Gong & Lazebnik 2011). Without it the first bits carry nearly
        all of the variance and the last ones noise.

        Args:
            vectors: to fit on.
            bits: number of components.
            rounds: of the alternation.
            seed: of the first rotation.

        Raises:
            ValueError: see `pca`.
        """
        start = cls.pca(vectors, bits)
        v = (vectors - start.mean) @ start.directions.T  # [n k]
        rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0]
        for _ in range(rounds):
            signs = np.where(v @ rotation > 0, 1.0, -1.0)
            left, _, right = np.linalg.svd(v.T @ signs)
            rotation = left @ right
        return cls(start.mean, _float(rotation.T @ start.directions))

    def __call__(self, vectors: Float[np.ndarray, "m d"]) -> Codes:
        """The codes of vectors."""
        bits: Bool[np.ndarray, "m k"] = (vectors - self.mean) @ self.directions.T > 0
        return Codes.pack(bits)


def _float(directions: Float[np.ndarray, "k d"]) -> Float32[np.ndarray, "k d"]:
    return np.ascontiguousarray(directions, dtype=np.float32)
