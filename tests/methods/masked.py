"""Masks of every kind over 4 x 4 patches of 4 px, and tiny settings of methods that use them."""

import torch

from sslpipe.batch import Batch, BatchSpec, MaskSpec, ViewSpec
from sslpipe.encoders import build_encoder
from sslpipe.recipe.names import Entry
from tests.view_specs import square

PATCH, GRID, PATCHES = 4, (4, 4), 16
VIT = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2}
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_groups": 4}
SETTINGS = {
    "autoencoder": {"bottleneck": 4, "hidden": 8},
    "beit": {"tokenizer": {"random_projection": {"vocabulary": 10}}},
    "data2vec2": {"top_k": 2, "momentum": [0.5, 0.9], "mask_noise": 0.0, **DECODER},
    "ijepa": {"predictor_dim": 16, "predictor_depth": 2, "predictor_heads": 2},
    "simmim": {},
}


def vit(**settings):
    torch.manual_seed(0)
    return build_encoder(Entry("vit_tiny", VIT | settings), square(16))


def choose(counts_MB, seed):
    """(M, B, N) bool masks that hide as many patches as said."""
    generator = torch.Generator().manual_seed(seed)
    rank_MBN = torch.rand(*counts_MB.shape, PATCHES, generator=generator).argsort(-1).argsort(-1)
    return rank_MBN < counts_MB[:, :, None]


def masks(size):
    """As the recipes make them: some hide equally many patches everywhere, some do not."""
    number = torch.arange(size)
    return {
        "units": choose(torch.full((1, size), 8), 0),
        "blocks": choose(5 + number[None] % 3, 1),
        "inverse": choose(torch.full((3, size), 12), 2),
        "context": choose(8 + number[None] % 4, 3),
        "targets": choose(2 + (number[None] + torch.arange(2)[:, None]) % 3, 4),
    }


def spec_of(size):
    specs = {
        name: MaskSpec(
            "global",
            len(m),
            "HW",
            (PATCH, PATCH),
            GRID,
            None if name in UNEVEN else int(m[0, 0].sum()),
        )
        for name, m in masks(size).items()
    }
    return BatchSpec(size, size, {"global": ViewSpec("global", 1, "CHW", (3, 16, 16))}, specs, {})


UNEVEN = {"blocks", "context", "targets"}


def batch_of(rank=0, world=1, *, size=4, dtype=torch.float32):
    """This rank's share of `size` random images and their masks."""
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(1, size, 3, 16, 16, generator=generator, dtype=torch.float64)
    share = {name: mask.chunk(world, dim=1)[rank] for name, mask in masks(size).items()}
    views = images.chunk(world, dim=1)[rank].to(dtype)
    uids = torch.arange(views.shape[1])
    return Batch(
        views={"global": views}, masks=share,
        hidden={name: mask.sum(-1).numpy() for name, mask in share.items()}, targets={},
        labels=uids, params={}, uids=uids, keys=("",) * len(uids),
        valid=torch.ones(len(uids), dtype=torch.bool), epoch=0, step=0,
    )  # fmt: skip
