"""On a GPU, every method's step must queue its kernels without waiting for one of them."""

import warnings

import pytest
import torch

from sslpipe import methods

from ..waiting import forbidden_to_wait
from .every_method import build, make_batch, make_spec

NAMES = sorted(methods.METHODS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_never_synchronises(name):
    # the first step allocates and builds libraries' handles; DeepCluster clusters in the second
    outputs = steps(name, "cuda", watched=2)
    assert outputs[-1].loss.isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_steps_run_on_a_cpu_and_their_loss_is_fp32_under_autocast(name):
    for output in steps(name, "cpu"):
        assert output.loss.dtype == torch.float32
        assert output.loss.isfinite()


def steps(name, device, watched=None):
    """Outputs of three steps in bfloat16; from step `watched` on, whatever waits raises."""
    torch.manual_seed(0)
    method = build(name, make_spec(8)).to(device)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-3)
    methods.follow(optimizer, method, total_steps=10)
    outputs = []
    for number in range(3):
        batch = make_batch(8, min(number, 1)).to(device)
        with forbidden_to_wait() if number == watched else warnings.catch_warnings():
            outputs.append(step(method, optimizer, batch))
    return outputs


def step(method, optimizer, batch):
    optimizer.zero_grad()
    with torch.autocast(batch.labels.device.type, dtype=torch.bfloat16):
        output = method(batch)
    output.loss.backward()
    optimizer.step()
    return output
