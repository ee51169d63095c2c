"""On a GPU, every method's step must queue its kernels without waiting for one of them."""

import warnings

import pytest
import torch

from sslpipe import backbones, methods
from sslpipe.lookup import Entry

from . import masked

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VIT = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
PREDICTOR = {"projector": [16, 8], "predictor_hidden": 16}
SETTINGS = {
    "deepcluster_v2": {"projector": [16, 8], "prototypes": 6},
    "barlow_twins": {"projector": [16, 8]},
    "byol": PREDICTOR,
    "dino": {"prototypes": 12, "hidden": 16, "bottleneck": 8},
    "lejepa": {"projector": [16, 8], "slices": 8},
    "dinov2": {"prototypes": 12, "hidden": 16, "bottleneck": 8, "centering": "sinkhorn"},
    "ibot": {"prototypes": 12, "hidden": 16, "bottleneck": 8},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "nnclr": {"projector": [16, 8], "predictor_hidden": 16, "queue": 16},
    "rotation": {},
    "simclr": {"projector": [16, 8]},
    "swav": {"projector": [16, 8], "prototypes": 6, "queue": 8},
    "moco": {"projector": [16, 8], "queue": 16, "bn_groups": 2},
    "moco_v3": PREDICTOR,
    "simsiam": PREDICTOR,
    "vicreg": {"projector": [16, 8]},
    **masked.SETTINGS,
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_step_never_synchronises(name, make_batch, rand):
    turns = torch.arange(4)[:, None].expand(4, 8).contiguous()
    batch, spec = make_batch(
        {"global": rand(4, 8, 3, 16, 16).float(), "local": rand(2, 8, 3, 8, 8).float()},
        {
            "random": rand(1, 8, 16).argsort(-1) < 12,
            "blocks": rand(4, 8, 16).argsort(-1) < torch.arange(8)[:, None],
        },
        {"random": rand(1, 8, 16).argsort(-1) < 12, **masked.masks(8)},
        {"rotation": turns},
    )
    encoder = backbones.build(Entry("vit_tiny", VIT), image_size=16)
    method = methods.build(Entry(name, SETTINGS[name]), encoder, spec).cuda()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-3)
    methods.follow(optimizer, method, total_steps=10)
    batch = batch.to("cuda")
    step(method, optimizer, batch)  # the first one allocates and builds libraries' handles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the debug mode announces itself as a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        output = step(method, optimizer, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.loss.isfinite()


def step(method, optimizer, batch):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = method(batch)
    output.loss.backward()
    optimizer.step()
    return output
