"""The default recipe: sensible for every size of data, and said is said."""

from pathlib import Path

import pytest
import torch

from erg.encoders import build_encoder, load_encoder, save_encoder
from erg.recipes.default import ON_A_CPU, Seen, default


@pytest.mark.parametrize("images", [5, 40, 700, 50_000, 5_000_000])
@pytest.mark.parametrize("side", [28, 128, 3000])
@pytest.mark.parametrize("accelerator", [False, True])
def test_every_size_of_data_gets_a_run(images: int, side: int, accelerator: bool) -> None:
    run, why = default(Seen(images, side, accelerator))
    assert 1 <= run.batch <= max(16, images)
    assert run.batch * 8 <= max(128, images)
    assert run.steps >= 1
    assert all(len(line) <= 120 for line in why)
    for choice in ("method", "encoder", "image size", "batch", "epochs", "learning rate"):
        assert any(choice in line for line in why), f"the reason for the {choice} is missing"


def test_what_is_said_is_taken_and_not_explained() -> None:
    run, why = default(
        Seen(1000, 64, False), method="DCL", encoder="conv", image_size=40, batch=10, epochs=3,
        lr=0.5, seed=9, init=None,
    )  # fmt: skip
    assert (run.method, run.encoder, run.image_size, run.batch) == ("DCL", "conv", 40, 10)
    assert run.optimiser.lr == 0.5
    assert run.seed == 9
    assert run.steps == 3 * 95
    assert why == []


@pytest.mark.parametrize("batch", [0, -4])
def test_a_batch_of_nothing_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match=rf"batch should be at least 1 \(got {batch}\)"):
        default(Seen(1000, 64, False), batch=batch)


def test_choices_for_an_accelerator_suit_their_methods() -> None:
    for method in ("IJEPA", "MAE", "DINOv2", "MSN"):
        run, _ = default(Seen(50_000, 32, True), method=method)
        rows, columns = run.build().encoder.grid or (0, 0)
        assert min(rows, columns) >= 4
    assert default(Seen(9000, 128, True), method="UNetAutoencoder")[0].build()


def test_few_vectors_have_fewer_prototypes() -> None:
    assert default(Seen(40, 1, False, vectors=3))[0].method_args == {"k": 19}
    assert default(Seen(136, 1, False, vectors=3))[0].method_args == {}


@pytest.mark.parametrize("epochs", [0, -3, float("nan")])
def test_no_epochs_are_refused(epochs: float) -> None:
    with pytest.raises(ValueError, match="epochs should be above 0"):
        default(Seen(1000, 64, False), epochs=epochs)


def test_the_chosen_encoders_can_be_built_and_suit_their_method() -> None:
    for method in ("MAE", "IJEPA", "IBOT", "KMeans", "SimCLR"):
        for side in (32, 128):
            run, _ = default(Seen(500, side, False), method=method)
            built = run.build()
            assert built.encoder.image_size == run.image_size
            assert built.plan().main
            assert built.encoder.exportable == (method in ("MAE", "IJEPA", "IBOT"))


@pytest.mark.parametrize("accelerator", [True, False])
def test_vectors_are_means_of_patches_where_nothing_is_asked_of_a_class_token(
    accelerator: bool,
) -> None:
    for method in ("SimMIM", "Data2Vec", "IJEPA", "MAE", "MSN"):
        run, _ = default(Seen(500, 32, accelerator), method=method)
        encoder = run.build().encoder.eval()
        size = run.image_size
        vectors, tokens = encoder.with_tokens(torch.randn(2, 3, size, size))
        mean = torch.allclose(vectors, tokens.mean(dim=1), atol=1e-5)
        assert mean == (method not in ("MAE", "MSN")), method
        assert run.encoder_args.get("class_token", True) == (method != "IJEPA")
    run, _ = default(Seen(500, 32, accelerator), method="IJEPA", init="pretrained")
    assert (run.encoder_args["global_pool"], "class_token" in run.encoder_args) == ("avg", False)


@pytest.mark.parametrize(("small", "side"), [(True, 32), (False, 64)])
def test_images_are_enlarged_for_a_stem_that_shrinks_them(small: bool, side: int) -> None:
    args = {"small_stem": small}
    run, _ = default(Seen(500, 32, False), encoder="resnet18", encoder_args=args)
    assert run.image_size == side


@pytest.mark.parametrize(
    ("encoder", "decay"),
    [("vit_tiny_patch16_224", 0.05), ("swin_tiny_patch4_window7_224", 0.05), ("conv", 1e-4)],
)
def test_transformers_are_decayed_as_their_papers_have_it(encoder: str, decay: float) -> None:
    run, _ = default(Seen(500, 32, False), method="DINO", encoder=encoder)
    assert run.optimiser.weight_decay == decay


def test_vectors_get_k_means_on_the_vectors_themselves() -> None:
    run, _ = default(Seen(500, 1, False, vectors=7))
    assert (run.method, run.encoder, run.image_size) == ("KMeans", "identity", 7)


def test_sequences_get_bert_on_a_transformer_of_their_length() -> None:
    run, why = default(Seen(500, 1, False, vectors=24, vocabulary=30), encoder_args={"depth": 1})
    assert (run.method, run.encoder, run.image_size) == ("BERT", "sequence", 24)
    assert run.encoder_args == {"vocabulary": 30, "depth": 1}
    assert run.build().plan().kind == "tokens"
    assert any("24 tokens a sequence" in line for line in why)
    with pytest.raises(ValueError, match="BERT needs sequences of tokens, and the data are none"):
        default(Seen(500, 32, False), method="BERT")


def test_arguments_of_an_encoder_that_is_chosen_here_come_over_the_choice() -> None:
    run, _ = default(Seen(500, 32, False), encoder_args={"width": 8})
    assert run.encoder == "conv"
    assert run.encoder_args == {"width": 8, "stages": 4}


@pytest.mark.parametrize("accelerator", [True, False])
def test_a_folder_to_start_from_says_which_encoder_it_holds(
    accelerator: bool, tmp_path: Path
) -> None:
    """With its arguments, since plans and copies of a run are built without `init`."""
    save_encoder(build_encoder("conv", 32, width=8, stages=2), tmp_path)
    for method in ("Jigsaw", "KMeans"):
        run, why = default(Seen(500, 32, accelerator), method=method, init=str(tmp_path))
        assert run.encoder == "conv"
        assert run.encoder_args.items() >= {"width": 8, "stages": 2}.items()
        assert any("encoder conv: that is what" in line for line in why)
        weights = run.build().encoder.state_dict()
        assert all(
            torch.equal(weights[k], v) for k, v in load_encoder(tmp_path).state_dict().items()
        )


def test_an_autoencoder_takes_many_small_steps_on_a_cpu() -> None:
    run, why = default(Seen(9000, 128, False), method="Autoencoder")
    assert (run.batch, run.optimiser.lr) == (64, 2e-3)
    assert any("more steps" in line for line in why)
    assert default(Seen(9000, 128, True), method="Autoencoder")[0].batch == 512


def test_what_a_method_wants_on_a_cpu_comes_under_what_is_said() -> None:
    run, why = default(Seen(9000, 128, False), method="SwAV", method_args={"eps": 0.05})
    assert run.method_args == {**ON_A_CPU["SwAV"].arguments, "eps": 0.05}
    assert (run.batch, run.optimiser.lr) == (64, 3e-3)
    assert any("SwAV for a CPU" in line for line in why)
    run, why = default(Seen(9000, 128, True), method="SwAV")
    assert (run.method_args, run.batch) == ({}, 512)


def test_what_was_measured_on_small_images_is_for_small_images() -> None:
    run, why = default(Seen(9000, 32, False))
    assert (run.method, run.batch, run.method_args) == ("SimCLR", 128, {"temperature": 0.1})
    assert any("SimCLR for a CPU" in line for line in why)
    for seen in (Seen(9000, 64, False), Seen(9000, 32, True)):
        run, _ = default(seen)
        assert (run.method, run.method_args) == ("SimCLR", {})
        assert run.batch >= 256


@pytest.mark.parametrize("method", ON_A_CPU)
def test_a_method_for_a_cpu_can_be_built(method: str) -> None:
    run, why = default(Seen(9000, 128, False), method=method)
    assert run.build().plan().main
    assert all(len(line) <= 120 for line in why)
