"""Views of half precision on their way through a pipeline, a task, a step and the evaluation."""

import pytest
import torch

import sslpipe
from sslpipe.bench import ready_run, stepper
from sslpipe.evaluate.features import extract
from sslpipe.methods import METHODS
from sslpipe.recipe import parse_recipe

from ..conftest import RECIPE

HALF = "views.global.dtype=bfloat16"
TRAINED = """
method: {simclr: {projector: [16, 8]}}
train: {backbone: resnet18, optimizer: {sgd: {lr: 0.1}}, epochs: 1}
"""
TURNED = """
targets:
  rotation: {task: rotation_one}
"""


def load(packed, *settings, text):
    recipe = parse_recipe(text, overrides=settings)
    return sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1)


def first(packed, *settings, text=RECIPE):
    with load(packed, *settings, text=text) as pipe:
        return pipe.spec, next(iter(pipe))


def test_a_batch_holds_what_the_recipe_and_its_spec_say(packed):
    _, whole = first(packed)
    spec, half = first(packed, HALF)
    assert spec.views["global"].dtype == half.views["global"].dtype == torch.bfloat16
    assert torch.equal(half.views["global"], whole.views["global"].bfloat16())
    assert torch.equal(half.in_float32().views["global"], half.views["global"].float())
    assert whole.in_float32().views["global"] is whole.views["global"]


def test_a_task_computes_in_float32_and_leaves_the_views_half(packed):
    _, whole = first(packed, text=RECIPE + TURNED)
    spec, half = first(packed, HALF, text=RECIPE + TURNED)
    assert spec.views["global"].dtype == torch.bfloat16
    assert torch.equal(half.views["global"], whole.views["global"].bfloat16())
    assert torch.equal(half.targets["rotation"], whole.targets["rotation"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_them_at_any_precision(packed, precision, monkeypatch):
    seen = []
    forward = METHODS["simclr"].forward
    monkeypatch.setattr(
        METHODS["simclr"],
        "forward",
        lambda self, batch: (seen.append(batch.views["global"].dtype), forward(self, batch))[1],
    )
    with load(packed, HALF, f"train.precision={precision}", text=RECIPE + TRAINED) as pipe:
        stepper(ready_run(pipe))(next(iter(pipe)))
    assert seen == [torch.float32 if precision == "fp32" else torch.bfloat16]


def test_an_encoder_of_float32_is_evaluated_on_them(packed):
    _, half = first(packed, HALF)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten())
    assert extract(encoder, [half], "cpu").features.isfinite().all()


def test_the_default_says_nothing_in_the_fingerprint_and_another_dtype_does():
    plain = parse_recipe(RECIPE)
    said = parse_recipe(RECIPE, overrides=["views.global.dtype=float32"])
    assert said.data_fingerprint == plain.data_fingerprint
    assert parse_recipe(RECIPE, overrides=[HALF]).data_fingerprint != plain.data_fingerprint
