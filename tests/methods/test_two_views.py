"""What all methods of two views have in common."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sslpipe.methods import METHODS

PREDICTOR = {"projector": (12, 5), "predictor_hidden": 9}
SETTINGS = {
    "barlow_twins": {"projector": (12, 5)},
    "byol": PREDICTOR,
    "moco": {"projector": (12, 5), "queue": 8, "bn_groups": 2},
    "moco_v3": PREDICTOR | {"freeze_patches": False},
    "simsiam": PREDICTOR,
    "vicreg": {"projector": (12, 5)},
}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item"}


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITS, name
        return func(*args, **kwargs or {})


@pytest.fixture(params=sorted(SETTINGS))
def name(request):
    return request.param


@pytest.fixture
def views(make_batch, rand):
    return make_batch({"global": rand(3, 4, 3, 8, 8).float()})


@pytest.fixture
def method(name, encoder, views):
    return METHODS[name](encoder, views[1], **SETTINGS[name])


def test_nothing_waits_for_the_device(method, views):
    with NoWaiting():
        output = method(views[0])
        output.loss.backward()
        method.after_step(0.5)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        output.loss.item()


def test_outputs_are_finite_scalars_and_only_the_loss_has_a_gradient(method, views):
    output = method(views[0])
    for value in (output.loss, *output.metrics.values()):
        assert value.shape == ()
        assert value.isfinite()
    assert output.loss.requires_grad
    assert not any(metric.requires_grad for metric in output.metrics.values())
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_losses_are_fp32_under_autocast(method, views):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(views[0]).loss
    assert loss.dtype == torch.float32
    loss.backward()


def test_states_are_saved_whole(name, method, encoder, views):
    batch, spec = views
    method(batch)
    method.after_step(0.5)
    fresh = METHODS[name](type(encoder)(), spec, **SETTINGS[name])
    fresh.load_state_dict(method.state_dict())
    torch.testing.assert_close(fresh(batch).loss, method(batch).loss)
