"""A step of the methods with queues and memories never asks the device for a value."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslpipe import backbones, methods
from sslpipe.batch import MaskSpec
from sslpipe.lookup import Entry

VIT = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
SMALL = {"projector": [16, 8], "prototypes": 6}
SETTINGS = {
    "deepcluster_v2": SMALL,
    "lejepa": {"projector": [16, 8], "slices": 8},
    "msn": SMALL,
    "nnclr": {"projector": [16, 8], "predictor_hidden": 16, "queue": 8},
    "swav": SMALL | {"queue": 8},
}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "is_nonzero")


class NoSync(TorchDispatchMode):
    """Raises on what a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(word in name for word in WAITING), name
        if "index.Tensor" in name or "index_put" in name:
            dtypes = [i.dtype for i in args[1] if i is not None]
            assert torch.bool not in dtypes, "boolean indexing"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_step_never_synchronises(name, make_batch, rand):
    sizes = {"global": 2, "target": 1, "anchor": 1}
    views = {group: rand(count, 4, 3, 16, 16).float() for group, count in sizes.items()}
    views |= {group: rand(2, 4, 3, 8, 8).float() for group in ("local", "focal")}
    batch, spec = make_batch(views, {"drop": rand(1, 4, 16).argsort(-1) < 3})
    spec.masks["drop"] = MaskSpec("anchor", 1, 4, (4, 4), 3)
    encoder = backbones.build(Entry("vit_tiny", VIT), image_size=16)
    method = methods.build(Entry(name, SETTINGS[name]), encoder, spec)
    for progress in (0.25, 0.5):  # a full queue, and for DeepCluster the clusters of epoch 0
        method(replace(batch, epoch=int(2 * progress)))
        method.after_step(progress)
    with NoSync():
        output = method(replace(batch, epoch=1))
        method.after_step(0.75)
    assert output.loss.isfinite()


def test_the_check_can_fail():
    x = torch.ones(3)
    for waiting in (lambda: x.sum().item(), lambda: x[x > 0], lambda: bool(x.sum() > 0)):
        with NoSync(), pytest.raises(AssertionError):
            waiting()
