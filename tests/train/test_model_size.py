"""A model that does not fit into memory is refused before it is built."""

import pytest
import torch

import sslpipe.train.model_size as model_size
from sslpipe.errors import RecipeError
from sslpipe.evaluate.subjects import parts_and_spec
from sslpipe.recipe import parse_recipe
from sslpipe.train import initial_method

RECIPE = """\
stream: {{batch_size: 8}}
views:
  global: {{count: 2, ops: [RandomResizedCrop: {{size: [32, 32]}}]}}
method:
  {method}
train:
  backbone:
    {backbone}
  optimizer: {{sgd: {{lr: 0.1}}}}
  epochs: 1
"""
VIT = "vit_tiny: {patch_size: 8, depth: 2, embed_dim: 48}"
DEEP = "vit_tiny: {patch_size: 8, depth: 4000, embed_dim: 65536, num_heads: 8}"
DINO = "dino: {hidden: 32, bottleneck: 16, prototypes: 64}"


def made(backbone=VIT, method=DINO):
    recipe = parse_recipe(RECIPE.format(backbone=backbone, method=method), path="r.yaml")
    return initial_method(recipe, parts_and_spec(recipe)[1])


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        (DEEP, DINO),
        (VIT, "dino: {hidden: 65536, bottleneck: 65536, prototypes: 64}"),
        (VIT, "dino: {hidden: 64, bottleneck: 65536, prototypes: 16777216}"),
        (VIT, "simclr: {projector: [65536, 65536]}"),
    ],
)
def test_a_model_that_cannot_fit_is_refused_before_it_is_built(monkeypatch, backbone, method):
    monkeypatch.setattr(model_size, "free_host", lambda: 10**9)
    with pytest.raises(RecipeError) as error:
        made(backbone, method)
    said, name = str(error.value), backbone.partition(":")[0]
    assert said.startswith(f"r.yaml:8: {name} with {method.partition(':')[0]} (r.yaml:5) has ")
    assert "1.0 GB of memory free; choose smaller sizes" in said


def test_what_fits_is_counted_exactly_with_teachers_and_heads(monkeypatch):
    whole = made()
    count, size = model_size.counted(whole)
    assert count == sum(x.numel() for x in [*whole.parameters(), *whole.buffers()])
    monkeypatch.setattr(model_size, "free_host", lambda: size)
    again = made().state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in whole.state_dict().items())
    monkeypatch.setattr(model_size, "free_host", lambda: size - 1)
    with pytest.raises(RecipeError, match=f"has {count:,} weights"):
        made()


def test_nothing_random_moves_on(monkeypatch):
    before = torch.get_rng_state()
    made()
    assert torch.equal(torch.get_rng_state(), before)
