"""CIFAR-10: a small recipe for every method, which can be built and written down."""

import json
import math

import pytest

from erg import catalog
from erg.recipes.cifar import BATCHES, HEADS, TASKS, cifar
from erg.recipes.default import OF_TOKENS, ON_A_CPU
from erg.train.run import Run


@pytest.mark.parametrize("method", [n for n in catalog.names() if n not in OF_TOKENS])
def test_every_method_has_a_recipe(method: str) -> None:
    run = cifar(method, data="cifar10", epochs=2, seed=3)
    assert (run.method, run.data, run.seed) == (method, "cifar10", 3)
    assert run.steps == max(1, round(2 * (47_500 // run.batch)))
    built = run.build()
    plan = built.plan()
    assert all(view.pixels(run.image_size) <= run.image_size for view in (*plan.main, *plan.local))
    assert Run.from_json(json.loads(json.dumps(run.to_json()))).to_json() == run.to_json()


@pytest.mark.parametrize("method", HEADS)
def test_heads_are_arguments_and_smaller_than_the_papers(method: str) -> None:
    assert method not in ON_A_CPU
    kind = catalog.find(method)
    catalog.check_arguments(kind, HEADS[method])
    for name, value in HEADS[method].items():
        usual = catalog.arguments(kind)[name].default
        assert not isinstance(value, int) or value < usual or usual == 0, name


@pytest.mark.parametrize("method", TASKS)
def test_questions_are_asked_that_small_images_can_answer(method: str) -> None:
    assert method not in {*ON_A_CPU, *HEADS}
    assert cifar(method).method_args == TASKS[method]
    said = dict.fromkeys(TASKS[method], 0.5)
    assert cifar(method, method_args=said).method_args == said


def test_batches_are_small_where_a_loss_needs_few_others() -> None:
    assert not {*BATCHES} & {*ON_A_CPU}
    assert [cifar(method).batch for method in BATCHES] == list(BATCHES.values())
    batches = [cifar(method).batch for method in ("Rotation", "MoCo", "BarlowTwins")]
    assert batches == [64, 128, 512]
    assert cifar("Rotation", batch=100).batch == 100
    assert cifar("Rotation").optimiser.lr == pytest.approx(2e-3 / math.sqrt(8))


@pytest.mark.parametrize(
    "method", ["DINO", "DINOv2", "Data2Vec", "EsViT", "IBOT", "IJEPA", "MSN", "MoCoV3"]
)
def test_teachers_of_patches_forget_their_start_within_500_steps(method: str) -> None:
    momentum = cifar(method).method_args["momentum"]
    left = math.prod(momentum(step / 500) for step in range(500))
    assert left == pytest.approx(math.exp(-500 * (1 - momentum(0.5))), rel=0.15)
    assert math.exp(-8.5) < left < math.exp(-7)


def test_what_was_measured_and_what_is_said_come_first() -> None:
    assert cifar("BYOL").method_args == ON_A_CPU["BYOL"].arguments
    run = cifar("RELIC", method_args={"hidden": 64}, batch=100)
    assert (run.method_args["hidden"], run.method_args["dim"], run.batch) == (64, 128, 100)


@pytest.mark.parametrize("method", OF_TOKENS)
def test_methods_of_tokens_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} needs sequences of tokens"):
        cifar(method)
