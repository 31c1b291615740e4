"""erg export: the encoder without erg."""

from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(export_, args=list(arguments), prog="erg export")


def export_(run: Path, out: Path = Path("export"), /) -> int:
    """Write config.json, model.safetensors, a model card and checksums.

    timm loads the folder; of our own networks, which it does not know, the model.py in it does.

    Args:
        run: the run folder.
        out: the folder to write.
    """
    from erg.apply.export import export
    from erg.commands.show import tell

    tell(f"Exported to {export(run, out)}; see its README.md for how to load it.")
    return 0
