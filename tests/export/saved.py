"""Checkpoints without training, of weights and statistics that no initialisation draws."""

import torch

from sslpipe.batch import BatchSpec, ViewSpec
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.sections import recipe_text
from sslpipe.train import initial_method
from sslpipe.train.checkpoint import Checkpoint, view_record, write_checkpoint

RECIPE = """
stream: {{batch_size: 8}}
views:
  global:
    count: 2
    ops: [RandomResizedCrop: {{size: [{side}, {side}]}}, {normalize}]
method: {method}
train: {{backbone: {backbone}, optimizer: {{sgd: {{lr: 0.1}}}}, epochs: 1}}
"""
SIMCLR = "{simclr: {projector: [16, 8]}}"
BYOL = "{byol: {projector: [16, 8], predictor_hidden: 16}}"
DINO = "{dino: {prototypes: 12, hidden: 16, bottleneck: 8}}"
CIFAR = "Normalize: {mean: [0.49, 0.48, 0.45], std: [0.25, 0.24, 0.26]}"
TINY = "{vit_tiny: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2%s}}"


def recipe_of(backbone, *, method=SIMCLR, side=32, normalize=CIFAR):
    text = RECIPE.format(backbone=backbone, method=method, side=side, normalize=normalize)
    return parse_recipe(text)


def method_of(recipe, side=32):
    """The method with weights and statistics that no initialisation draws."""
    view = ViewSpec("global", 2, "CHW", (3, side, side))
    method = initial_method(recipe, BatchSpec(8, 8, {"global": view}, {}, {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return method


def save(path, recipe, method, side=32, start=None):
    """A checkpoint as the trainer writes it."""
    view = ViewSpec("global", 2, "CHW", (3, side, side))
    content = Checkpoint(
        recipe=recipe_text(recipe), fingerprint=recipe.fingerprint, view=view_record(view), step=7,
        stream={"manifest": "b2:data"}, encoder=method.encoder.state_dict(),
        method=method.state_dict(), optimizer={}, scaler={}, torch="2",
        start=start,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, content)


def saved(path, backbone, *, side=32, start=None, **more):
    """A checkpoint of such a backbone, and its method."""
    recipe = recipe_of(backbone, side=side, **more)
    method = method_of(recipe, side)
    save(path, recipe, method, side, start)
    return method.eval()
