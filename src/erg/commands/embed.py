"""erg embed: a vector for every image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return embed(tyro.cli(Options, args=list(arguments), prog="erg embed"), list(arguments))


@dataclass(frozen=True)
class Options:
    """Write a parquet file with id, path, vector and label of every readable image.

    Stopped, it goes on where it was when the command is repeated, with any number of processes.

    Args:
        model: a run folder, or a folder with an encoder (an export).
        data: images.
        out: the parquet file; until it is whole, its parts stand in OUT.parts.
        label: where labels are found, to be kept beside the vectors.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
        devices: processes on this machine; under torchrun or SLURM those it started.
        max_skipped: largest share of unreadable files.
    """

    model: tyro.conf.Positional[Path]
    data: tyro.conf.Positional[str]
    out: Path = Path("embeddings.parquet")
    label: str | None = None
    method: str | None = None
    device: str | None = None
    devices: int = 1
    max_skipped: float = 0.2


def embed(options: Options, arguments: list[str]) -> int:
    """Carry out the command; the exit code."""
    from erg.commands.options import is_run, where
    from erg.train.launch import in_group, relaunch

    folder = options.model
    of_run = is_run(folder, options.method)
    if options.devices > 1 and not in_group():
        return relaunch(["embed", *arguments], options.devices)
    from erg.apply.embed import embedder
    from erg.apply.parts import embed_to_file
    from erg.commands.show import compiling, counting, tell
    from erg.train.fitted import load
    from erg.train.processes import join

    wanted = where(options.device)
    compiling()
    device = join(wanted)
    chosen = load(folder, method=options.method, device=str(device)) if of_run else folder
    model = embedder(chosen, device)
    with counting("Embedding") as progress:
        found = embed_to_file(
            model, options.data, options.out, label=options.label,
            max_skipped=options.max_skipped, progress=progress,
        )  # fmt: skip
    if found is not None:
        tell(f"{found[0]} vectors of {found[1]} values in {options.out}.")
    return 0
