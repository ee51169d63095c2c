import math

import pytest
import torch

from sslpipe.errors import ContractError
from sslpipe.methods import simclr


def slow_nt_xent(z1, z2, temperature):
    """Chen et al. 2020, eq. 1 and algorithm 1, with loops."""
    pairs = [z for pair in zip(z1.tolist(), z2.tolist(), strict=True) for z in pair]

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    def term(i, j):
        exps = [math.exp(cosine(pairs[i], z) / temperature) for z in pairs]
        return -math.log(exps[j] / sum(e for k, e in enumerate(exps) if k != i))

    count = len(pairs)
    return sum(term(i, i ^ 1) for i in range(count)) / count  # 2k-1 and 2k are a pair


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_equation_1(rand, temperature):
    z1, z2 = rand(5, 4), rand(5, 4)
    loss = simclr.nt_xent(z1, z2, temperature=temperature)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_nt_xent(z1, z2, temperature), abs=1e-9)
    single = simclr.nt_xent(z1.float(), z2.float(), temperature=temperature)
    assert single.item() == pytest.approx(loss.item(), abs=1e-4)


def test_identical_embeddings_cost_the_log_of_the_candidates(rand):
    z = rand(1, 4).expand(8, 4)
    assert simclr.nt_xent(z, z, temperature=0.1).item() == pytest.approx(math.log(15), abs=1e-12)


def test_rescaling_embeddings_changes_nothing(rand):
    z1, z2 = rand(5, 4), rand(5, 4)
    loss = simclr.nt_xent(z1, z2, temperature=0.1)
    scaled = simclr.nt_xent(z1 * 7.0, z2 * torch.arange(1, 6)[:, None], temperature=0.1)
    torch.testing.assert_close(scaled, loss)


def test_an_embedding_is_not_its_own_negative():
    # orthogonal pairs that agree perfectly: with the self-similarity left in, the loss is ln 2
    z = torch.eye(4, dtype=torch.float64)
    assert simclr.nt_xent(z, z, temperature=0.01).item() < 1e-12


def test_gradient_is_right_and_finite(rand):
    z1, z2 = rand(3, 4).requires_grad_(), rand(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: simclr.nt_xent(a, b, temperature=0.5), (z1, z2))


def test_loss_stays_fp32_under_autocast(rand):
    z1, z2 = rand(5, 4).float(), rand(5, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = simclr.nt_xent(z1, z2, temperature=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, simclr.nt_xent(z1, z2, temperature=0.1), rtol=0, atol=0)


def test_projector_is_the_official_one(encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(2, 4, 3, 8, 8).float()})
    projector = simclr.SimCLR(encoder, spec, projector=(16, 8, 5)).projector
    kinds = [type(layer).__name__ for layer in projector]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*block, *block, "Linear", "BatchNorm1d"]
    assert all(layer.bias is None for layer in projector if type(layer).__name__ == "Linear")
    last = projector[-1]
    assert last.weight.requires_grad
    assert not last.bias.requires_grad
    assert last.bias.abs().sum() == 0
    assert (last.momentum, last.eps) == (0.1, 1e-5)


def test_forward_is_one_pass_of_both_views(encoder, make_batch, rand):
    batch, spec = make_batch({"global": rand(2, 4, 3, 8, 8).float()})
    method = simclr.SimCLR(encoder, spec, projector=(16, 8))
    output = method(batch)
    assert encoder.calls == [(8, 3, 8, 8)]
    z1, z2 = method.projector(encoder(batch.views["global"].flatten(0, 1))).chunk(2)
    torch.testing.assert_close(output.loss, simclr.nt_xent(z1, z2, temperature=0.1))
    output.loss.backward()
    assert encoder.linear.weight.grad.isfinite().all()
    assert encoder.linear.weight.grad.abs().sum() > 0
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_monitors_tell_health_from_collapse(rand):
    z = rand(2000, 64)
    healthy = simclr.pair_monitors(z, z)
    assert healthy["top1"] == 1
    assert healthy["embedding_std"].item() == pytest.approx(1 / math.sqrt(64), rel=0.02)
    collapsed = simclr.pair_monitors(z[:1].expand(20, 64), z[:1].expand(20, 64))
    assert collapsed["embedding_std"].item() < 1e-12


def test_top1_counts_pairs_that_are_nearest():
    z1 = torch.eye(3)
    z2 = z1[[0, 2, 1]]  # the last two pairs are crossed
    assert simclr.pair_monitors(z1, z2)["top1"].item() == pytest.approx(1 / 3)


def test_one_view_breaks_the_contract(encoder, make_batch, rand):
    _, spec = make_batch({"global": rand(1, 4, 3, 8, 8)})
    with pytest.raises(ContractError, match=r"simclr needs 2 'global' views.*makes 1"):
        simclr.SimCLR(encoder, spec)


def test_an_encoder_must_say_its_width(make_batch, rand):
    _, spec = make_batch({"global": rand(2, 4, 3, 8, 8)})
    with pytest.raises(ContractError, match=r"needs encoder\.dim.*Identity"):
        simclr.SimCLR(torch.nn.Identity(), spec)
