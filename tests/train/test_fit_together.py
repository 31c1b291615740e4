"""Two processes of one machine: the first decodes for both, and both read its file.

One pair of processes is started for all tests: they run this very file, scene by scene, and leave
what they have seen in a folder.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erg import distributed
from erg.cli import main
from erg.data import manifest as manifests
from erg.data import stream
from erg.data.cache import Cache
from erg.data.masked import Masked, masks_of
from erg.data.scenes import world
from erg.data.source import DataError, open_source
from erg.train.data import open_data
from erg.train.fit import fit
from erg.train.folder import RunFolder
from erg.train.launch import MARKER
from erg.train.preempt import Stopped
from erg.train.processes import PATIENCE, fabric_for, leave_group
from erg.train.run import Run
from tests.train.test_fit import SMALL, StopAt

PICTURES, DAMAGED, MASKS = 40, 2, 39
SHORT = 5
"""How long the group of the processes waits in the first scene [s]."""
SCENES = ["apart", "bad", "begun", "alone", "again", "dies"]


class Decoded:
    """Counts images that are looked at, and that are read again later."""

    def __init__(self) -> None:
        self.looked = self.again = 0
        measure, decode = manifests.measure_and_load, stream.decode_item

        def measured(*given: Any, **named: Any) -> Any:
            self.looked += 1
            return measure(*given, **named)

        def decoded(*given: Any, **named: Any) -> Any:
            self.again += 1
            return decode(*given, **named)

        manifests.measure_and_load, stream.decode_item = measured, decoded

    def since(self) -> tuple[int, int]:
        """How many of each since this was last asked."""
        found = self.looked, self.again
        self.looked = self.again = 0
        return found


def child(rank: int, out: Path, ports: list[str]) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    counted, seen = Decoded(), {}
    for scene, port in zip(SCENES, ports, strict=True):
        os.environ |= {"MASTER_PORT": port, MARKER: str(out / f"code-{scene}")}
        if scene == "apart":
            meet(rank, out)
            os.environ[PATIENCE] = str(SHORT)
            fabric_for(torch.device("cpu"))
            os.environ[PATIENCE] = "60"
            for name, budget in (("kept", None), ("streamed", 1), ("slow", None)):
                seen[name] = opens(out, name, budget, counted)
            seen["read in vain"] = in_vain(out)
            os.environ["GROUP_WORLD_SIZE"] = "2"  # as if each were on a machine of its own
            seen["machines"] = opens(out, "machines", None, counted)
            del os.environ["GROUP_WORLD_SIZE"]
            seen["left"] = leaves(RunFolder(out / "machines"))
            leave_group()
        elif scene in ("bad", "dies"):
            if scene == "dies" and rank == 0:
                manifests.measure_and_load = dies
            said, since = io.StringIO(), time.monotonic()
            with redirect_stderr(said):
                code = main(command(out, "bad" if scene == "bad" else "pictures", scene))
            seen[scene] = [code, said.getvalue(), time.monotonic() - since]
        elif scene != "alone" or rank == 0:
            seen[scene] = sits(out, scene, counted)
        (out / f"seen-{rank}.json").write_text(json.dumps(seen))


def meet(rank: int, out: Path) -> None:
    """Wait until both have imported what they need."""
    (out / f"there-{rank}").touch()
    while not (out / f"there-{1 - rank}").exists():
        time.sleep(0.01)


def dies(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def command(out: Path, data: str, name: str) -> list[str]:
    return [
        "pretrain", str(out / data), "--method", "SimCLR", "--encoder", "conv", "--image-size",
        "16", "--batch", "8", "--steps", "2", "--no-report", "--out", str(out / f"run-{name}"),
    ]  # fmt: skip


def opens(out: Path, name: str, budget: int | None, counted: Decoded) -> dict[str, Any]:
    """What a process holds of pictures and masks, and how many of both it has decoded for it."""
    source, folder = open_source(out / "pictures"), RunFolder(out / name)
    waited = 0

    def wait(done: int, total: int) -> None:
        nonlocal waited
        if name == "slow" and done == total and not waited:
            waited = SHORT + 1
            time.sleep(waited)

    counted.since()
    data, manifest = open_data(
        source, folder, image_size=16, masks=masks_of(source, str(out / "masks")), budget=budget,
        progress=wait,
    )  # fmt: skip
    looked = counted.since()[0]
    masked = data.images
    assert isinstance(masked, Masked)
    pixels = masked.pixels(manifest.ok)
    every = [pixels.image(i) for i in range(len(manifest.ok))]
    assert pixels.masks is not None
    shapes = np.stack([pixels.masks.height, pixels.masks.width])
    return {
        "looked": looked, "waited": waited, "manifest": manifest.table.to_pylist(),
        "masks": masked.found.table.to_pylist(), "kinds": [kind(masked.images), kind(masked.masks)],
        "sum": int(sum(image.astype(np.int64).sum() for image in every)),
        "shapes": shapes.tolist(), "held": data.held.tolist(),
    }  # fmt: skip


def kind(images: Any) -> str:
    """The file that images are mapped from, or their class."""
    if isinstance(images, Cache) and isinstance(images.flat.base, np.memmap):
        return Path(images.flat.base.filename).name
    return type(images).__name__


def in_vain(out: Path) -> str:
    """What each process says of a folder in which too many pictures are damaged."""
    try:
        open_data(open_source(out / "bad"), RunFolder(out / "vain"), image_size=16)
    except DataError as error:
        return str(error)
    return "nothing"


def leaves(folder: RunFolder) -> list[list[str]]:
    """The files of both machines, before and after the first has tidied up."""
    distributed.agree(False)
    found = [names(folder)]
    distributed.agree(False)
    if distributed.rank() == 0:
        folder.drop_cache()
    distributed.agree(False)
    return [*found, names(folder)]


def names(folder: RunFolder) -> list[str]:
    """The files in a folder, without those in folders there."""
    return sorted(path.name for path in folder.path.iterdir() if path.is_file())


def sits(out: Path, scene: str, counted: Decoded) -> dict[str, Any]:
    """What becomes of the decoded images in a sitting of a run."""
    run = Run(
        method="RELICv2", method_args=SMALL, encoder="conv", encoder_args={"width": 4, "stages": 2},
        image_size=16, data=str(out / "pictures"), mask=str(out / "masks"), batch=16, steps=6,
        precision="32",
    )  # fmt: skip
    folder, said = RunFolder(out / "run"), list[str]()
    show = {"begun": StopAt(2), "alone": StopAt(4), "again": None}[scene]
    os.environ["WORLD_SIZE"] = "1" if scene == "alone" else "2"
    counted.since()
    try:
        fit(
            run, out=folder.path, observers=(), show=show, tell=said.append,
            resume=scene != "begun",
        )  # fmt: skip
        ended = "done"
    except Stopped as stopped:
        ended = f"stopped after {stopped.step}"
    os.environ["WORLD_SIZE"] = "2"
    # What the other one removes at the end may still be there.
    files = [] if scene == "again" else [path for path in names(folder) if "cache" in path]
    made = {name: (folder.path / name).stat().st_mtime_ns for name in files}
    return {"decoded": counted.since(), "ended": ended, "made": made, "said": said}


def free_ports(count: int) -> list[str]:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in free]
    for each in free:
        each.close()
    return ports


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    square = np.zeros((32, 32), dtype=np.uint8)
    square[8:24, 8:24] = 255
    for name in ("pictures", "masks", "bad"):
        (out / name).mkdir()
    for i, image in enumerate(world(PICTURES, size=32).images):
        Image.fromarray(image).save(out / "pictures" / f"{i:02d}.png")
        Image.fromarray(image).save(out / "bad" / f"{i:02d}.png")
        if i < MASKS:
            Image.fromarray(square).save(out / "masks" / f"{i:02d}.png")
    for i in range(DAMAGED):
        (out / "pictures" / f"damaged-{i}.png").write_text("no image")
    for i in range(0, PICTURES, 2):
        (out / "bad" / f"{i:02d}.png").write_text("no image")
    ports = free_ports(len(SCENES))
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(out), *ports],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]),
                "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
            },
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    ended = [process.returncode for process in running]
    assert ended == [-signal.SIGKILL, 0], "\n".join(text[-3000:] for text in said)
    return out


@pytest.fixture(scope="module")
def seen(together: Path) -> list[dict[str, Any]]:
    """What each of the two has seen."""
    return [json.loads((together / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["kept", "streamed", "slow"])
def test_the_first_process_decodes_each_image_once_for_both(
    name: str, seen: list[dict[str, Any]]
) -> None:
    first, second = (each[name] for each in seen)
    assert (first.pop("looked"), second.pop("looked")) == (PICTURES + DAMAGED + MASKS, 0)
    waited = first.pop("waited"), second.pop("waited")
    assert waited == ((SHORT + 1, 0) if name == "slow" else (0, 0))
    assert first == second
    files = ["Stream", "Stream"] if name == "streamed" else ["cache.u8", "cache.u8.masks"]
    assert first["kinds"] == files
    assert first["sum"] == seen[0]["kept"]["sum"]
    assert sum(row["status"] == "ok" for row in first["manifest"]) == PICTURES
    assert sum(side > 0 for side in first["shapes"][0]) == MASKS


def test_each_machine_has_a_file_of_its_own(seen: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(seen):
        assert each["machines"]["looked"] == PICTURES + DAMAGED + MASKS
        file = f"cache{rank or ''}.u8"
        assert each["machines"]["kinds"] == [file, f"{file}.masks"]
        assert each["machines"]["sum"] == each["kept"]["sum"]
        before, after = each["left"]
        ends = ("", ".json", ".masks", ".masks.json")
        assert before == sorted(f"cache{n}.u8{end}" for n in ("", "1") for end in ends)
        assert after == []


def test_what_the_first_process_cannot_use_ends_both_with_one_line(
    seen: list[dict[str, Any]], together: Path
) -> None:
    assert seen[0]["read in vain"] == seen[1]["read in vain"]
    assert "20 of 40 items of" in seen[0]["read in vain"]
    codes, said, seconds = zip(*(each["bad"] for each in seen), strict=True)
    assert codes == (3, 3)
    assert (together / "code-bad").read_text() == "3"
    lines = [line for text in said for line in text.splitlines() if line.startswith("erg:")]
    assert len(lines) == 1
    assert "20 of 40 items of" in lines[0]
    assert max(seconds) < 30, "nobody has waited for the other in vain"
    assert not list((together / "run-bad").glob("*cache*"))


def test_two_one_and_two_processes_read_one_file(
    seen: list[dict[str, Any]], together: Path
) -> None:
    begun, others = (each["begun"] for each in seen)
    assert begun["ended"] == others["ended"] == "stopped after 2"
    assert (begun["decoded"], others["decoded"]) == ([PICTURES + DAMAGED + MASKS, 0], [0, 0])
    assert sorted(begun["made"]) == [
        "cache.u8", "cache.u8.json", "cache.u8.masks", "cache.u8.masks.json",
    ]  # fmt: skip
    assert any("MB on disk, for all processes of a machine." in line for line in begun["said"])
    alone = seen[0]["alone"]
    assert (alone["ended"], alone["decoded"], alone["made"]) == (
        "stopped after 4", [0, 0], begun["made"],
    )  # fmt: skip
    assert any(line.endswith("MB on disk.") for line in alone["said"])
    for each in seen:
        assert (each["again"]["ended"], each["again"]["decoded"]) == ("done", [0, 0])
    assert not list((together / "run").glob("*cache*"))
    assert (together / "run" / "encoder" / "config.json").exists()


def test_others_do_not_wait_for_a_process_that_dies_while_it_decodes(
    seen: list[dict[str, Any]],
) -> None:
    code, said, seconds = seen[1]["dies"]
    assert code == 1
    assert "erg: another process of this run has died or does not answer" in said
    assert seconds < 30


if __name__ == "__main__":
    child(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
