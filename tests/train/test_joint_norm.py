"""What joins batch norms, on one process; test_collectives and test_ranks join them over ranks."""

import copy

import pytest
import timm
import torch
from torch import nn

from sslpipe.errors import SslpipeError
from sslpipe.train.joint_norm import join_norms


def trained(module, device="cpu"):
    return join_norms(module, torch.device(device))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_on_one_process_it_is_torch_s(kind, momentum):
    axes = {nn.BatchNorm1d: (), nn.BatchNorm2d: (3, 2), nn.BatchNorm3d: (2, 3, 2)}[kind]
    norm = kind(5, momentum=momentum).double()
    nn.init.normal_(norm.weight)
    ours = trained(copy.deepcopy(norm))
    for _ in range(3):
        x = torch.randn(4, 5, *axes).double() + 2
        left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, found = norm(left), ours(right)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(y.pow(3).sum(), (given, part.weight, part.bias))
                 for y, given, part in ((expected, left, norm), (found, right, ours))]  # fmt: skip
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(ours.state_dict(), norm.state_dict())
    torch.testing.assert_close(ours.eval()(x), norm.eval()(x))
    low = trained(nn.BatchNorm1d(5)).bfloat16()
    assert low(torch.randn(4, 5).bfloat16()).dtype == torch.bfloat16


def test_norms_with_an_activation_keep_it():
    """torch's conversion drops it, which no shape or name tells."""
    model = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1), channels=(32, 32, 32, 32),
                              stem_chs=8, norm_layer=timm.layers.BatchNormAct2d)  # fmt: skip
    x = torch.randn(2, 3, 32, 32)
    names, expected = list(model.state_dict()), copy.deepcopy(model)(x)
    dropped = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert not torch.allclose(dropped(x), copy.deepcopy(model).eval()(x), atol=1e-3)
    synchronised = trained(copy.deepcopy(model), "cuda").eval()  # in eval it computes anywhere
    torch.testing.assert_close(synchronised(x), copy.deepcopy(model).eval()(x))
    ours = trained(model)
    assert list(ours.state_dict()) == names
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_of_another_kind_is_refused():
    class Shifted(nn.BatchNorm1d):
        pass

    with pytest.raises(SslpipeError, match=r"train: 1 is a Shifted, whose statistics cannot be"):
        trained(nn.Sequential(nn.Linear(2, 2), Shifted(2)))
