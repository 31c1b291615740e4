"""What all tests share: shapes checked at run time, golden numbers, real data, no network."""

import os

# Before anything imports huggingface_hub, which reads it once: a test that needs the network is
# a wrong test, and without this a missing one costs minutes of retries.
os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
import json
import math
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from torch import Tensor

HERE = Path(__file__).parent
UNCHECKED = {
    # numba compiles these functions; it cannot compile the wrapper that checks shapes.
    "erg.views.kernels",
    # These refuse wrong shapes and types themselves, in words that their tests read.
    "erg.embeddings",
    "erg.evaluate",
    "erg.explore",
    "erg.schedule",
    "erg.train.run",
    "erg.views.make",
    "erg.views.plan",
    "erg.views.render",
}


def _checked() -> list[str]:
    """Names of the modules and packages of erg, none of them imported yet."""
    spec = importlib.util.find_spec("erg")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found: list[str] = []
    for root in spec.submodule_search_locations:
        for module in pkgutil.iter_modules([root], "erg."):
            inner = Path(root, module.name.removeprefix("erg."))
            if any(name.startswith(module.name + ".") for name in UNCHECKED):
                found += [m.name for m in pkgutil.iter_modules([str(inner)], module.name + ".")]
            else:
                found.append(module.name)
    return sorted(set(found) - UNCHECKED)


# The numeric tower: to a type checker an int is a float, so it is here too.
install_import_hook(
    _checked(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# A fixed number, since the order of sums, and with it the last bits, depends on how many threads
# share them. One, since the tensors of tests are small and threads that wait for each other spin:
# with two threads and both cores busy with something else, 60 Lloyd steps on 200 points took
# 3.6 s instead of 0.01 s.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Golden:
    """Numbers computed elsewhere from arrays without randomness, to so many digits.

    Args:
        source: text they come from.
        arrays: n, d, a, b, c, f of each array f(a + b i + c j + 0.37 i j).
        oracles: each with its section of the source, value and number of decimals.
    """

    source: str
    arrays: dict[str, list[Any]]
    oracles: dict[str, dict[str, Any]]

    def array(self, name: str) -> Tensor:
        """An array of the fixture, float64."""
        n, d, a, b, c, f = self.arrays[name]
        wave = {"sin": math.sin, "cos": math.cos}[f]
        rows = [[wave(a + b * i + c * j + 0.37 * i * j) for j in range(d)] for i in range(n)]
        return torch.tensor(rows, dtype=torch.float64)

    def unit(self, name: str) -> Tensor:
        """Its rows divided by their norms, without help from the code under test."""
        x = self.array(name)
        return x / x.square().sum(1, keepdim=True).sqrt()

    def agrees(self, name: str, computed: Tensor | float | Sequence[float]) -> bool:
        """Whether a number is the golden one to all digits given."""
        oracle = self.oracles[name]
        wanted = torch.tensor(oracle["value"], dtype=torch.float64)
        found = torch.as_tensor(computed, dtype=torch.float64).detach()
        assert found.shape == wanted.shape, f"{name}: {list(found.shape)}"
        off = float((found - wanted).abs().max())
        assert off <= 0.51 * 10.0 ** -oracle["digits"], (
            f"{name} (section {oracle['section']}): {found.tolist()}, not {wanted.tolist()}"
        )
        return True


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The oracles of the reference on joint embedding."""
    content = json.loads((HERE / "golden" / "joint_embedding.json").read_text())
    assert content.pop("format") == 1
    return Golden(**content)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests only read it."""
    folder = HERE.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is not part of the project")
    return folder
