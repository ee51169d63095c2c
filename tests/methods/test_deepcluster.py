import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sslpipe.errors import ContractError
from sslpipe.methods import deepcluster
from sslpipe.methods.deepcluster import EpochMemory, spherical_kmeans

SMALL = {"projector": (16, 8), "prototypes": 3, "heads": 3}


def slow_kmeans(points, start, iterations):
    """facebookresearch/swav, main_deepclusterv2.py, cluster_memory, with loops."""
    centroids = start.clone()
    for _ in range(iterations):
        assigned = [int((centroids @ p).argmax()) for p in points]
        for k in range(len(centroids)):
            members = [p for p, a in zip(points, assigned, strict=True) if a == k]
            if members:
                centroids[k] = torch.stack(members).mean(0)
        centroids = F.normalize(centroids, dim=1)
    return centroids, [int((centroids @ p).argmax()) for p in points]


@pytest.fixture
def crops(make_batch, rand):
    batch, spec = make_batch(
        {"global": rand(2, 4, 3, 8, 8).float(), "local": rand(3, 4, 3, 4, 4).float()}
    )
    return replace(batch, uids=torch.tensor([50, 7, 2**62, 9])), spec


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_kmeans_is_the_official_one(rand, iterations, monkeypatch):
    points = F.normalize(rand(40, 4), dim=1)
    whole = spherical_kmeans(points, 5, iterations=iterations, seed=3)
    start = points[torch.randperm(40, generator=torch.Generator().manual_seed(3))[:5]]
    centroids, assigned = slow_kmeans(points, start, iterations)
    torch.testing.assert_close(whole[0], centroids)
    assert whole[1].tolist() == assigned
    monkeypatch.setattr("sslpipe.methods.deepcluster.CHUNK", 7)
    torch.testing.assert_close(spherical_kmeans(points, 5, iterations=iterations, seed=3), whole)


def test_kmeans_finds_separate_bundles_and_lets_empty_clusters_be():
    points = F.normalize(torch.eye(3).repeat_interleave(4, 0) + 0.01, dim=1)
    for seed in range(5):
        centroids, clusters = spherical_kmeans(points, 12, iterations=10, seed=seed)
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(12))  # the empty ones too
        torch.testing.assert_close(centroids[clusters], points)
    few, clusters = spherical_kmeans(points[:2], 5, iterations=2, seed=0)
    assert few.shape == (5, 3)
    assert clusters.max() < 5


def test_kmeans_is_not_rounded_under_autocast(rand):
    points = F.normalize(rand(60, 4).float(), dim=1)
    plain = spherical_kmeans(points, 7, iterations=5, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            spherical_kmeans(points, 7, iterations=5, seed=0), plain, rtol=0, atol=0
        )


def test_loss_is_the_mean_cross_entropy_of_clustered_images(rand):
    logits, clusters = rand(5, 4, 6), torch.tensor([3, -100, 0, 5])
    loss = deepcluster.deepcluster_loss(logits, clusters)
    expected = F.cross_entropy(logits.flatten(0, 1), clusters.repeat(5), ignore_index=-100)
    torch.testing.assert_close(loss, expected)
    uniform = deepcluster.deepcluster_loss(torch.zeros(5, 4, 6), clusters)
    assert uniform.item() == pytest.approx(math.log(6))


def test_images_without_a_cluster_cost_nothing_and_pull_nowhere(rand):
    logits = rand(5, 4, 6).requires_grad_()
    loss = deepcluster.deepcluster_loss(logits, torch.full((4,), -100))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().sum() == 0


def test_memory_is_a_ring_in_the_order_of_arrival():
    memory = EpochMemory(1, 5, 1)
    for start in (0, 3):
        ids = torch.arange(start, start + 3)
        memory.remember(ids.float().view(1, 3, 1), ids + 100, memory.turn(3))
    assert len(memory) == 5
    assert memory.uids_N.tolist() == [105, 101, 102, 103, 104]
    assert memory.rows_AND.flatten().tolist() == [5, 1, 2, 3, 4]


def test_first_epoch_fills_the_memory_and_the_second_learns_its_clusters(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    first = method(batch)
    first.loss.backward()
    assert first.loss == 0
    assert first.metrics["clustered"] == 0
    assert encoder.linear.weight.grad.abs().sum() == 0
    rows = method.memory.rows_AND.clone()
    second = method(replace(batch, epoch=1))
    second.loss.backward()
    assert second.metrics["clustered"] == 1
    assert encoder.linear.weight.grad.abs().sum() > 0
    for head, memory in ((0, 0), (1, 1), (2, 0)):
        seed = head  # epoch 0 has ended
        centroids, clusters = spherical_kmeans(rows[memory], 3, iterations=10, seed=seed)
        assert method.centroids_LKD[head].equal(centroids)
        assert method.lookup(batch.uids)[head].tolist() == clusters.tolist()


def test_heads_are_averaged_and_cosines_sharpened(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    method(batch)
    method.eval().cluster()
    z_VBD = F.normalize(method.embedder(batch.views), dim=-1)
    losses = [
        F.cross_entropy((z_VBD @ centroids_KD.T / 0.1).flatten(0, 1), clusters_B.repeat(5))
        for centroids_KD, clusters_B in zip(
            method.centroids_LKD, method.lookup(batch.uids), strict=True
        )
    ]
    torch.testing.assert_close(method(batch).loss, sum(losses) / 3)


def test_clusters_are_looked_up_by_sample_in_any_order(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    method(batch)
    method.cluster()
    known = dict(zip(batch.uids.tolist(), method.lookup(batch.uids).T.tolist(), strict=True))
    for uids in ([9, 50, 2**62, 7], [7, 7, 8, 2**63 - 1]):
        found = method.lookup(torch.tensor(uids)).T.tolist()
        assert found == [known.get(uid, [-100] * 3) for uid in uids]


def test_half_a_memory_clusters_what_it_has(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, replace(spec, epoch_size=9), **SMALL)
    method(batch)
    method.cluster()
    assert (method.lookup(batch.uids) >= 0).all()
    assert method.lookup(torch.tensor([0, 2**63 - 1])).tolist() == [[-100, -100]] * 3


def test_centroids_are_never_trained_and_clustering_waits_for_the_next_epoch(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    assert not [name for name, _ in method.named_parameters() if "centroids" in name]
    method(batch)
    method(replace(batch, epoch=1))
    held = method.centroids_LKD.clone()
    torch.nn.init.normal_(encoder.linear.weight)
    method(replace(batch, epoch=1))
    assert method.centroids_LKD.equal(held)
    method.eval()(replace(batch, epoch=2))
    assert method.centroids_LKD.equal(held)  # a validation batch begins no epoch
    method.train()(replace(batch, epoch=2))
    assert not method.centroids_LKD.equal(held)


def test_a_resumed_run_is_exact(encoder, crops):
    batch, spec = crops
    method = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    twin = deepcluster.DeepClusterV2(encoder, spec, **SMALL)
    for epoch in (0, 1):
        method(replace(batch, epoch=epoch))
    twin.load_state_dict(method.state_dict())
    for epoch in (1, 2):
        again = replace(batch, epoch=epoch)
        assert twin(again).loss.equal(method(again).loss)


def test_endless_batches_break_the_contract(encoder, crops):
    with pytest.raises(ContractError, match=r"deepcluster_v2 clusters every epoch.*epoch_size"):
        deepcluster.DeepClusterV2(encoder, replace(crops[1], epoch_size=None))


def test_ddp_leaves_the_memories_alone_but_not_batch_norm(encoder, crops):
    method = deepcluster.DeepClusterV2(encoder, crops[1], **SMALL)
    ignored = set(method._ddp_params_and_buffers_to_ignore)
    assert {"memory.rows_AND", "memory.uids_N", "centroids_LKD", "clusters_LN"} <= ignored
    assert not any(name.startswith("embedder") for name in ignored)
