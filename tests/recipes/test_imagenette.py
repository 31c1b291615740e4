"""Imagenette: a small recipe for every method, which can be built and written down."""

import json

import pytest

from erg import catalog
from erg.recipes.cifar import BATCHES, HEADS, TASKS
from erg.recipes.default import OF_TOKENS
from erg.recipes.imagenette import imagenette
from erg.train.run import Run


@pytest.mark.parametrize("method", [n for n in catalog.names() if n not in OF_TOKENS])
def test_every_method_has_a_recipe(method: str) -> None:
    run = imagenette(method, data="imagenette", epochs=4, seed=3)
    assert (run.method, run.data, run.seed) == (method, "imagenette", 3)
    assert run.image_size in (32, 96)
    assert run.steps == max(1, round(4 * (int(0.95 * 9_469) // run.batch)))
    catalog.check_arguments(catalog.find(method), run.method_args)
    for name, value in HEADS.get(method, {}).items():
        assert run.method_args[name] == value
    built = run.build()
    assert type(built) is catalog.find(method)
    assert built.encoder.image_size == run.image_size
    plan = built.plan()
    assert all(view.pixels(run.image_size) == run.image_size for view in plan.main)
    assert all(view.pixels(run.image_size) < run.image_size for view in plan.local)
    assert Run.from_json(json.loads(json.dumps(run.to_json()))).to_json() == run.to_json()


@pytest.mark.parametrize("method", ["RELICv2", "DeepCluster", "SeLa", "VICRegL", "DINO"])
def test_crops_fit_the_encoder(method: str) -> None:
    built = imagenette(method).build()
    plan = built.plan()
    assert {view.pixels(96) for view in plan.main} == {96}
    assert {view.pixels(96) for view in plan.local} <= {48}


def test_batches_are_those_of_cifar_and_questions_those_of_larger_images() -> None:
    assert [imagenette(method).batch for method in BATCHES] == list(BATCHES.values())
    assert all(imagenette(method).method_args == {} for method in TASKS)
