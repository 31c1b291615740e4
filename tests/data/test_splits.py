"""Splits are functions of content and keep duplicates together."""

import hashlib

import numpy as np
import pytest

from erg.data.manifest import Manifest, Row
from erg.data.splits import hold_out, split


def made_of(hashes: list[str]) -> Manifest:
    rows = [
        Row(str(i), 0, 1, h, 1, 1, "ok" if h else "skipped", "", None) for i, h in enumerate(hashes)
    ]
    return Manifest.of(rows)


def random_hashes(n: int) -> list[str]:
    return [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(n)]


def test_hold_out_is_a_share_of_the_readable() -> None:
    hashes = random_hashes(1000)
    hashes[::10] = [""] * 100
    manifest = made_of(hashes)
    train, held = hold_out(manifest)
    assert len(held) == 45
    assert sorted([*train, *held]) == manifest.ok.tolist()
    assert len(hold_out(manifest, at_most=7)[1]) == 7
    assert len(hold_out(manifest, share=0.5)[1]) == 450


def test_none_are_held_out_where_none_are_asked_for() -> None:
    manifest = made_of([*random_hashes(50), ""])
    train, held = hold_out(manifest, at_most=0)
    assert train.tolist() == manifest.ok.tolist() == list(range(50))
    assert len(held) == 0
    assert len(hold_out(manifest, at_most=1)[1]) == 1


def test_hold_out_depends_on_content_alone() -> None:
    hashes = random_hashes(200)
    order = np.random.default_rng(0).permutation(200)
    held = {hashes[i] for i in hold_out(made_of(hashes))[1]}
    shuffled = [hashes[i] for i in order]
    assert {shuffled[i] for i in hold_out(made_of(shuffled))[1]} == held


@pytest.mark.parametrize("copies", [2, 5, 90])
def test_duplicates_stay_together(copies: int) -> None:
    hashes = [h for h in random_hashes(30) for _ in range(copies)] + random_hashes(300)[30:]
    for one, other in (hold_out(made_of(hashes), share=0.1), split(np.array(hashes), share=0.3)):
        assert len(one) + len(other) == len(hashes)
        assert not {hashes[i] for i in one} & {hashes[i] for i in other}
    wanted = round(0.3 * len(hashes))
    assert wanted - copies < len(split(hashes, share=0.3)[1]) <= wanted


def test_tiny_sets() -> None:
    assert [len(part) for part in split(random_hashes(2))] == [1, 1]
    assert [len(part) for part in split(["a"] * 5)] == [5, 0]
    assert [len(part) for part in split(["a"] * 9 + ["b"] * 3, share=0.01)] == [9, 3]


def test_split_of_a_manifest_gives_rows_and_differs_from_hold_out() -> None:
    hashes = random_hashes(500)
    hashes[3] = ""
    manifest = made_of(hashes)
    fit, test = split(manifest)
    assert sorted([*fit, *test]) == manifest.ok.tolist()
    assert len(test) == 100
    assert set(hold_out(manifest, share=0.2)[1].tolist()) != set(test.tolist())
