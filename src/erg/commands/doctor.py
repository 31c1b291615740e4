"""erg doctor: is this machine ready?"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(doctor, args=list(arguments), prog="erg doctor")


def doctor() -> int:
    """Show versions, devices, memory and disk, and what is wrong with them.

    What makes views is compiled here, so that the first run need not wait for it.
    """
    from erg.commands.show import compiling, tell, warn

    compiling()
    for name, value in facts().items():
        tell(f"{name:<18}{value}")
    troubles = problems()
    for trouble in troubles:
        warn(trouble)
    if not troubles:
        tell("All is well.")
    return 0


def facts() -> dict[str, str]:
    """Versions, devices, memory and disk, by name."""
    import torch

    from erg.allocator import described
    from erg.train.run import environment, has_bf16_instructions
    from erg.views.kernels import kept_in

    found = dict(environment())
    found["bf16 on CPU"] = "yes, used" if has_bf16_instructions() else "no"
    if torch.cuda.is_available():
        found["GPU"] = f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} in all"
    else:
        found["GPU"] = "Apple MPS" if torch.backends.mps.is_available() else "none"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory"] = f"{memory / 2**30:.1f} GiB"
    found["disk free here"] = f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"
    found["allocator"] = described()
    found["view kernels"] = f"compiled, kept in {kept_in() or 'no folder'}"
    return found


def problems() -> list[str]:
    """What would go wrong, and what to do about it."""
    from erg.views.kernels import kept_in

    found: list[str] = []
    if kept_in() is None:
        found.append(
            "No folder takes the compiled view kernels, so every command compiles them anew. Set "
            "NUMBA_CACHE_DIR to one that can be written to."
        )
    if shutil.disk_usage(".").free < 2**30:
        found.append("Less than 1 GiB is free here. Make room, or use --out on another disk.")
    if not os.access(Path("."), os.W_OK):
        found.append("This folder cannot be written to. Use --out.")
    if shutil.disk_usage(tempfile.gettempdir()).free < 2**28:
        found.append("The temporary folder is nearly full. Set TMPDIR to another disk.")
    return found
