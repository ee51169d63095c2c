"""Settings for large models on one process: computed again, compiled, refused where they cannot."""

import copy
import json
import sys

import pytest
import torch
from torch import nn

import sslpipe
from sslpipe.batch import ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.encoders.blocks import blocks_of, recompute_blocks
from sslpipe.errors import RecipeError
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.names import Entry
from sslpipe.train import Every, compiling, train
from sslpipe.train.run import check_training, initial_method
from sslpipe.train.world import keyed

from .conftest import TINY_MAE

TEXT = ViewSpec("rows", 1, "L", (12,), dtype="int64", vocabulary=20)
IMAGE = ViewSpec("global", 1, "CHW", (3, 16, 16))
SIZES = {"dim": 16, "depth": 3, "heads": 2}
TIMM = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "drop_path_rate": 0.3}
ENCODERS = {
    "vit_tiny": (TIMM, IMAGE, 3),
    "gpt": (SIZES, TEXT, 3),
    "bert": ({**SIZES, "dropout": 0.3}, TEXT, 3),
    "albert": ({**SIZES, "dropout": 0.3}, TEXT, 1),
    "t5": ({**SIZES, "dropout": 0.3}, TEXT, 6 + 9),  # layers of the encoder's and decoder's blocks
    "convnext_atto": ({}, ViewSpec("global", 1, "CHW", (3, 32, 32)), 12),
}


def features_and_gradients(encoder, view):
    generator = torch.Generator().manual_seed(1)
    if view is TEXT:
        given = torch.randint(0, 20, (4, 12), generator=generator)
        documents = torch.stack([torch.arange(12) // 6, torch.arange(12) % 6])
        args = (given, documents[:, None].expand(2, 4, 12))
        call = encoder.hidden
    else:
        args, call = (torch.randn(4, *view.shape, generator=generator),), encoder
    with keyed("step", seed=0):
        made = call(*args)
        loss = made.square().sum()
        loss.backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    return made.detach(), gradients


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_computed_again_have_the_same_gradients(name):
    settings, view, count = ENCODERS[name]
    plain = build_encoder(Entry(name, settings, "here"), view)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    assert len(list(blocks_of(again))) == count
    inside = {plain: 0, again: 0}
    for model in inside:
        leaf = next(part for part in next(blocks_of(model)).modules() if not [*part.children()])
        leaf.register_forward_hook(
            lambda *_, model=model: inside.update({model: inside[model] + 1})
        )
    expected, found = (features_and_gradients(part, view) for part in (plain, again))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert list(again.state_dict()) == list(plain.state_dict())
    assert inside[again] == 2 * inside[plain] > 0


def test_a_copy_computes_itself():
    model = nn.Sequential(*[build_encoder(Entry("vit_tiny", TIMM, "here"), IMAGE)])
    recompute_blocks(model)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert twin.eval()(torch.randn(2, 3, 16, 16)).abs().max() > 0.1


DINO = "method={dino: {prototypes: 12, hidden: 16, bottleneck: 8, momentum: 0.9}}"


def recipe_of(*overrides):
    return parse_recipe(TINY_MAE, path="a.yaml", overrides=overrides)


@pytest.fixture
def cheap(monkeypatch):
    """Everything of torch.compile but what Inductor makes of graphs."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def go(out, packed, *overrides, **options):
    recipe = recipe_of(*overrides)
    with sslpipe.load(recipe, shards=packed, device="cpu") as pipe:
        method = initial_method(recipe, pipe.spec)
        train(pipe, method, recipe.train, out=out, every=Every(log=1), **options)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_compiled_run_is_the_run_and_goes_on(cheap, tmp_path, packed):
    eager = go(tmp_path / "eager", packed, DINO, max_steps=8)
    go(tmp_path / "a", packed, DINO, "train.compile=true", max_steps=4)
    torch._dynamo.reset()
    rows = go(tmp_path / "a", packed, DINO, "train.compile=true", max_steps=8, resume=True)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in eager], rel=1e-5)
    assert [row["recompiles"] for row in rows] == [0] * 8
    saved, plain = (torch.load(tmp_path / run / "last.pt") for run in ("a", "eager"))
    assert saved["method"].keys() == plain["method"].keys()
    assert not [name for name in saved["method"] if "_orig_mod" in name]
    for name, tensor in plain["method"].items():  # the teacher's, too
        torch.testing.assert_close(saved["method"][name], tensor, rtol=1e-4, atol=1e-6)
    # neither is another run
    go(tmp_path / "a", packed, DINO, "train.checkpoint_activations=true", max_steps=9, resume=True)


def test_recompiles_are_counted_and_too_many_told(cheap):
    module = nn.Linear(4, 2)
    module.steps = 0
    module.forward = lambda x, number: x @ module.weight.T * number
    graphs, said = compiling.compile_forward(module), []
    for number in (0.5, 0.25, 0.75, 1.5, 2.5, 3.5, 4.5):
        found = module(torch.ones(3, 4), number)
        torch.testing.assert_close(found, torch.ones(3, 4) @ module.weight.T * number)
        said.append((graphs.recompiles, graphs.message()))
    assert said[0] == (0, "compiled the forward pass: 1 graphs")
    assert [count for count, _ in said] == sorted(count for count, _ in said)
    assert said[-1][0] > 0


def test_of_too_many_recompiles_it_is_said_once():
    graphs = compiling.Graphs("eager")
    graphs.count = 3
    assert graphs.message() == "compiled the forward pass: 3 graphs"
    said = []
    for _ in range(7):
        graphs.count += 1
        said.append(graphs.message())
    assert [bool(text) for text in said] == [False] * 4 + [True] + [False] * 2
    assert said[4].startswith("compile: 5 recompiles since the first step")


def check(packed, *overrides):
    recipe = recipe_of(*overrides)
    with sslpipe.load(recipe, shards=packed, device="cpu") as pipe:
        check_training(recipe, pipe.spec)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["train.parallel=fsdp", "train.optimizer={adafactor: {lr: 1e-2}}"],
      "fsdp cuts what adafactor takes rows and columns of"),
     (["train.precision=fp16", "train.parallel=fsdp"], "fsdp trains in bf16 or fp32"),
     (["train.parallel=ddpp"], "ddp"),
     (["train.checkpoint_activations=true", "method={simclr: {projector: [16, 8]}}",
       "train.backbone={cifar_resnet: {width: 8}}"],
      "backbone 'cifar_resnet' has no blocks without batch norm"),
     (["train.parallel=fsdp", "method={simclr: {projector: [16, 8]}}",
       "train.backbone={test_scale:Scaled: {}}"],
      "cannot cut simclr, whose encoder.scale is one number; set parallel: ddp")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_before_data_is_read(overrides, message, packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_scale", sys.modules[__name__])
    with pytest.raises(RecipeError, match=message) as refusal:
        check(packed, *overrides)
    assert "\n" not in str(refusal.value)


class Scaled(nn.Module):
    """An encoder with a parameter that is one number."""

    def __init__(self, view):
        super().__init__()
        self.dim = 3
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.mean((2, 3)) * self.scale


def test_they_are_not_under_the_fingerprint():
    plain = recipe_of()
    other = recipe_of(
        "train.parallel=fsdp", "train.compile=true", "train.checkpoint_activations=true"
    )
    assert other.fingerprint == plain.fingerprint
    assert recipe_of("train.accumulate=2").fingerprint != plain.fingerprint
