"""Checkpoints in shards: every process writes the shares it holds, and reads those it needs.

torch.distributed.checkpoint plans who writes what, tells all processes what went wrong on any, and
gives shares to any number of them. Its own files describe themselves in a pickle, so these are
safetensors, laid out as its HuggingFaceStorageReader reads them. A JSON file beside their folder
holds the checksum of each and is written last: before it is there, there is no checkpoint.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as save_together
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from erg import distributed
from erg.durable import (
    check_room,
    check_written,
    explained,
    open_regular,
    read_json,
    sha256,
    write_atomically,
)

HEADER = 1 << 24
"""Longest header of safetensors that is read [bytes]; ours take about 100 bytes a tensor."""

Kind = tuple[torch.dtype, tuple[int, ...]]
"""Type and whole shape of a tensor."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is as it was written; nothing but headers was read of it so far.

    Args:
        about: format, step, and the optimiser's plain numbers as JSON.
        kinds: of all tensors, by name.
        take: read tensors by name, each for what it will replace: in shares where that is, else
            whole and on the CPU; None where they cannot be read.
    """

    about: Mapping[str, str]
    kinds: dict[str, Kind]
    take: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def save_shards(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a shard on every process and, once all are whole, the file that makes them count.

    All processes have to call this, and all raise the same where one fails.

    Args:
        path: of the JSON file; the shards stand in a folder of its name.
        tensors: by name, in shares, or whole and the same everywhere.
        about: what the file says besides.

    Raises:
        NoSpace: the disk has not enough room.
        Unwritable: a file cannot be written, or does not read back.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        # In order of their names: who writes what all hold depends on it.
        ordered = {name: tensors[name] for name in sorted(tensors)}
        save_together(ordered, storage_writer=_Writer(path, about), planner=planner)
    except CheckpointException as failed:
        error, _ = next(iter(failed.failures.values()))
        raise error from None


class _Writer(HuggingFaceStorageWriter):
    """Shards that are whole or not there, with their checksums."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        super().__init__(str(_folder(path)), save_distributed=True)
        self.file, self.folder, self.about = path, _folder(path), about

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if distributed.rank() == 0:
            with explained(self.folder):
                self.folder.parent.mkdir(exist_ok=True)
                remove_shards(self.file)  # what a killed process left
                self.folder.mkdir()
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        held = [_told(item) for plan in plans for item in plan.items]
        size = sum(t.chunk.sizes.numel() * t.properties.dtype.itemsize for t in held)
        check_room(self.folder, size)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        for item in plan.items:
            found = planner.resolve_data(item)
            assert isinstance(found, Tensor)
            # One at a time; a copy, since two names may be one tensor.
            tensors[item.index.fqn] = found.detach().cpu().clone().contiguous()
            offsets[item.index.fqn] = {"saved_offsets": list(_told(item).chunk.offsets)}
        content = save(tensors, {"DCP_SHARDING_INFO": json.dumps(offsets)})
        path = self.folder / _name(plan.storage_data["shard_index"])
        write_atomically(path, content)
        written = WriteResult(MetadataIndex(path.name), len(content), check_written(path, content))
        future: Future[list[WriteResult]] = Future()
        future.set_result([written])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        shards = {shard.index.fqn: shard.storage_data for rank in results for shard in rank}
        write_atomically(self.file, json.dumps({**self.about, "shards": shards}).encode())


class _Listed(FileSystem):
    """A folder in which only these files are seen: those with a checksum."""

    def __init__(self, files: list[Path]) -> None:
        self.files = [str(file) for file in files]

    def ls(self, path: Any) -> list[str]:
        return self.files


def open_shards(path: Path) -> Saved | None:
    """A checkpoint from its JSON file; None where anything of it is missing or damaged.

    Of several processes each looks after its part of the checksums, so that they have to agree
    on the answer.
    """
    told = _listed(path)
    if told is None or not _as_written(path, told[1], distributed.rank(), distributed.world()):
        return None
    about, shards = told
    return open_files([_folder(path) / name for name in shards], about)


def open_files(files: list[Path], about: Mapping[str, str]) -> Saved | None:
    """Tensors that lie, whole or in pieces, in some files; None where these are damaged."""
    reader = HuggingFaceStorageReader(str(files[0].parent))
    reader.fs = _Listed(files)
    try:
        if any(_header(file) > HEADER for file in files):
            return None
        metadata = reader.read_metadata()
        kinds = {name: _kind(stored) for name, stored in metadata.state_dict_metadata.items()}
    except Exception:  # it trusts what headers say, so that a forged one may raise anything
        return None

    def take(likes: dict[str, Tensor]) -> dict[str, Tensor] | None:
        found = {
            name: torch.empty_like(like)
            if isinstance(like, DTensor)
            else torch.empty(like.shape, dtype=like.dtype)
            for name, like in likes.items()
        }
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(found, metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        try:
            reader.read_data(planner.create_local_plan(), planner).wait()
        except Exception:  # as above
            return None
        return found

    return Saved(about, kinds, take)


def shards_whole(path: Path) -> bool:
    """Whether all shards of a checkpoint are as they were written."""
    told = _listed(path)
    return told is not None and _as_written(path, told[1])


def remove_shards(path: Path) -> None:
    """Remove a checkpoint, first of all what makes it one."""
    path.unlink(missing_ok=True)
    if _folder(path).is_dir():
        shutil.rmtree(_folder(path))


def _listed(path: Path) -> tuple[dict[str, str], dict[str, str]] | None:
    """What the JSON file says, and the checksum of every shard by name."""
    try:
        about = read_json(path, longest=HEADER)
    except (OSError, ValueError):
        return None
    shards = about.pop("shards", None)
    if not isinstance(shards, dict) or not shards:
        return None
    there = sorted(file.name for file in _folder(path).glob("*"))
    named = there == sorted(shards) == [_name(number) for number in range(1, len(shards) + 1)]
    texts = all(isinstance(value, str) for value in [*about.values(), *shards.values()])
    return (about, shards) if named and texts else None


def _as_written(path: Path, shards: dict[str, str], first: int = 0, every: int = 1) -> bool:
    return all(sha256(_folder(path) / name) == shards[name] for name in [*shards][first::every])


def _kind(stored: Any) -> Kind:
    """Type and shape of a tensor of which every row is there, and there once.

    Raises:
        ValueError: there are gaps, overlaps, or no tensor.
    """
    if not isinstance(stored, TensorStorageMetadata):
        raise ValueError("it is no tensor")
    size, rows = tuple(stored.size), 0
    for piece in sorted(stored.chunks, key=lambda piece: tuple(piece.offsets)):
        first, *others = piece.offsets or (0,)
        high, *rest = piece.sizes or (1,)
        if (high and first != rows) or any(others) or tuple(rest) != size[1:]:
            raise ValueError("it has gaps or overlaps")
        rows += high
    if rows != (size or (1,))[0]:
        raise ValueError("its last rows are missing")
    return stored.properties.dtype, size


def _header(file: Path) -> int:
    """How long a file of safetensors says that its header is [bytes]."""
    with open_regular(file) as start:
        return int.from_bytes(start.read(8), "little")


def _told(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None, "everything that is saved is a tensor"
    return item.tensor_data


def _folder(path: Path) -> Path:
    return path.with_suffix("")


def _name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"
