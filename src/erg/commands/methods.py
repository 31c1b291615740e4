"""erg methods: what there is to choose from."""

import inspect
from collections.abc import Sequence

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(methods, args=list(arguments), prog="erg methods")


def methods(name: str | None = None, /) -> int:
    """List the methods, or show one: its energy, what shapes it, its arguments.

    Args:
        name: of the method to show.
    """
    from erg import catalog
    from erg.commands.show import console, tell

    if name is not None:
        kind = catalog.find(name)
        tell(inspect.cleandoc(kind.__doc__ or ""))
        tell(f"\n{kind.cell.architecture}, {kind.cell.shaping}: {kind.cell.by}\n")
        for argument, parameter in catalog.arguments(kind).items():
            tell(f"  --method.{argument.replace('_', '-')} {parameter.default}")
        return 0
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("method", "architecture", "shaping", "by"):
        table.add_column(title)
    for known in catalog.names():
        cell = catalog.find(known).cell
        table.add_row(*(Text(t) for t in (known, cell.architecture, cell.shaping, cell.by)))
    console.print(table)
    tell("erg methods NAME shows its equation and its arguments.")
    return 0
