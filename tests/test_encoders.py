"""Encoders: what timm computes, tokens with and without a mask, weights in and out, errors."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erg.encoders import (
    CHANGES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OURS,
    TimmEncoder,
    build_encoder,
    encoder_in,
    load_encoder,
    save_encoder,
)
from erg.parts.norm import BatchNorm
from erg.views.types import Mask

RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256)}
VIT: dict[str, Any] = {"depth": 2}


def images(b: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def resnet(**how: Any) -> TimmEncoder:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", 64, **RESNET, **how)
    assert isinstance(encoder, TimmEncoder)
    return encoder.eval()


def vit(**how: Any) -> TimmEncoder:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", 96, **{**VIT, **how})
    assert isinstance(encoder, TimmEncoder)
    return encoder.eval()


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    """A sentence or two, no traceback or list of a hundred keys."""
    text = str(error.value)
    return "\n" not in text and 20 < len(text) < 500


def test_resnet_gives_one_vector_per_image() -> None:
    encoder = resnet()
    assert (encoder.dim, encoder.grid, encoder.image_size) == (256, None, 64)
    assert (encoder.mean, encoder.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert encoder.exportable
    assert encoder(images(2, 64)).shape == (2, 256)
    assert encoder(images(2, 32)).shape == (2, 256)


def test_resnet_has_places_and_cannot_leave_some_out() -> None:
    encoder, data = resnet(), images(2, 64)
    tokens = encoder.tokens(data)
    assert tokens.shape == (2, 4, 256)
    assert torch.allclose(tokens.mean(dim=1), encoder(data), atol=1e-6)
    mask = Mask(torch.zeros(2, 1, 4).bool(), (2, 2))
    with pytest.raises(ValueError, match="resnet18 gives one vector per image, no patch tokens"):
        encoder.tokens(data, mask)


def test_vit_gives_one_vector_and_a_grid_of_tokens() -> None:
    encoder = vit()
    assert (encoder.dim, encoder.grid, encoder.image_size) == (192, (6, 6), 96)
    assert (encoder.mean, encoder.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert encoder(images(2, 96)).shape == (2, 192)
    assert encoder.tokens(images(2, 96)).shape == (2, 36, 192)


@pytest.mark.parametrize(
    ("name", "side", "arguments"),
    [
        ("resnet18", 64, RESNET),
        ("vit_tiny_patch16_224", 96, {"img_size": 96, **VIT}),
        ("test_efficientnet", 64, {}),  # batch norms with a fused activation
        ("mobilenetv3_small_050", 64, {}),  # a head that widens the features
    ],
)
def test_output_is_timms_bit_for_bit(name: str, side: int, arguments: dict) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, **arguments).eval()
    ours = build_encoder(name, side, **{k: v for k, v in arguments.items() if k != "img_size"})
    assert isinstance(ours, TimmEncoder)
    assert ours.network.state_dict().keys() == theirs.state_dict().keys()
    ours.network.load_state_dict(theirs.state_dict())
    data = images(3, side)
    with torch.no_grad():
        assert torch.equal(ours.eval()(data), theirs(data))
        assert theirs(data).shape == (3, ours.dim)
        # In training too, running averages included.
        assert torch.equal(ours.train()(data), theirs.train()(data))
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.network.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "conv"])
def test_every_batch_norm_looks_at_all_processes(name: str) -> None:
    encoder = build_encoder(name, 32)
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, BatchNorm) for norm in norms)


FORMS = [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form) or "plain")
def test_tokens_are_timms_features_without_the_prefix(form: dict) -> None:
    encoder, data = vit(**form), images(2, 96)
    net: Any = encoder.network
    with torch.no_grad():
        wanted = net.forward_features(data)[:, net.num_prefix_tokens :]
        assert torch.allclose(encoder.tokens(data), wanted, atol=1e-6)
        # A mask that hides nothing.
        mask = Mask(torch.zeros(2, 1, 36).bool(), (6, 6))
        assert torch.allclose(encoder.tokens(data, mask), wanted, atol=1e-6)


def half_hidden() -> Mask:
    hidden = torch.zeros(2, 1, 36, dtype=torch.bool)
    hidden[0, 0, ::2] = True
    hidden[1, 0, 18:] = True
    return Mask(hidden, (6, 6))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form) or "plain")
def test_hidden_patches_do_not_reach_the_tokens(form: dict) -> None:
    encoder, data, mask = vit(**form), images(2, 96), half_hidden()
    cells = mask.hidden.reshape(2, 1, 6, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    with torch.no_grad():
        tokens = encoder.tokens(data, mask)
        assert tokens.shape == (2, 18, 192)
        other = torch.where(cells, images(2, 96, seed=1), data)
        assert torch.equal(encoder.tokens(other, mask), tokens)
        other = torch.where(cells, data, images(2, 96, seed=1))
        assert not torch.allclose(encoder.tokens(other, mask), tokens, atol=1e-2)


def test_no_work_is_done_for_hidden_patches() -> None:
    encoder, seen = vit(), []
    net: Any = encoder.network
    for block in net.blocks:
        block.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    encoder.tokens(images(2, 96), half_hidden())
    assert seen == [1 + 18, 1 + 18]


def test_tokens_know_where_they_come_from() -> None:
    """With no block to mix them, a token is its patch at its place."""
    encoder, data = vit(depth=0), images(2, 96)
    whole, mask = encoder.tokens(data), half_hidden()
    kept = encoder.tokens(data, mask)
    for i in range(2):
        assert torch.allclose(kept[i], whole[i, mask.keep()[i]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "side", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", 224, {"depths": (1, 1, 1, 1), "embed_dim": 24}),
        ("eva02_tiny_patch14_224", 28, {"depth": 1, "embed_dim": 48}),
        ("beit_base_patch16_224", 32, {"depth": 1, "embed_dim": 32, "num_heads": 2}),
        ("cait_xxs24_224", 32, {"depth": 1, "depth_token_only": 1}),
        ("test_vit_relpos", 160, {}),
        ("mixer_s32_224", 64, {}),
        ("convnext_atto", 64, {"depths": (1, 1, 1, 1)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokens_are_rows_of_features_or_a_clear_refusal(
    name: str, side: int, arguments: dict
) -> None:
    """Families whose features have another layout, or that position their tokens elsewhere."""
    encoder = build_encoder(name, side, **arguments).eval()
    try:
        tokens = encoder.tokens(images(1, side))
    except ValueError:
        assert encoder.grid is None  # or MAE would take it
        return
    assert tokens.ndim == 3
    assert tokens.shape[2] == encoder.dim
    if encoder.grid is not None:
        rows, columns = encoder.grid
        assert tokens.shape[1] == rows * columns
        mask = Mask(torch.zeros(1, 1, rows * columns).bool(), encoder.grid)
        assert torch.allclose(encoder.tokens(images(1, side), mask), tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "arguments"),
    [
        ("crossvit_tiny_240", 240, {}),
        ("hiera_tiny_224", 224, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_backbone_of_timm_gives_vectors(name: str, side: int, arguments: dict) -> None:
    encoder = build_encoder(name, side, **arguments).eval()
    assert encoder(images(1, side)).shape == (1, encoder.dim)


def test_a_tag_in_the_name_takes_the_architecture_only() -> None:
    encoder = build_encoder("resnet18.a1_in1k", 64, **RESNET)
    assert encoder.dim == 256
    assert encoder.mean == IMAGENET_MEAN


# -- weights in --------------------------------------------------------------------------------


def test_init_from_a_safetensors_file(tmp_path: Path) -> None:
    theirs = timm.create_model("resnet18", num_classes=0, **RESNET)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    encoder = resnet(init=str(tmp_path / "weights.safetensors"))
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(encoder.network.state_dict()[key], tensor)


def test_init_from_a_file_with_a_classifier(tmp_path: Path) -> None:
    """As timm publishes its weights, and as the error about a missing network advises."""
    theirs = timm.create_model("resnet18", num_classes=10, **RESNET)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    encoder = resnet(init=str(tmp_path / "weights.safetensors"))
    for key, tensor in encoder.network.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor)


def test_init_from_a_folder_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = timm.create_model("resnet18", num_classes=10, **RESNET)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet18",
        "num_classes": 10,
        "pretrained_cfg": {
            "num_classes": 10, "classifier": "fc", "first_conv": "conv1",
            "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = resnet(init=str(tmp_path))
    for key, tensor in encoder.network.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_init_from_an_export_of_ours(tmp_path: Path) -> None:
    first = vit()
    first.mean, first.std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    save_encoder(first, tmp_path)
    second = vit(init=str(tmp_path))
    assert torch.equal(second(images(2, 96)), first(images(2, 96)))
    assert (second.mean, second.std) == (first.mean, first.std)


def test_init_of_our_own_encoders_is_the_folder_of_a_run(tmp_path: Path) -> None:
    """Which says how wide and deep it is; arguments that are given have to agree."""
    torch.manual_seed(3)
    first = build_encoder("conv", 32, width=8, stages=2).eval()
    first.mean = (0.1, 0.2, 0.3)
    save_encoder(first, tmp_path / "conv")
    init = str(tmp_path / "conv")
    for told in ({}, {"width": 8}):
        again = build_encoder("conv", 48, init=init, **told).eval()
        assert (again.arguments, again.mean) == (first.arguments, (0.1, 0.2, 0.3))
        assert torch.equal(again(images(2, 48)), first(images(2, 48)))
    assert encoder_in(tmp_path / "conv") == ("conv", first.arguments)
    with pytest.raises(ValueError, match=r"do not fit conv .*Give those of the same") as error:
        build_encoder("conv", 32, init=init, width=16)
    assert one_line(error)
    with pytest.raises(ValueError, match=r"holds a conv, not a mlp. Add --encoder conv"):
        build_encoder("mlp", 5, init=init)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds no encoder") as error:
        build_encoder("conv", 32, init=str(tmp_path / "nothing"))
    assert one_line(error)


def test_init_from_a_folder_is_kept_when_it_is_saved_again(tmp_path: Path) -> None:
    """The folder's config gives the depth; what is built from it must be saved with it."""
    first = vit()
    save_encoder(first, tmp_path / "first")
    second = build_encoder("vit_tiny_patch16_224", 96, init=str(tmp_path / "first")).eval()
    save_encoder(second, tmp_path / "second")
    again = load_encoder(tmp_path / "second")
    assert torch.equal(again(images(2, 96)), first(images(2, 96)))


def junk(folder: Path) -> str:
    (folder / "junk.safetensors").write_bytes(b"junk")
    return str(folder / "junk.safetensors")


def other_shapes(folder: Path) -> str:
    theirs = timm.create_model("resnet18", num_classes=0, layers=(1, 1, 1, 1), channels=(8,) * 4)
    save_file(theirs.state_dict(), folder / "other.safetensors")
    return str(folder / "other.safetensors")


def pickled(folder: Path) -> str:
    torch.save(resnet().network.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def pickled_folder(folder: Path) -> str:
    torch.save(resnet().network.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    return str(folder)


def broken_config(folder: Path) -> str:
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{")
    return str(folder)


def list_config(folder: Path) -> str:
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text("[]")
    return str(folder)


def junk_folder(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"junk")
    (folder / "config.json").write_text('{"architecture": "resnet18"}')
    return str(folder)


def other_architecture(folder: Path) -> str:
    save_encoder(vit(), folder / "vit")
    return str(folder / "vit")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: str(folder / "nowhere.safetensors"), "there is no file"),
        (junk, "junk.safetensors"),
        (other_shapes, "other.safetensors"),
        (pickled, "never loaded"),
        (empty_folder, "has no config.json"),
        (pickled_folder, "model.safetensors"),
        (broken_config, "config.json"),
        (list_config, "config.json"),
        (junk_folder, "model.safetensors"),
        (other_architecture, "holds a vit_tiny_patch16_224, not a resnet18"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(make: Any, says: str, tmp_path: Path) -> None:
    init = make(tmp_path)
    with pytest.raises(ValueError, match=says) as error:
        resnet(init=init)
    assert one_line(error)


@pytest.mark.parametrize("init", ["pretrained", "a1_in1k", "no_such_tag"])
def test_without_a_network_a_tag_is_one_line_within_seconds(init: str) -> None:
    start = time.perf_counter()
    says = r"could not be had .* timm knows the tags a1_in1k"
    with pytest.raises(ValueError, match=says) as error:
        build_encoder("resnet18", 64, init=init)
    assert time.perf_counter() - start < 20
    assert one_line(error)


def test_a_changed_network_starts_from_one_changed_in_the_same_way(tmp_path: Path) -> None:
    first = resnet(small_stem=True)
    first.mean = (0.1, 0.2, 0.3)
    save_encoder(first, tmp_path / "small")
    for told in ({"small_stem": True}, {}):  # a folder says it too
        again = resnet(init=str(tmp_path / "small"), **told)
        assert again.arguments == first.arguments
        assert (again.mean, again.exportable) == ((0.1, 0.2, 0.3), False)
        assert torch.equal(again(images(2, 32)), first(images(2, 32)))
    save_encoder(resnet(), tmp_path / "large")
    says = r"do not fit resnet18 with small_stem .*Give those of the same"
    with pytest.raises(ValueError, match=says) as error:
        resnet(init=str(tmp_path / "large"), small_stem=True)
    assert one_line(error)
    for init in ("pretrained", "a1_in1k", "weights.safetensors"):
        with pytest.raises(ValueError, match="resnet18 with small_stem has no public weights"):
            resnet(init=init, small_stem=True)


def test_what_is_not_changed_is_timms() -> None:
    plain, told = resnet(), resnet(small_stem=False)
    assert told.arguments == plain.arguments == RESNET
    assert told.exportable
    assert torch.equal(told(images(2, 64)), plain(images(2, 64)))


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "resnet18"),
        ("vit_tiny_patch16_24", "vit_tiny_patch16_224"),
        ("pixel", "pixels"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, hint: str) -> None:
    says = f"no encoder is called {name!r}.*Did you mean.*{hint}"
    with pytest.raises(ValueError, match=says) as error:
        build_encoder(name, 64)
    assert one_line(error)


def test_names_like_no_other_get_directions() -> None:
    with pytest.raises(ValueError, match="list_models"):
        build_encoder("zzzzzzzzzz", 64)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timm refuses the arguments .*nonsense"):
        build_encoder("resnet18", 64, nonsense=1)
    with pytest.raises(ValueError, match=r"encoder mlp: .*nonsense"):
        build_encoder("mlp", 5, nonsense=1)
    with pytest.raises(ValueError, match="mlp has no public weights"):
        build_encoder("mlp", 5, init="pretrained")


@pytest.mark.parametrize("argument", ["checkpoint_path", "num_classes", "pretrained_cfg_overlay"])
def test_arguments_cannot_bring_weights_or_a_classifier(argument: str, tmp_path: Path) -> None:
    """They come from a run.json too, which must not make timm open a pickle."""
    torch.save(resnet().network.state_dict(), tmp_path / "weights.pt")
    value: Any = {
        "checkpoint_path": str(tmp_path / "weights.pt"),
        "num_classes": 10,
        "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pt")},
    }[argument]
    with pytest.raises(ValueError, match=argument):
        build_encoder("resnet18", 64, **RESNET, **{argument: value})


# -- weights out -------------------------------------------------------------------------------


def test_timm_alone_rebuilds_what_is_saved(tmp_path: Path) -> None:
    for i, (encoder, side) in enumerate([(resnet(), 64), (vit(), 96)]):
        encoder.train()(images(4, side))  # running averages that are not those of the start
        folder = tmp_path / str(i)
        save_encoder(encoder.eval(), folder)
        theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(theirs(images(2, side)), encoder(images(2, side)))
        config = theirs.pretrained_cfg
        assert tuple(config["mean"]) == encoder.mean
        assert tuple(config["std"]) == encoder.std
        assert tuple(config["input_size"]) == (3, side, side)


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("pixels", 8, {"side": 4}),
        ("identity", 5, {}),
        ("mlp", 5, {"width": 7, "depth": 1, "dim": 3}),
        ("sequence", 5, {"vocabulary": 9, "width": 4, "depth": 1, "heads": 1}),
        ("conv", 16, {"width": 4, "stages": 2}),
        ("conv", 16, {"width": 4, "stages": 2, "blocks": [1], "whole": True}),
        ("resnet18", 64, RESNET),
        ("resnet18.a1_in1k", 64, RESNET),
        ("vit_tiny_patch16_224", 96, VIT),
        ("resnet18", 32, {**RESNET, "small_stem": True}),
        ("vit_tiny_patch16_224", 96, {**VIT, "mlp_batch_norm": True}),
    ],
)
def test_what_is_saved_is_loaded(name: str, size: int, arguments: dict, tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = build_encoder(name, size, **arguments)
    save_encoder(encoder, tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    data = torch.randn(2, size) if name in ("mlp", "identity") else images(2, size)
    if name == "sequence":
        data = torch.arange(2 * size).reshape(2, size) % 9
    assert not any(module.training for module in again.modules())
    assert torch.equal(again(data), encoder.eval()(data))
    assert (again.name, again.image_size, again.dim) == (encoder.name, size, encoder.dim)
    assert (again.mean, again.std, again.grid) == (encoder.mean, encoder.std, encoder.grid)
    timms = name not in OURS and not arguments.keys() & CHANGES.keys()
    assert again.exportable == encoder.exportable == timms
    assert json.dumps(again.arguments) == json.dumps(encoder.arguments)  # tuples become lists


def test_half_and_double_precision_are_saved_as_single(tmp_path: Path) -> None:
    save_encoder(vit().double(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}
    save_encoder(resnet().bfloat16(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32, torch.int64}
    assert not list(tmp_path.glob(".*"))


def test_folders_that_hold_no_encoder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no encoder of erg") as error:
        load_encoder(tmp_path)
    assert one_line(error)
    save_encoder(resnet(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")  # reading it would wait for ever
    with pytest.raises(ValueError, match="it is no regular file"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="holds no encoder of erg") as error:
        load_encoder(tmp_path)
    assert one_line(error)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is damaged \(it holds no names\)"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": None},
        {"name": 5},
        {"image_size": 10**15},
        {"arguments": {"width": -1}},
        {"arguments": {"init": "pretrained"}},
        {"name": "resnet18", "arguments": {"init": "pretrained"}},
    ],
    ids=str,
)
def test_a_config_with_wrong_values_is_one_line_and_fetches_nothing(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(build_encoder("mlp", 2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["erg"] = {k: v for k, v in {**config["erg"], **changes}.items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: made.append(options))
    with pytest.raises(ValueError, match="holds no encoder of erg") as error:
        load_encoder(tmp_path)
    assert one_line(error)
    assert made == []


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    save_encoder(resnet(), tmp_path)
    other_shapes(tmp_path)
    (tmp_path / "other.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit its config") as error:
        load_encoder(tmp_path)
    assert one_line(error)


@pytest.mark.parametrize("form", [*FORMS, {"dynamic_img_size": True}], ids=str)
def test_masked_leaves_out_or_puts_a_blank(form: dict) -> None:
    encoder, data, mask = vit(**form), images(2, 96), half_hidden()
    net: Any = encoder.network
    cells = mask.hidden.reshape(2, 1, 6, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = torch.where(cells, images(2, 96, seed=1), data)
    with torch.no_grad():
        vector, tokens = encoder.masked(data, mask)
        assert torch.equal(tokens, encoder.tokens(data, mask))
        assert vector.shape == (2, 192)
        assert torch.equal(encoder.masked(other, mask)[0], vector)
        # The blank that is the embedding of a white patch is that of an image with white patches.
        white = net.patch_embed(torch.ones(1, 3, 96, 96)).flatten(0, -2)[0]
        vector, tokens = encoder.masked(data, mask, white)
        painted = torch.where(cells, torch.ones(()), data)
        wanted = encoder.with_tokens(painted)
        assert torch.allclose(vector, wanted[0], atol=1e-5)
        assert torch.allclose(tokens, wanted[1], atol=1e-5)
        assert torch.equal(encoder.masked(other, mask, white)[0], vector)
        nothing = Mask(torch.zeros(2, 1, 36).bool(), (6, 6))
        for blank in (None, white):
            vector, tokens = encoder.masked(data, nothing, blank)
            assert torch.allclose(vector, encoder(data), atol=1e-6)
            assert torch.allclose(tokens, encoder.tokens(data), atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_layers_are_what_leaves_each_block(form: dict) -> None:
    encoder, data = vit(**{**form, "depth": 3}), images(2, 96)
    net: Any = encoder.network
    seen: list[Tensor] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        encoder(data)
        wanted = [out[:, net.num_prefix_tokens :] for out in seen]
        for last in (1, 2, 3):
            found = encoder.layers(data, last)
            assert len(found) == last
            for a, b in zip(found, wanted[3 - last : 3], strict=True):
                assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="no 4 blocks"):
        encoder.layers(data, 4)


def test_what_has_no_patches_hides_none_and_has_no_blocks() -> None:
    for name in ("conv", "resnet18"):
        encoder = build_encoder(name, 32)
        with pytest.raises(ValueError, match=f"{name} cannot hide patches"):
            encoder.masked(images(2, 32), half_hidden())
        with pytest.raises(ValueError, match=f"{name} has no 1 blocks"):
            encoder.layers(images(2, 32), 1)
        assert encoder.depth == 0


def test_encoders_know_whether_they_take_one_size() -> None:
    swin = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    name = "swin_tiny_patch4_window7_224"
    assert vit().one_size
    assert build_encoder(name, 32, **swin).one_size
    for free in (vit(dynamic_img_size=True), build_encoder("conv", 32), resnet(),
                 build_encoder(name, 32, **swin, dynamic_img_size=True)):  # fmt: skip
        assert not free.one_size
        free.need_sizes("DINO")
        assert torch.isfinite(free.eval()(images(2, 16))).all()


def test_encoders_know_their_patches_and_which_sizes_these_refuse() -> None:
    swin = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    strict, free = vit(), vit(dynamic_img_size=True)
    assert strict.grid is not None
    side = strict.image_size // strict.grid[0]
    assert strict.patch == free.patch == (side, side)
    assert strict.refuses(strict.image_size) == free.refuses(2 * side) == ""
    assert "it takes 96 pixels only. Build it with dynamic_img" in strict.refuses(2 * side)
    assert f"divisible by patch size ({side})" in free.refuses(2 * side + 1)
    of_swin = build_encoder("swin_tiny_patch4_window7_224", 32, **swin)
    assert of_swin.patch is None
    assert of_swin.refuses(32) == ""
    assert "doesn't match model" in of_swin.refuses(16)
    for other in (build_encoder("conv", 32), resnet()):
        assert (other.patch, other.refuses(5)) == (None, "")


def test_behind_a_stem_of_convolutions_patches_are_what_both_see() -> None:
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    encoder = build_encoder("vit_tiny_r_s16_p8_224", 64, **small).train()
    assert encoder.grid is not None
    assert encoder.patch == (64 // encoder.grid[0], 64 // encoder.grid[1])
    assert encoder.refuses(64) == ""
    assert "it takes 64 pixels only" in encoder.refuses(96)
    assert all(part.training for part in encoder.modules())
