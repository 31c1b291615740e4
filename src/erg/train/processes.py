"""The processes of a run: joining those that were started together, and leaving them."""

import gc
import os
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

from erg import distributed
from erg.train.run import Strategy
from erg.train.sharding import shard
from erg.views.kernels import compile_kernels

PATIENCE = "ERG_TIMEOUT"
"""Environment variable: how long processes wait for each other [seconds]."""


def leave_group() -> None:
    """End the process group, so that what follows on one process waits for no other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # What holds the group in a circle would abort the process when that ends.
        gc.collect()
        torch.distributed.destroy_process_group()


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
