"""Image files on a disk: a folder of them, or a list."""

import os
from collections import Counter
from pathlib import Path, PurePosixPath

from erg.data.archives import Archives, is_archive_name
from erg.data.opening import read_file
from erg.data.places import Local, allow_handles
from erg.data.source import (
    DataError,
    Item,
    Source,
    Spec,
    check_folder_label,
    folder_label,
    is_image_name,
    printable,
)
from erg.data.tables import PARQUET, open_parquet


class Files(Source):
    """Image files on a disk.

    Args:
        files: what to open.
        names: their names, with `/`.
        labelled: whether the folder an image lies in is its label.
        spec: what `open_source` opens again.
        text: what `describe` says.
    """

    def __init__(
        self, files: list[str], names: list[str], *, labelled: bool, spec: Spec, text: str
    ) -> None:
        self.files, self.names, self.labelled = files, names, labelled
        self.spec, self.text = spec, text

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> str:
        return printable(self.names[i])

    def item(self, i: int) -> Item:
        return read_file(Path(self.files[i]))

    def offset(self, i: int) -> int:
        return 0

    def label(self, i: int) -> str | None:
        return folder_label(self.names[i]) if self.labelled else None

    def describe(self) -> str:
        return self.text


def listed(files: list[str], label: str | None, spec: Spec = None) -> Files:
    """The files of a list, whatever their ending, in its order."""
    full = [os.path.abspath(file) for file in files]
    try:
        root = os.path.commonpath([os.path.dirname(file) for file in full])
    except ValueError:  # Windows: on several drives
        root = ""
    names = [Path(os.path.relpath(file, root) if root else file).as_posix() for file in full]
    return Files(
        files,
        names,
        labelled=check_folder_label(label, "a list of files"),
        spec=spec if spec is not None else files,
        text=f"{len(files):,} listed files"
        if len(files) > 1
        else f"the image {printable(names[0])}",
    )


def open_folder(root: Path, label: str | None, follow_links: bool) -> Source:
    found, left_out = walk(root, follow_links)
    names = [name for name in found if is_image_name(name)]
    others = [name for name in found if not is_image_name(name)]
    files = [] if names else [name for name in others if (root / name).is_file()]
    if parts := [name for name in files if Path(name).suffix.lower() in PARQUET]:
        allow_handles(2 * len(parts), str(root))
        return open_parquet([Local(root / name, name) for name in parts], str(root), label)
    if shards := [name for name in files if is_archive_name(name)]:
        allow_handles(len(shards), str(root))
        return Archives([Local(root / name, name) for name in shards], str(root), label)
    if others:
        endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
        listed = ", ".join(printable(ending) for ending, _ in endings.most_common(3))
        left_out[f"files that are no images ({listed})"] = len(others)
    rest = "; left out: " + ", ".join(f"{n:,} {what}" for what, n in left_out.items())
    rest = rest if left_out else ""
    if not names:
        raise DataError(
            f"{printable(str(root))} holds no image file{rest}. Give another folder, or a list of "
            "paths for images with other endings."
        )
    return Files(
        [os.path.join(root, name) for name in names],
        names,
        labelled=check_folder_label(label, printable(str(root))),
        spec=str(root),
        text=f"{len(names):,} image files in {printable(str(root))}{rest}",
    )


def walk(root: Path, follow_links: bool) -> tuple[list[str], Counter[str]]:
    """Names of all files below a folder, sorted, and what was left out, counted.

    A link to a folder inside the root adds nothing and is not followed, so there are no loops; a
    link out of the root is followed only when asked, and then each folder is entered once.
    """
    real_root = os.path.realpath(root)
    found: list[str] = []
    left_out: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = os.path.join(root, prefix)
        try:
            if follow_links:
                about = os.stat(folder)
                if (about.st_dev, about.st_ino) in entered:
                    continue
                entered.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as inside:
                # The first one by name is entered first, whatever the disk's own order.
                entries = sorted(inside, key=lambda entry: entry.name, reverse=True)
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            try:
                is_folder = entry.is_dir()  # costs nothing, but for links
            except OSError:  # a link to itself
                is_folder = False
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                inside = (target + os.sep).startswith(real_root.rstrip(os.sep) + os.sep)
                if not inside and not follow_links:
                    left_out["links out of the folder (follow_links=True follows them)"] += 1
                    continue
                if is_folder and inside:
                    continue
            name = prefix + entry.name
            waiting.append(name + "/") if is_folder else found.append(name)
    return sorted(found), left_out
