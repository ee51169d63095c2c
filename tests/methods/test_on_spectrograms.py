"""Methods for pictures serve spectrograms unchanged: axes CFT, one channel, no square."""

from dataclasses import replace

import pytest
import torch

from sslpipe.batch import BatchSpec, MaskSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.recipe.names import Entry

from .every_method import VIT, build, make_batch, make_spec

SIZE = 4
NAMES = [
    "barlow_twins", "byol", "data2vec2", "dino", "dinov2", "ibot", "ijepa", "mae", "moco_v3",
    "msn", "simclr", "simmim", "simsiam", "swav", "vicreg",
]  # fmt: skip


def sounding():
    """The spec and the batch of every_method, each view twice as long and of one channel."""
    spec, batch = make_spec(SIZE), make_batch(SIZE)
    views = {
        name: ViewSpec(name, v.count, "CFT", (1, v.shape[1], 2 * v.shape[2]))
        for name, v in spec.views.items()
        if v.axes == "CHW"
    }
    masks = {
        name: MaskSpec(m.view, m.count, "FT", m.patch, (m.grid[0], 2 * m.grid[1]),
                       None if m.hidden is None else 2 * m.hidden)
        for name, m in spec.masks.items() if m.axes == "HW"
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    batch = replace(
        batch,
        views={
            name: torch.randn(v.count, SIZE, *v.shape, generator=generator)
            for name, v in views.items()
        },
        masks={name: torch.cat([batch.masks[name]] * 2, dim=-1) for name in masks},
        hidden={name: 2 * batch.hidden[name] for name in masks},
    )
    return BatchSpec(SIZE, SIZE, views, masks, {}, epoch_size=SIZE), batch


@pytest.mark.parametrize("name", NAMES)
def test_a_method_for_pictures_learns_from_spectrograms(name):
    torch.manual_seed(0)
    spec, batch = sounding()
    encoder = build_encoder(Entry("vit_tiny", VIT), spec.views["global"])
    assert encoder.model.patch_embed.grid_size == (4, 8)
    method = build(name, spec, encoder)
    output = method(batch)
    output.loss.backward()
    assert output.loss.isfinite()
    student = method.get_submodule(dict(method.encoders)["student"])
    assert student.model.patch_embed.proj.in_channels == 1
    assert student.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
