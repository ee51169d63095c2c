"""Small packed sets that can be learned: classes are colours, and the rest is noise."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from sslpipe.encoders.image import vit
from sslpipe.evaluate.subjects import Subject
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.train.world import keyed

from ..view_specs import square

RECIPE = """\
modality: image
stream: {batch_size: 8, seed: 0}
views:
  global:
    ops:
      - RandomResizedCrop: {size: [16, 16]}
      - Normalize
run: {threads: 1, prefetch: 1, workers: 0}
"""


def pack_colours(folder, out, count, *, classes=("red", "green", "blue"), seed=0):
    """`count` noisy JPEGs of 20 x 24 px, in a folder per colour; several shards."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        name = classes[number % len(classes)]
        pixels = rng.integers(0, 120, (20, 24, 3))
        pixels[..., ("red", "green", "blue").index(name)] += 60
        path = folder / name / f"{seed}-{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    pack(folder, out, PackSettings(codec=ImageCodec(), shard_bytes=30_000))
    return out


class Means(nn.Module):
    """Mean and std of each channel, through a batch norm and a layer that must not change."""

    def __init__(self):
        super().__init__()
        with keyed("test", seed=0):
            self.norm = nn.BatchNorm1d(6)
            self.layer = nn.Linear(6, 6)

    def forward(self, images):
        pixels = images.flatten(2)
        return self.layer(self.norm(torch.cat([pixels.mean(2), pixels.std(2)], 1)))


def small_vit(*, embed_dim=16):
    """Three blocks, of width 16, on 16 x 16 px."""
    with keyed("test", seed=1):
        return vit(
            "vit_tiny_patch16_224",
            square(16),
            patch_size=8,
            embed_dim=embed_dim,
            depth=3,
            num_heads=2,
        )


def subject(encoder):
    recipe = parse_recipe(RECIPE, path="toy.yaml")
    return Subject("toy", encoder, recipe, "b2:0", None)
