import pytest
import torch

from sslpipe.methods.parts.sinkhorn import sinkhorn_knopp


def slow_sinkhorn(scores, epsilon, iterations):
    """facebookresearch/swav, main_swav.py, distributed_sinkhorn, on one process in float64."""
    q = torch.exp(scores.double() / epsilon).T
    count, prototypes = q.shape[1], q.shape[0]
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / count
    return (q * count).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_it_is_the_official_one(rand, iterations, epsilon):
    scores = rand(7, 5).tanh()
    found = sinkhorn_knopp(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(found, slow_sinkhorn(scores, epsilon, iterations))
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=torch.float64))


def test_prototypes_are_used_almost_equally_and_by_many_iterations_exactly(rand):
    scores = rand(64, 4).tanh()
    scores[:, 0] += 1.0  # a softmax would give this prototype nearly everything
    few = sinkhorn_knopp(scores, epsilon=0.3).mean(0)
    many = sinkhorn_knopp(scores, epsilon=0.3, iterations=300).mean(0)
    assert (scores / 0.3).softmax(1).mean(0)[0] > 0.6
    torch.testing.assert_close(few, torch.full_like(few, 0.25), rtol=0.05, atol=0)
    assert not torch.allclose(few, torch.full_like(few, 0.25), rtol=1e-9, atol=0)
    torch.testing.assert_close(many, torch.full_like(few, 0.25))


def test_uniform_scores_give_uniform_assignments():
    torch.testing.assert_close(sinkhorn_knopp(torch.zeros(3, 8)), torch.full((3, 8), 1 / 8))


def test_a_constant_changes_nothing_and_no_gradient_passes(rand):
    scores = rand(6, 4).requires_grad_()
    found = sinkhorn_knopp(scores, epsilon=0.05)
    assert not found.requires_grad
    torch.testing.assert_close(found, sinkhorn_knopp(scores + 3.0, epsilon=0.05))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_neither_overflow_nor_lose_their_sum(rand, dtype):
    scores = (rand(6, 4).tanh() * 30).to(dtype)  # exp(30 / 0.05) is beyond float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn_knopp(scores, epsilon=0.05)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(6))
