"""Images in stores elsewhere: a folder of them, archives or tables, read where they lie."""

from typing import Any

from erg.data import archives, tables
from erg.data.opening import MAX_BYTES, SUFFIXES, UnreadableImage
from erg.data.places import Remote, system_of
from erg.data.source import (
    DataError,
    Item,
    Source,
    check_folder_label,
    folder_label,
    is_image_name,
    printable,
)


class Objects(Source):
    """Image files of a store.

    Args:
        places: of the files.
        names: their names relative to the folder.
        spec: its address.
        labelled: whether the folder an image lies in is its label.
    """

    def __init__(
        self, places: list[Remote], names: list[str], spec: str, *, labelled: bool
    ) -> None:
        self.places, self.names, self.spec, self.labelled = places, names, spec, labelled

    def __len__(self) -> int:
        return len(self.places)

    def path(self, i: int) -> str:
        return printable(self.names[i])

    def item(self, i: int) -> Item:
        place = self.places[i]
        if place.size > MAX_BYTES:
            raise UnreadableImage(f"{place.size:,} bytes are more than the limit of {MAX_BYTES:,}.")
        return place.read(0, place.size)

    def offset(self, i: int) -> int:
        return 0

    def label(self, i: int) -> str | None:
        return folder_label(self.names[i]) if self.labelled else None

    def describe(self) -> str:
        return f"{len(self):,} image files in {printable(str(self.spec))}"


def open_remote(address: str, label: str | None) -> Source:
    """What `open_source` gives for a network address.

    Raises:
        DataError: the store is not known or does not answer, or nothing usable is there.
    """
    system, path = system_of(address)
    try:
        found = _files(system, path, address)
    except Exception as error:  # stores raise what they like
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{printable(address)} cannot be read ({type(error).__name__}: {error}). Check the "
            "address and the rights to it."
        ) from error
    images = {name: place for name, place in found.items() if is_image_name(name)}
    if images:
        labelled = check_folder_label(label, printable(address))
        return Objects(list(images.values()), list(images), address, labelled=labelled)
    parts = [place for name, place in found.items() if name.lower().endswith(tuple(tables.PARQUET))]
    if parts:
        return tables.open_parquet(parts, address, label)
    packed = [place for name, place in found.items() if archives.is_archive_name(name)]
    if packed:
        return archives.Archives(packed, address, label)
    raise DataError(
        f"{printable(address)} holds no image, archive or table. Give another address; endings "
        "decide."
    )


def _files(system: Any, path: str, address: str) -> dict[str, Remote]:
    """Files by name relative to the address, in the order of their names."""
    ending = "." + path.rpartition(".")[2].lower()
    if ending in SUFFIXES or ending in tables.PARQUET or ending in archives.ARCHIVES:
        place = Remote(system, path, address)
        return {place.name: place}
    root = path.rstrip("/") + "/"
    found = sorted(
        (name, about.get("size"))
        for name, about in system.find(path, detail=True).items()
        if name.startswith(root)
    )
    places = [
        Remote(
            system, name, system.unstrip_protocol(name), name=name.removeprefix(root), size=size
        )
        for name, size in found
    ]  # fmt: skip
    return {place.name: place for place in places}
