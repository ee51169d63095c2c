import math

import pytest
import torch
import torch.nn.functional as F

from sslpipe.errors import ContractError
from sslpipe.methods import nnclr

SMALL = {"projector": (16, 8), "predictor_hidden": 16, "queue": 8}


def slow_nnclr_loss(neighbours, predictions, temperature):
    """Dwibedi et al. 2021, eq. 3, with loops."""

    def unit(row):
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    n, p = ([unit(row) for row in rows.tolist()] for rows in (neighbours, predictions))
    total = 0.0
    for i, a in enumerate(n):
        logits = [sum(x * y for x, y in zip(a, b, strict=True)) / temperature for b in p]
        total += math.log(sum(map(math.exp, logits))) - logits[i]
    return total / len(n)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_is_equation_3(rand, temperature):
    n, p = rand(5, 4), rand(5, 4)
    loss = nnclr.nnclr_loss(n, p, temperature=temperature)
    assert loss.item() == pytest.approx(slow_nnclr_loss(n, p, temperature), abs=1e-9)
    scaled = nnclr.nnclr_loss(n * 3.0, p * 7.0, temperature=temperature)
    torch.testing.assert_close(scaled, loss)


def test_identical_embeddings_cost_the_log_of_the_candidates(rand):
    same = rand(1, 4).expand(8, 4)
    assert nnclr.nnclr_loss(same, same, temperature=0.1).item() == pytest.approx(math.log(8))


def test_neighbours_take_no_gradient(rand):
    n, p = rand(3, 4).requires_grad_(), rand(3, 4).requires_grad_()
    nnclr.nnclr_loss(n, p, temperature=0.5).backward()
    assert n.grad is None
    assert torch.autograd.gradcheck(
        lambda x: nnclr.nnclr_loss(n.detach(), x, temperature=0.5), (p,)
    )


def test_nearest_neighbours_are_by_cosine(rand):
    queue = F.normalize(rand(20, 4), dim=1)
    z = F.normalize(rand(5, 4), dim=1)
    found = nnclr.nearest_neighbours(z, queue)
    assert found.tolist() == [int((z[i] - queue).norm(dim=1).argmin()) for i in range(5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nnclr.nearest_neighbours(z.float(), queue.float()).equal(found)


def test_forward_swaps_views_and_enqueues_the_first_after_its_use(encoder, views):
    batch, spec = views
    method = nnclr.NNCLR(encoder, spec, **SMALL)
    before = method.queue.rows_QD.clone()
    loss = method(batch).loss
    z = method.projector(encoder(batch.views["global"].flatten(0, 1)))
    p1, p2 = method.predictor(z).chunk(2)
    z1, z2 = F.normalize(z, dim=1).chunk(2)
    near1, near2 = (before[(x @ before.T).argmax(1)] for x in (z1, z2))
    terms = [nnclr.nnclr_loss(n, p, temperature=0.1) for n, p in ((near1, p2), (near2, p1))]
    torch.testing.assert_close(loss, sum(terms) / 2)
    torch.testing.assert_close(method.queue.rows_QD[:4], z1)
    assert method.queue.rows_QD[4:].equal(before[4:])
    loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)
    assert encoder.linear.weight.grad.abs().sum() > 0


def test_validation_leaves_the_queue_alone(encoder, views):
    method = nnclr.NNCLR(encoder, views[1], **SMALL).eval()
    before = method.queue.rows_QD.clone()
    method(views[0])
    assert method.queue.rows_QD.equal(before)


def test_heads_are_the_papers(encoder, views):
    method = nnclr.NNCLR(encoder, views[1], queue=8)
    kinds = [type(layer).__name__ for layer in (*method.projector, *method.predictor)]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*block, *block, "Linear", "BatchNorm1d", *block, "Linear"]
    sizes = [p.shape[0] for p in (method.projector[6].weight, *method.predictor[::3].parameters())]
    assert sizes == [256, 4096, 4096, 256, 256]


def test_a_queue_of_partial_batches_breaks_the_contract(encoder, views):
    with pytest.raises(ContractError, match=r"method\.nnclr\.queue = 9 is no multiple"):
        nnclr.NNCLR(encoder, views[1], queue=9)
