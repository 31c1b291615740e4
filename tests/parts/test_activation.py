"""What stands behind layers."""

import inspect

import pytest
import torch

from erg.encoders import build_encoder
from erg.parts.activation import activation_layer


def test_smooth_activations_have_a_second_derivative() -> None:
    for name, size, data in (
        ("mlp", 3, torch.randn(4, 3)),
        ("conv", 16, torch.randn(4, 3, 16, 16)),
    ):
        for activation in ("relu", "silu"):
            encoder = build_encoder(name, size, activation=activation).eval()
            assert encoder.arguments["activation"] == activation
            y = data.clone().requires_grad_()
            (slope,) = torch.autograd.grad(encoder(y).sum(), y, create_graph=True)
            smooth = slope.requires_grad
            if smooth:
                (bent,) = torch.autograd.grad(slope.sum(), y, allow_unused=True)
                smooth = bent is not None and bool(bent.abs().max() > 0)
            assert smooth is (activation == "silu")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activation should be one of .*'tanh'"):
        inspect.unwrap(activation_layer)("tanh")  # past the check of its types
