"""Everything that reads, fed with what nobody wrote: it works, or says in one line why it does not.

In the daily suite a few examples each; slow, ten minutes each.
"""

import hashlib
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from erg.data.decode import load_rgb
from erg.data.manifest import Manifest, build_manifest
from erg.data.opening import UnreadableImage
from erg.data.source import DataError, open_source
from erg.embeddings import Embeddings
from erg.schedule import Cosine
from erg.train.checkpoint import load_checkpoint, save_checkpoint
from erg.train.folder import RunFolder
from erg.train.run import Run
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import SIMCLR, Augmentation, Masking, Plan
from tests.faults.forks import scaled
from tests.train.test_training import a_run

FEW, SECONDS = 25, 600
RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)

Check = Callable[[Any, Path], None]
Strategy = st.SearchStrategy[Any]


def encoded(i: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB[i]).save(stream, kind)
    return stream.getvalue()


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


# Damage --------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "cut", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
)


def damaged(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Data after some edits, each at a place given as a fraction of its length."""
    out = bytearray(data)
    for kind, where, value in edits:
        place = int(where * len(out))
        if kind == "set":
            out[place : place + len(value)] = value
        elif kind == "insert":
            out[place:place] = value
        elif kind == "delete":
            del out[place : place + len(value)]
        elif kind == "cut" and len(value) > 6:  # rarely, as nothing is left to look at
            del out[place:]
        else:
            out[place:place] = out[place : place + 16 * len(value)]
    return bytes(out)


def one_line(error: BaseException) -> None:
    text = str(error)
    assert text, type(error)
    assert "\n" not in text.replace("\\n", "")


# What is attacked ----------------------------------------------------------------------------


def check_image(data: bytes, folder: Path) -> None:
    try:
        image = load_rgb(data, max_pixels=200_000)
    except UnreadableImage as error:
        one_line(error)
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def check_source(ending: str) -> Check:
    def check(data: bytes, folder: Path) -> None:
        path = folder / f"a{ending}"
        path.write_bytes(data)
        try:
            source = open_source(str(path), label="kind" if ending == ".parquet" else None)
            assert len(source) <= 1 << 20
            manifest = build_manifest(source, threads=1, max_skipped=1.0)
        except DataError:
            return
        assert len(manifest) == len(source)
        for row in manifest.ok:
            assert source.read(int(row)).ndim in (1, 3)

    return check


def check_manifest(data: bytes, folder: Path) -> None:
    (folder / "manifest.parquet").write_bytes(data)
    try:
        manifest = Manifest.load(folder / "manifest.parquet")
    except DataError as error:
        one_line(error)
        return
    assert (manifest.sizes >= 0).all()
    assert len(manifest.summary()) > 0
    assert len(manifest.paths) == len(manifest)


def check_embeddings(data: bytes, folder: Path) -> None:
    (folder / "e.parquet").write_bytes(data)
    try:
        found = Embeddings.load(folder / "e.parquet")
    except ValueError as error:
        one_line(error)
        return
    assert len(found.ids) == len(found)


def check_checkpoint(data: bytes, folder: Path) -> None:
    """The checksum is right: whoever damaged the file wrote it too."""
    (folder / "step_000000001.safetensors").write_bytes(data)
    (folder / "step_000000001.sha256").write_text(hashlib.sha256(data).hexdigest())
    module, optimiser = trained()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    try:
        load_checkpoint(folder, module, optimiser)
    except ValueError as error:
        one_line(error)
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    module(torch.ones(2, 3)).sum().backward()
    optimiser.step()  # compiled steps trust shapes and types


def check_run(data: Any, folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps(data))
    try:
        run = Run.from_json(RunFolder(folder).read_run())
    except ValueError as error:
        one_line(error)
        return
    assert Run.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False))) == run
    assert typed(run)


def typed(value: Any) -> bool:
    """Whether all that frozen data hold is of the types they name, as beartype understands them."""
    if isinstance(value, tuple):
        return all(map(typed, value))
    if not is_dataclass(value) or isinstance(value, type):
        return True
    kinds, how = get_type_hints(type(value)), BeartypeConf(is_pep484_tower=True)
    held = {f.name: getattr(value, f.name) for f in fields(value)}
    return all(is_bearable(held[name], kinds[name], conf=how) for name in held) and all(
        map(typed, held.values())
    )


def check_plan(drawn: tuple[Any, ...], folder: Path) -> None:
    sizes, augmentations, image_size, draw = drawn
    random = np.random.default_rng(draw)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    plan = Plan(main=tuple(augmentations))
    views = make_views(
        Pixels.pack(images), plan, seed=draw, epoch=draw, step=draw, index=np.arange(len(images)),
        image_size=image_size, mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    for view, augmentation in zip(views.main, augmentations, strict=True):
        side = augmentation.pixels(image_size)
        assert view.data.shape == (len(images), 3, side, side)
        assert torch.isfinite(view.data).all()
        assert view.made is not None
        if not augmentation.noise:
            assert float(view.data.abs().max()) <= 2.0 + 1e-5
        if augmentation.mask is not None:
            assert view.mask is not None
            assert int(view.mask.hidden.sum()) == len(images) * augmentation.mask.hidden


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimiser = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.randn(8, 3)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    return module, optimiser


def checkpoint(folder: Path) -> bytes:
    module, optimiser = trained()
    return save_checkpoint(folder / "made", 1, module, optimiser).read_bytes()


def archive(kind: str) -> bytes:
    def tar(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as out:
            for i in range(3):
                info = tarfile.TarInfo(f"{i}/a.png")
                info.size = len(encoded(i))
                out.addfile(info, io.BytesIO(encoded(i)))

    def packed(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as out:
            for i, how in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
                out.writestr(f"{i}/a.png", encoded(i), how)

    return in_memory(tar if kind == "tar" else packed)


def table() -> bytes:
    columns = {"image": [encoded(i) for i in range(6)], "kind": ["a", "b", None] * 2}
    return in_memory(lambda stream: pq.write_table(pa.table(columns), stream, row_group_size=4))


def manifest(folder: Path) -> bytes:
    build_manifest(open_source(RGB)).save(folder / "m.parquet")
    return (folder / "m.parquet").read_bytes()


def embeddings(folder: Path) -> bytes:
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    paths = [f"{i}.png" for i in range(20)]
    Embeddings(vectors, np.arange(20), np.array(["a", ""] * 10), {}, paths).save(folder / "e")
    return (folder / "e").read_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["SimCLR", "./a.py:A", "Plan", "Cosine", "float"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.text(max_size=5) | st.sampled_from(["type", "value", "main", "start"]), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip


def told_runs() -> Strategy:
    """A run.json of ours in which some values are something else."""
    masked = replace(SIMCLR, mask=Masking(grid=(2, 2)))
    told = replace(
        a_run("BYOL", plan=Plan(main=(masked, SIMCLR))), method_args={"momentum": Cosine(0.9, 1.0)}
    ).to_json()

    def changed(changes: dict[tuple[str, ...], Any]) -> dict[str, Any]:
        deep = json.loads(json.dumps(told))
        for way in sorted(changes, key=len, reverse=True):  # what stands within is there still
            *outer, name = way
            place = deep
            for step in outer:
                place = place[int(step) if step.isdecimal() else step]
            place[name] = changes[way]
        return deep

    view = ("plan", "main", "0")
    ways = [(name,) for name in told]
    ways += [("optimiser", name) for name in ("lr", "name", "type")]
    ways += [("method_args", "momentum", name) for name in ("start", "type")]
    ways += [(*view, name) for name in ("crop", "flip", "mask", "same_as", "tiles", "turns")]
    ways += [(*view, "type")]
    ways += [(*view, "mask", name) for name in ("grid", "kind", "stratified", "targets")]
    return st.dictionaries(st.sampled_from(ways), JSON, min_size=1, max_size=3).map(changed)


def shares() -> Strategy:
    return st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(lambda ab: tuple(sorted(ab)))


def plans() -> Strategy:
    probability = st.sampled_from([0.0, 0.5, 1.0])
    augmentation = st.builds(
        Augmentation, crop=st.none() | shares(), turns=st.none() | st.integers(0, 3),
        ratio=st.tuples(st.floats(0.01, 1), st.floats(1, 100)), flip=probability,
        jitter=probability, brightness=st.floats(0, 1), contrast=st.floats(0, 1),
        saturation=st.floats(0, 1), hue=st.floats(0, 0.5), grey=probability, blur=probability,
        solarise=probability, cutout=probability, noise=st.sampled_from([0.0, 0.1]),
        zeroed=probability, size=st.sampled_from([1.0, 0.5, 0.3]),
        mask=st.none() | st.builds(Masking, grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
                                   ratio=st.floats(0, 0.99)),
    )  # fmt: skip
    side = st.integers(1, 40) | st.integers(1, 300)
    sizes = st.lists(st.tuples(side, side), min_size=1, max_size=4)
    kinds = st.lists(augmentation, min_size=1, max_size=2)
    return st.tuples(sizes, kinds, st.integers(4, 48), st.integers(0, 1 << 30))


def attacks(folder: Path) -> dict[str, tuple[Strategy, Check]]:
    """What is drawn, and what must hold of it."""
    images = st.sampled_from([encoded(0, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")])

    def edited(data: Strategy | bytes) -> Strategy:
        return st.builds(
            damaged, data if isinstance(data, st.SearchStrategy) else st.just(data), EDITS
        )

    return {
        "image": (edited(images), check_image),
        "zip": (edited(archive("zip")), check_source(".zip")),
        "tar": (edited(archive("tar")), check_source(".tar")),
        "parquet": (edited(table()), check_source(".parquet")),
        "npy": (edited(in_memory(lambda s: np.save(s, RGB))), check_source(".npy")),
        "manifest": (edited(manifest(folder)), check_manifest),
        "embeddings": (edited(embeddings(folder)), check_embeddings),
        "checkpoint": (edited(checkpoint(folder)), check_checkpoint),
        "run.json": (told_runs(), check_run),
        "plan": (plans(), check_plan),
    }


NAMES = [
    "image", "zip", "tar", "parquet", "npy", "manifest", "embeddings", "checkpoint", "run.json",
    "plan",
]  # fmt: skip


def attacked(name: str, folder: Path, examples: int, number: int) -> None:
    """So many examples of an attack, drawn from a seed."""
    place = folder / "here"
    place.mkdir(exist_ok=True)
    drawn, check = attacks(folder)[name]

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(drawn)
    def attack(data: Any) -> None:
        check(data, place)

    attack()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds, which is meant
@pytest.mark.parametrize("name", NAMES)
def test_it_works_or_says_why(name: str, tmp_path: Path) -> None:
    attacked(name, tmp_path, FEW, 0)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_works_or_says_why_for_ten_minutes(
    name: str, tmp_path: Path, tally: Callable[[str, int], None]
) -> None:
    until, number = time.monotonic() + scaled(SECONDS), 1
    while time.monotonic() < until:
        attacked(name, tmp_path, 200, number)
        tally(f"examples of {name}", 200)
        number += 1


def test_the_names_are_all_the_attacks(tmp_path: Path) -> None:
    assert sorted(attacks(tmp_path)) == sorted(NAMES)


def test_damage_does_damage() -> None:
    data = bytes(range(200))
    assert damaged(data, [("set", 0.5, b"\0\0")]) == data[:100] + b"\0\0" + data[102:]
    assert damaged(data, [("insert", 0.0, b"ab")]) == b"ab" + data
    assert damaged(data, [("delete", 0.0, b"ab")]) == data[2:]
    assert damaged(data, [("cut", 0.1, b"1234567")]) == data[:20]
    assert damaged(data, [("repeat", 0.0, b"a")]) == data[:16] + data
