"""What a row of the leaderboard would take, at a speed that is measured on this machine.

    python -m erg.recipes.estimates SimCLR R50 --devices 1 8 64 512
    python -m erg.recipes.estimates SEER RG-10B --like SimCLR R50 --devices 496

The first line measures how many images a second the row's encoder passes here, forward and
backward; the second how many another row's does, and scales them by their operations, where an
encoder is too large to try. What is printed are estimates: nothing of it was run.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from erg.allocator import blocks_kept
from erg.encoders import build_encoder
from erg.recipes.leaderboard import ROWS, Row
from erg.recipes.needs import Needs, crops, is_taught, needs, on_meta
from erg.train.features import computing_in
from erg.train.run import Run


@dataclass(frozen=True)
class Estimate:
    """What a run takes on some devices.

    Args:
        memory: of each device [GiB].
        hours: from start to end [hours].
        device_hours: of all devices together [hours].
    """

    memory: float
    hours: float
    device_hours: float


def estimate(run: Run, of: Needs, devices: int, speed: float) -> Estimate:
    """What a run takes on equal devices that share each batch, at no cost for talking.

    Args:
        run: whose batch and steps are taken.
        of: what `needs` counted.
        devices: number of them; every one holds all weights, or its share with fsdp.
        speed: of one [images a second], as `images_per_second` measures it.

    Raises:
        ValueError: more devices than images in a micro-batch.
    """
    micro = run.batch // run.accumulate
    if not 1 <= devices <= micro:
        raise ValueError(
            f"{devices} devices cannot share a micro-batch of {micro} images. Use 1 to {micro}."
        )
    share = -(-micro // devices)  # images of the fullest device
    state = of.state if run.strategy == "ddp" else of.state / devices + of.block
    memory = (state + share * of.activations) / 2**30
    device_hours = run.steps * run.accumulate * share * devices / speed / 3600
    return Estimate(memory, device_hours / devices, device_hours)


@blocks_kept()
def images_per_second(run: Run, *, batch: int = 8, steps: int = 3) -> float:
    """How many images pass the encoder of a run here, forward and backward, in all of their crops.

    On an accelerator where there is one, in the precision of the run, on tensors that are ready.
    Views, heads and losses are not in it; a teacher's passes are.

    Args:
        run: whose encoder and crops are taken.
        batch: images at once.
        steps: whose median is taken, after one that does not count.
    """
    method = on_meta(run)
    main, local = crops(run, method)
    taught = main if is_taught(method) else []
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    encoder = build_encoder(run.encoder, run.image_size, **run.encoder_args).to(device).train()
    if run.recompute:
        encoder.recompute()
    encoder = encoder.to(memory_format=torch.channels_last)
    views = {side: torch.randn(batch, 3, side, side, device=device) for side in {*main, *local}}
    views = {side: v.to(memory_format=torch.channels_last) for side, v in views.items()}
    seconds: list[float] = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        with computing_in(device, run.autocast(device)):
            for side in main + local:
                encoder(views[side]).float().square().mean().backward()
            with torch.no_grad():
                for side in taught:
                    encoder(views[side])
        encoder.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return batch / statistics.median(seconds[1:])


def named(method: str, backbone: str) -> Row:
    """A row of the leaderboard.

    Raises:
        ValueError: there is none.
    """
    for row in ROWS:
        if (row.method, row.backbone) == (method, backbone):
            return row
    rows = ", ".join(f"{row.method!r} {row.backbone!r}" for row in ROWS)
    raise ValueError(f"no row is called {method!r} {backbone!r}. There are {rows}.")


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table of estimates."""

    def table(
        row: Annotated[tuple[str, str], tyro.conf.Positional],
        like: tuple[str, str] | None = None,
        devices: tuple[int, ...] = (),
        batch: int = 8,
        steps: int = 3,
    ) -> None:
        """Estimate what a row of the leaderboard takes.

        Args:
            row: method and backbone, as the leaderboard calls them.
            like: method and backbone of the row to measure instead; its speed is scaled.
            devices: numbers of devices; those of 1, 8, 64 and 512 that the batch allows if none are
                given.
            batch: images at once while measuring.
            steps: that are measured.
        """
        run, tried = named(*row).run(), named(*(like or row)).run()
        of = needs(run)
        measured = images_per_second(tried, batch=batch, steps=steps)
        speed = measured * (needs(tried).operations / of.operations if like else 1.0)
        print(f"measured here: {measured:.3g} images/s of {' '.join(like or row)}")
        print(f"estimated of {' '.join(row)}: {speed:.3g} images/s; {of.encoder:,} parameters\n")
        print("| devices | GiB of each | hours | device-hours |\n|---:|---:|---:|---:|")
        micro = run.batch // run.accumulate
        for count in devices or [n for n in (1, 8, 64, 512) if n <= micro]:
            found = estimate(run, of, count, speed)
            print(
                f"| {count} | {found.memory:.1f} | {found.hours:,.0f} | {found.device_hours:,.0f} |"
            )

    tyro.cli(table, args=arguments, prog="python -m erg.recipes.estimates")


if __name__ == "__main__":
    main(sys.argv[1:])
