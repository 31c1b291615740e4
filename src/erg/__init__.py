"""erg: learn representations from images without labels.

Every method is an energy F(x, y), low where x and y belong together, and something that keeps it
from being low everywhere. Names are resolved when they are first used, so importing erg is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erg.apply.embed import embed
    from erg.apply.export import export
    from erg.apply.scores import score
    from erg.data.source import DataError, open_source
    from erg.embeddings import Embeddings
    from erg.encoders import Encoder, build_encoder, load_encoder
    from erg.method import Cell, Loss, Method
    from erg.recipes.default import Seen, default
    from erg.schedule import Constant, Cosine, Linear, Step, WarmupCosine
    from erg.testing import check_method
    from erg.train.fit import fit
    from erg.train.fitted import Fitted, load
    from erg.train.health import Health
    from erg.train.run import Optimiser, Run
    from erg.views.plan import Augmentation, Masking, Plan, Tiles, two_views
    from erg.views.types import How, Mask, View, Views

_HOMES = {
    "apply.embed": ("embed",),
    "apply.export": ("export",),
    "apply.scores": ("score",),
    "data.source": ("DataError", "open_source"),
    "embeddings": ("Embeddings",),
    "encoders": ("Encoder", "build_encoder", "load_encoder"),
    "method": ("Cell", "Loss", "Method"),
    "recipes.default": ("Seen", "default"),
    "schedule": ("Constant", "Cosine", "Linear", "Step", "WarmupCosine"),
    "testing": ("check_method",),
    "train.fit": ("fit",),
    "train.fitted": ("Fitted", "load"),
    "train.health": ("Health",),
    "train.run": ("Optimiser", "Run"),
    "views.plan": ("Augmentation", "Masking", "Plan", "Tiles", "two_views"),
    "views.types": ("How", "Mask", "View", "Views"),
}
_HOME = {name: f"erg.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "Augmentation",
    "Cell",
    "Constant",
    "Cosine",
    "DataError",
    "Embeddings",
    "Encoder",
    "Fitted",
    "Health",
    "How",
    "Linear",
    "Loss",
    "Mask",
    "Masking",
    "Method",
    "Optimiser",
    "Plan",
    "Run",
    "Seen",
    "Step",
    "Tiles",
    "View",
    "Views",
    "WarmupCosine",
    "build_encoder",
    "check_method",
    "default",
    "embed",
    "export",
    "fit",
    "load",
    "load_encoder",
    "open_source",
    "score",
    "two_views",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'erg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
