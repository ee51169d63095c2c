import copy
import math

import pytest
import torch
from torch import nn

from sslpipe import methods
from sslpipe.batch import BatchSpec, ViewSpec
from sslpipe.errors import ContractError
from sslpipe.methods import moco

from .conftest import Normed

SMALL = {"projector": (10, 5), "queue": 8, "bn_groups": 2}


def slow_info_nce(q, k, queue, temperature):
    """He et al. 2019, eq. 1, with loops."""

    def unit(vector):
        norm = math.sqrt(sum(x * x for x in vector))
        return [x / norm for x in vector]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    losses = []
    for one, key in zip(q.tolist(), k.tolist(), strict=True):
        positive = dot(unit(one), unit(key))
        negatives = [dot(unit(one), row) for row in queue.tolist()]
        losses.append(math.log(sum(math.exp(x - positive) for x in [positive, *negatives])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_info_nce_is_equation_1(rand, temperature):
    q, k, queue = rand(5, 4), rand(5, 4), nn.functional.normalize(rand(7, 4), dim=1)
    loss = moco.info_nce(q, k, queue, temperature=temperature)
    assert loss.item() == pytest.approx(slow_info_nce(q, k, queue, temperature), abs=1e-9)
    single = moco.info_nce(q.float(), k.float(), queue.float(), temperature=temperature)
    assert single.item() == pytest.approx(loss.item(), abs=1e-4)
    scaled = moco.info_nce(q * 7.0, k * torch.arange(1, 6)[:, None], queue, temperature=temperature)
    torch.testing.assert_close(scaled, loss)


def test_equal_embeddings_cost_the_log_of_the_candidates(rand):
    row = nn.functional.normalize(rand(1, 4), dim=1)
    loss = moco.info_nce(row.expand(3, 4), row.expand(3, 4), row.expand(9, 4), temperature=0.07)
    assert loss.item() == pytest.approx(math.log(10))


def test_only_queries_take_a_gradient(rand):
    q, k, queue = (rand(4, 4).requires_grad_() for _ in range(3))
    moco.info_nce(q, k, queue, temperature=0.2).backward()
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert queue.grad is None


def test_top1_is_among_the_key_and_the_queue():
    q, queue = torch.eye(4), torch.eye(4)[:1]
    k = torch.eye(4)[[1, 1, 2, 3]]  # the first query is nearer to the queue's row
    k[3] *= -1  # and the last to everything else
    assert moco.retrieval(q, k, queue)["top1"].item() == pytest.approx(2 / 4)


def test_keys_enter_the_queue_after_the_loss_oldest_first(encoder, views):
    batch, spec = views
    method = moco.MoCo(encoder, spec, **SMALL)
    first = method.queue.rows_QD.clone()
    q = method.query(batch.views["global"][0])
    k = nn.functional.normalize(method.key(batch.views["global"][1]), dim=1)
    expected = moco.info_nce(q, k, first, temperature=0.2)
    torch.testing.assert_close(method(batch).loss, expected)
    torch.testing.assert_close(method.queue.rows_QD, torch.cat([k, first[4:]]))
    method(batch).loss.backward()  # enqueueing does not disturb it
    torch.testing.assert_close(method.queue.rows_QD, torch.cat([k, k]))
    assert all(p.grad is None for p in method.key.parameters())
    method.eval()(batch)
    torch.testing.assert_close(method.queue.rows_QD, torch.cat([k, k]))


def test_the_steps_are_the_official_ones(encoder, views):
    """Query pass, EMA, key pass, loss, enqueue, optimizer: moco/builder.py, with plain loops."""
    batch, spec = views
    method = moco.MoCo(encoder, spec, **SMALL, momentum=0.7)
    query, key = copy.deepcopy(method.query), copy.deepcopy(method.query)
    queue = method.queue.rows_QD.clone()
    ours = torch.optim.SGD(method.query.parameters(), 0.5)
    methods.follow(ours, method, total_steps=3)
    theirs = torch.optim.SGD(query.parameters(), 0.5)
    for step in range(3):
        ours.zero_grad()
        loss = method(batch).loss
        loss.backward()
        ours.step()
        q = query(batch.views["global"][0])
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.copy_(0.7 * slow + 0.3 * fast)
            k = nn.functional.normalize(key(batch.views["global"][1]), dim=1)
        expected = moco.info_nce(q, k, queue, temperature=0.2)
        start = step * 4 % 8
        queue = queue.clone()
        queue[start : start + 4] = k
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(method.queue.rows_QD, queue)


def test_the_key_encoder_is_a_separate_frozen_copy_with_statistics_of_its_own(views):
    batch, spec = views
    method = moco.MoCo(Normed(), spec, **SMALL)
    for (name, slow), fast in zip(
        method.key.named_parameters(), method.query.parameters(), strict=True
    ):
        assert slow.data_ptr() != fast.data_ptr(), name
        assert slow.equal(fast)
        assert not slow.requires_grad
    method(batch)
    ours, theirs = method.query[0][2].running_mean, method.key[0][2].running_mean
    before = theirs.clone()
    assert not ours.equal(theirs)
    assert theirs.abs().sum() > 0  # in train mode, as the query's
    method.after_step(0.5)
    assert theirs.equal(before)  # statistics are not averaged
    assert method.encoder is method.query[0]


def test_shuffled_keys_come_back_in_order_with_other_statistics(views):
    batch, spec = views
    method = moco.MoCo(Normed(), spec, **SMALL).double()
    images = batch.views["global"][1].double()
    found = {}
    for step in range(12):
        order = moco.random_order(4, step)
        expected = torch.empty(4, 5, dtype=torch.float64)
        expected[order] = method.key(images[order])  # groups are halves of the shuffled batch
        found[step] = method.keys(images, step)
        torch.testing.assert_close(found[step], expected)
    assert any(not torch.allclose(found[0], keys) for keys in found.values())
    plain = moco.MoCo(Normed(), spec, **SMALL | {"bn_groups": 1}).double()
    torch.testing.assert_close(plain.keys(images, 0), plain.key(images))
    assert isinstance(plain.encoder[2], nn.BatchNorm1d)


def test_orders_are_permutations_that_differ_from_step_to_step():
    orders = [tuple(moco.random_order(16, step).tolist()) for step in range(20)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len(set(orders)) == 20
    assert orders[3] == tuple(moco.random_order(16, 3).tolist())


def test_projectors_of_both_versions_have_biases_and_no_norm(encoder, views):
    settings = SMALL | {"projector": (5,)}
    assert [type(part) for part in moco.MoCo(encoder, views[1], **settings).query[1]] == [nn.Linear]
    second = moco.MoCo(encoder, views[1], **SMALL).query[1]
    assert [type(part) for part in second] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(part.weight.shape) for part in second[::2]] == [(10, 6), (5, 10)]
    assert all(part.bias is not None for part in second[::2])


def test_a_queue_that_is_no_multiple_of_the_global_batch_is_refused(encoder, views):
    with pytest.raises(ContractError, match=r"method\.moco\.queue = 10 is no multiple.*of 4"):
        moco.MoCo(encoder, views[1], **SMALL | {"queue": 10})


def test_the_batch_of_the_queue_is_that_of_all_ranks(encoder):
    spec = BatchSpec(4, 8, {"global": ViewSpec("global", 2, "CHW", (3, 8, 8))}, {}, {})
    with pytest.raises(ContractError, match=r"queue = 12 .* global batch of 8"):
        moco.MoCo(encoder, spec, **SMALL | {"queue": 12})
    assert moco.MoCo(encoder, spec, **SMALL | {"queue": 16}).queue.batch == 8


@pytest.mark.parametrize(
    ("size", "world", "groups", "expected"),
    [(256, 1, 8, 8), (32, 8, 8, 1), (64, 4, 8, 2), (32, 8, 1, 1), (256, 1, 1, 1)],
)
def test_groups_do_not_depend_on_the_number_of_ranks(size, world, groups, expected):
    spec = BatchSpec(
        size, size * world, {"global": ViewSpec("global", 2, "CHW", (3, 8, 8))}, {}, {}
    )
    assert moco.groups_per_rank(spec, groups) == expected


@pytest.mark.parametrize(("size", "world", "groups"), [(4, 1, 3), (32, 8, 4), (4, 1, 0), (4, 1, 8)])
def test_groups_that_ranks_or_batches_would_cut_are_refused(size, world, groups):
    spec = BatchSpec(
        size, size * world, {"global": ViewSpec("global", 2, "CHW", (3, 8, 8))}, {}, {}
    )
    with pytest.raises(ContractError, match=rf"bn_groups = {groups}.*multiple of the number"):
        moco.groups_per_rank(spec, groups)
