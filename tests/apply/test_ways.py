"""What encoders are compared with."""

from pathlib import Path

import numpy as np
import pytest

from erg.apply import ways
from erg.apply.embed import open_for
from erg.apply.ways import ENCODER, PCA_NAME, PIXELS, Ways, pixels_of
from erg.encoders import build_encoder
from erg.train.fitted import Fitted
from erg.train.run import Run


def test_raw_pixels_are_as_sharp_as_the_largest_set_and_the_encoder_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "LARGEST", 100 * 32 * 32 * 12)
    opened = open_for(build_encoder("conv", 32, width=4, stages=2), "synthetic:120")
    assert pixels_of(opened, opened.rows[:99], 32).shape == (99, 3 * 32 * 32)
    assert pixels_of(opened, opened.rows, 32).shape == (120, 3 * 16 * 16)
    assert pixels_of(opened, opened.rows[:9], 32, most=120).shape == (9, 3 * 16 * 16)
    assert pixels_of(opened, opened.rows, 8, most=2000).shape == (120, 3 * 8 * 8), "no sharper"


def test_principal_components_are_never_fewer_than_what_they_are_compared_with(
    tmp_path: Path,
) -> None:
    """Neither than the encoder's features nor than those of a wider code."""
    run = Run(
        method="Autoencoder", method_args={"dim": 24, "width": 8}, encoder="conv",
        encoder_args={"width": 4, "stages": 2}, image_size=16,
    )  # fmt: skip
    method, random = run.build(), np.random.default_rng(0)
    assert method.encoder.dim == 8
    compared = Ways(Fitted(run, tmp_path, method), method.encoder)
    for judged, wide in ((24, 24), (2, 8)):
        shapes = {ENCODER: (40, judged), PIXELS: (40, 30)}
        found = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        compared.add_pca(found)
        assert found[PCA_NAME].shape == (40, wide)
