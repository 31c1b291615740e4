"""The processes of a run: joining those that were started together, and leaving them."""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

from erg import distributed
from erg.data.source import DataError
from erg.train.run import Strategy
from erg.train.sharding import shard
from erg.views.kernels import compile_kernels

T = TypeVar("T")

PATIENCE = "ERG_TIMEOUT"
"""Environment variable: how long processes wait for each other [seconds]."""
PATIENT = timedelta(days=1000)
"""How long those of a machine wait for the one that decodes, which may take hours: as long as it
lives. Machines do not wait that long for each other."""


def leave_group() -> None:
    """End the process group, so that what follows on one process waits for no other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # What holds the group in a circle would abort the process when that ends.
        gc.collect()
        torch.distributed.destroy_process_group()


def machine() -> tuple[int, range]:
    """The number of this machine, and the ranks of all processes on it."""
    each = distributed.world() // int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    number = distributed.rank() // each
    return number, range(number * each, (number + 1) * each)


def once_a_machine(look: Callable[[], T]) -> T:
    """What a function returns in the first process of this machine, for all that are on it.

    The others wait meanwhile, and do not call it.

    Raises:
        DataError: the first process has met with it, and so all do; in the same way OSError.
    """
    if not distributed.active():
        return look()
    _, ranks = machine()
    # A process that dies ends the wait at once all the same, since its connections are closed.
    group = torch.distributed.new_group(
        list(ranks), timeout=PATIENT, backend="gloo", use_local_synchronization=True
    )
    assert not isinstance(group, int)  # which would say that this process is not in it
    found: list[Any] = [None]
    if distributed.rank() == ranks[0]:
        try:
            found = [look()]
        except (DataError, OSError) as error:
            found = [error]
    torch.distributed.broadcast_object_list(found, ranks[0], group)
    del group  # what is raised here would hold it, see `leave_group`
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def several_processes() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device | None = None) -> torch.device:
    """The device of this process, which first joins the others that torchrun started with it."""
    own = fabric_for(device).device
    compile_in_turn(own)
    return own


def compile_in_turn(device: torch.device) -> None:
    """The first process compiles what makes views; the others then load that from the cache."""
    if distributed.rank() == 0:
        compile_kernels()
    distributed.agree(False, device)  # the others wait here
    compile_kernels()


def fabric_for(device: torch.device | None, strategy: Strategy = "ddp") -> Fabric:
    """Device and process group; several processes are those that torchrun started."""
    accelerator = "auto" if device is None else device.type
    if not several_processes():
        one = 1 if device is None or device.index is None else [device.index]
        return Fabric(accelerator=accelerator, devices=one if accelerator == "cuda" else 1)
    # Gloo and NCCL would wait half an hour, or for ever, for a process that hangs.
    patience = timedelta(seconds=float(os.environ.get(PATIENCE, "600")))
    world, nodes = int(os.environ["WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    sharing = DDPStrategy(broadcast_buffers=False, timeout=patience)
    if strategy == "fsdp":
        sharing = ModelParallelStrategy(
            lambda method, mesh: shard(method, mesh["data_parallel"]),
            data_parallel_size=world, tensor_parallel_size=1, timeout=patience,
        )  # fmt: skip
    fabric = Fabric(
        accelerator=accelerator, devices=world // nodes, num_nodes=nodes, strategy=sharing
    )
    fabric.launch()
    return fabric
