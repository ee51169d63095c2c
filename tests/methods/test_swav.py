import copy
import math

import pytest
import torch
import torch.nn.functional as F

from sslpipe import methods
from sslpipe.errors import ContractError
from sslpipe.methods import swav
from sslpipe.methods.parts.sinkhorn import sinkhorn_knopp

SMALL = {"projector": (16, 8), "prototypes": 6}


def slow_swav_loss(scores, codes, temperature):
    """Caron et al. 2020, eq. 1 and 2, with loops and the means of main_swav.py:305-376."""
    loss = 0.0
    for a, code in enumerate(codes.tolist()):
        subloss = 0.0
        for v, view in enumerate(scores.tolist()):
            if v == a:
                continue
            for q, s in zip(code, view, strict=True):
                log_total = math.log(sum(math.exp(x / temperature) for x in s))
                subloss -= sum(c * (x / temperature - log_total) for c, x in zip(q, s, strict=True))
        loss += subloss / scores.shape[1] / (len(scores) - 1)
    return loss / len(codes)


@pytest.fixture
def crops(make_batch, rand):
    """Two global and three smaller local views of four images."""
    return make_batch({"global": rand(2, 4, 3, 8, 8).float(), "local": rand(3, 4, 3, 4, 4).float()})


@pytest.mark.parametrize("views", [2, 5])
def test_loss_is_equation_2(rand, views):
    scores, codes = rand(views, 3, 6).tanh(), rand(2, 3, 6).softmax(-1)
    loss = swav.swav_loss(scores, codes, temperature=0.1)
    assert loss.item() == pytest.approx(slow_swav_loss(scores, codes, 0.1), abs=1e-9)
    single = swav.swav_loss(scores.float(), codes.float(), temperature=0.1)
    assert single.item() == pytest.approx(loss.item(), abs=1e-4)


def test_uniform_scores_cost_the_log_of_the_prototypes(rand):
    loss = swav.swav_loss(torch.zeros(5, 3, 6), rand(2, 3, 6).softmax(-1), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(6))


def test_no_gradient_reaches_the_codes_nor_a_crop_through_its_own(rand):
    scores, codes = rand(2, 3, 6).requires_grad_(), rand(2, 3, 6).softmax(-1).requires_grad_()
    swav.swav_loss(scores, codes, temperature=0.1).backward()
    assert codes.grad is None
    p = (scores.detach()[0] / 0.1).softmax(-1)  # crop 0 learns from code 1 only
    torch.testing.assert_close(scores.grad[0], (p - codes.detach()[1]) / 0.1 / 6)


def test_forward_is_one_pass_per_size_and_balances_each_global_crop(encoder, crops):
    batch, spec = crops
    method = swav.SwAV(encoder, spec, **SMALL).eval()
    encoder.calls.clear()
    output = method(batch)
    assert encoder.calls == [(8, 3, 8, 8), (12, 3, 4, 4)]
    features = [encoder(v.flatten(0, 1)) for v in batch.views.values()]
    z = F.normalize(method.embedder.projector(torch.cat(features)), dim=1).view(5, 4, 8)
    scores = z @ F.normalize(method.prototypes_KD, dim=1).T
    codes = torch.stack([sinkhorn_knopp(s, epsilon=0.05) for s in scores[:2]])
    torch.testing.assert_close(output.loss, swav.swav_loss(scores, codes, temperature=0.1))
    assert not any(metric.requires_grad for metric in output.metrics.values())


def test_the_head_shares_its_batch_statistics_between_sizes(encoder, crops):
    batch, spec = crops
    method = swav.SwAV(encoder, spec, **SMALL).train()
    method(batch)
    kinds = [type(layer).__name__ for layer in method.embedder.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert method.embedder.projector[1].num_batches_tracked == 1


def trained(encoder, spec, batch, steps, **settings):
    method = swav.SwAV(encoder, spec, **SMALL, **settings)
    optimizer = torch.optim.SGD(method.parameters(), 0.5, momentum=0.9, weight_decay=0.1)
    methods.follow(optimizer, method, total_steps=4)
    for _ in range(steps):
        yield method
        optimizer.zero_grad()
        method(batch).loss.backward()
        optimizer.step()
    yield method


def test_prototypes_start_uniform_like_a_linear_layers_weights(encoder, crops):
    """The fourth moment tells a uniform draw from a normal one."""
    torch.manual_seed(0)
    method = swav.SwAV(encoder, crops[1], projector=(16, 64), prototypes=500)
    directions = method.prototypes_KD.detach()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(500))
    kurtosis = (directions.pow(4).mean() / directions.pow(2).mean() ** 2).item()
    assert kurtosis == pytest.approx(1.8, abs=0.05)  # of U(-1, 1); 3 of a normal distribution


def test_prototypes_have_length_one_before_every_forward(encoder, crops):
    batch, spec = crops
    for method in trained(encoder, spec, batch, 3, freeze_prototypes=0.0):
        torch.testing.assert_close(method.prototypes_KD.norm(dim=1), torch.ones(6))


def test_prototypes_stand_still_while_frozen_with_a_gradient_of_zero(encoder, crops):
    batch, spec = crops
    moved = []
    for step, method in enumerate(trained(encoder, spec, batch, 4, freeze_prototypes=0.5)):
        if step == 0:
            first = method.prototypes_KD.detach().clone()
        elif step <= 2:
            assert method.prototypes_KD.grad.abs().sum() == 0  # and not None: DDP waits for it
        moved.append(not torch.allclose(method.prototypes_KD, first, atol=1e-6))
    assert moved == [False, False, False, True, True]


def test_the_queue_starts_as_said_and_counts_only_when_full(encoder, crops):
    batch, spec = crops
    method = swav.SwAV(encoder, spec, **SMALL, queue=8, queue_start=0.5)
    method(batch)
    assert method.queue.seen == 0
    method.after_step(0.5)
    method(batch)
    assert (method.queue.seen, method.queued_scores().shape) == (4, (2, 0, 6))
    method.eval()(batch)
    assert method.queue.seen == 4  # a loss taken for validation leaves no trace
    method.train()(batch)
    method.queue.turn(enqueues=False)  # as the next pass does
    rows = method.queue.rows_QD.view(8, 2, 8)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(8, 2))
    scores = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).tanh()
    for a, codes in enumerate(method.codes(scores)):
        joined = torch.cat([rows[:, a] @ method.prototypes_KD.T, scores[a]])
        torch.testing.assert_close(codes, sinkhorn_knopp(joined, epsilon=0.05)[8:])
        assert not torch.allclose(codes, sinkhorn_knopp(scores[a], epsilon=0.05))


def test_a_queue_of_partial_batches_breaks_the_contract(encoder, crops):
    with pytest.raises(ContractError, match=r"method\.swav\.queue = 6 is no multiple"):
        swav.SwAV(encoder, crops[1], **SMALL, queue=6)


def test_a_resumed_run_is_exact(encoder, crops):
    batch, spec = crops
    settings = {"queue": 8, "freeze_prototypes": 0.4}
    method = swav.SwAV(encoder, spec, **SMALL, **settings)
    for progress in (0.25, 0.5):
        method(batch)
        method.after_step(progress)
    twin = swav.SwAV(copy.deepcopy(encoder), spec, **SMALL, **settings)
    twin.load_state_dict(method.state_dict())
    assert twin.progress == 0.5
    assert twin(batch).loss.equal(method(batch).loss)


def test_codes_stay_exact_under_autocast(encoder, crops):
    batch, spec = crops
    method = swav.SwAV(encoder, spec, **SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert method.prototypes_KD.grad.isfinite().all()


def test_monitors_tell_uniform_codes_from_healthy_ones():
    flat = swav.code_monitors(torch.full((2, 4, 8), 1 / 8))
    assert flat["code_entropy"].item() == pytest.approx(math.log(8))
    sharp = swav.code_monitors(torch.eye(8).view(2, 4, 8))
    assert sharp["code_entropy"] == 0
    assert sharp["mean_entropy"].item() == pytest.approx(math.log(8))
