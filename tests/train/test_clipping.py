"""Gradients that are clipped all together, per module and per parameter."""

import pytest
import torch

from sslpipe.errors import RecipeError
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.train import train

HALVES = (slice(0, 2), slice(2, 4))  # weight and bias of the encoder, and of the head


def start(toy, out, method, *, max_steps=None, **settings):
    recipe = toy.recipe(**settings)
    train(toy.Pipe(recipe), method, recipe.train, out=out, max_steps=max_steps)


@pytest.mark.parametrize("clip", ["global", "per_parameter"])
def test_clipping_bounds_the_gradients(toy, tmp_path, clip):
    seen = []

    class Watch(toy.Toy):
        def after_step(self, progress):
            seen.append([p.grad.norm() for p in self.parameters() if p.grad is not None])

    start(toy, tmp_path, Watch(), clip_norm=0.01, clip=clip, max_steps=3)
    for norms in seen:
        total = torch.stack(norms).norm().item()
        assert total == pytest.approx(0.01 if clip == "global" else 0.01 * len(norms) ** 0.5, 1e-3)


def test_modules_are_clipped_each_for_itself(toy, tmp_path):
    """DINOv2's train.py: clip_grad_norm_ of every module of the student."""
    seen = []

    class Watch(toy.Toy):
        def clipped_together(self):
            yield self.encoder.parameters()
            yield self.head.parameters()

        def after_step(self, progress):
            seen.append(
                [p.grad for module in (self.encoder, self.head) for p in module.parameters()]
            )

    def start_watched(folder, **clip):
        start(toy, tmp_path / folder, Watch(), max_steps=1, **clip)
        return [grads.detach().clone() for grads in seen.pop()]

    raw = start_watched("raw")
    made = start_watched("clipped", clip_norm=0.37, clip="per_module")
    norms = [torch.cat([g.flatten() for g in raw[half]]).norm() for half in HALVES]
    assert min(norms) < 0.37 < max(norms)  # together they would both be clipped
    for half, norm in zip(HALVES, norms, strict=True):
        for before, after in zip(raw[half], made[half], strict=True):
            torch.testing.assert_close(after, before * min(0.37 / (norm + 1e-6), 1.0))


def test_modules_to_clip_are_the_method_s_to_name(toy, tmp_path):
    with pytest.raises(RecipeError, match=r"'per_module' needs a method with clipped_together\(\)"):
        start(toy, tmp_path, toy.Toy(), clip_norm=0.37, clip="per_module")


@pytest.mark.parametrize("clip", ["per_module", "per_parameter"])
def test_a_way_to_clip_needs_a_norm(clip):
    with pytest.raises(RecipeError, match=r"clip.*of no use without clip_norm"):
        load_recipe(find_recipe("simclr"), overrides=[f"train.clip={clip}"])
