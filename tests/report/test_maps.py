import numpy as np
import pytest
import torch

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features
from sslpipe.report.embedding import PlacedSamples, write_csv
from sslpipe.report.maps import basis, on_sphere, planes, read_map, stratified
from tests.report.conftest import cloud


def samples(sizes, *, width=16):
    """Features of classes of these sizes."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    uids = torch.arange(1000, 1000 + len(labels)) * 7919
    return Features(cloud(labels, width, seed=0), labels, uids)


def test_each_label_has_its_share_whatever_the_order_of_rows():
    features = samples([100, 50, 10])
    kept = stratified(features, 32, seed=0)
    assert np.bincount(features.labels[kept]).tolist() == [20, 10, 2]
    order = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    mixed = features.at(order)
    again = stratified(mixed, 32, seed=0)
    assert mixed.uids[again].tolist() == features.uids[kept].tolist()
    assert stratified(features, 32, seed=1).tolist() != kept.tolist()
    assert sorted(stratified(features, 1000, seed=0)) == list(range(160))


def test_every_sample_is_as_likely():
    features = samples([60, 40])
    counts = np.zeros(100)
    for seed in range(400):
        counts[stratified(features, 25, seed=seed)] += 1
    assert counts.sum() == 400 * 25
    assert np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_pca_is_the_svd_with_positive_largest_loadings():
    features = samples([40, 30])
    x = on_sphere(features, np.arange(70))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    centred = x - x.mean(axis=0)
    found = basis(centred, 2)
    _, _, v = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found @ v[:2].T), np.eye(2), atol=1e-8)
    assert all(row[np.abs(row).argmax()] > 0 for row in found)
    (points,) = planes([x], projection="pca")
    np.testing.assert_allclose(points, centred @ found.T, atol=1e-8)
    assert basis(centred[:2], 3).shape == (3, 16)


def test_checkpoints_share_their_basis():
    """Features that only move as a whole have the same map."""
    x = on_sphere(samples([40, 30]), np.arange(70))
    first, second = planes([x, x + 0.5], projection="pca")
    np.testing.assert_allclose(first, second, atol=1e-8)
    doubled = np.concatenate([x, x], axis=1)  # another width: turned to lie as the first
    first, second = planes([x, doubled], projection="pca")
    np.testing.assert_allclose(second, np.sqrt(2) * first, atol=1e-6)


def rotated(points, degrees):
    """The points turned about the origin, and mirrored."""
    a = np.deg2rad(degrees)
    return points @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) * (1, -1)


def test_a_map_is_turned_to_lie_as_an_earlier_one():
    x = on_sphere(samples([40, 30]), np.arange(70))
    (points,) = planes([x], projection="pca")
    earlier = rotated(points, 50) + 3
    earlier[10:20] = np.nan  # samples that it did not have
    (turned,) = planes([x], projection="pca", previous=earlier)
    known = np.isfinite(earlier[:, 0])
    goal = earlier - earlier[known].mean(axis=0)
    shifted = turned - turned[known].mean(axis=0)
    np.testing.assert_allclose(shifted[known], goal[known], atol=1e-8)
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (points, turned)]
    np.testing.assert_allclose(*distances, atol=1e-8)


def test_tsne_goes_on_from_an_earlier_map():
    """Three islands keep the places that they had."""
    features = samples([100, 100, 100])
    x = on_sphere(features, np.arange(300))
    labels = features.labels.numpy()
    corners = rotated(np.array([[0.0, 10], [-9, -5], [9, -5]]), 120)
    start = corners[labels] + np.random.default_rng(0).normal(0, 0.5, (300, 2))
    for points in planes([x, x], projection="tsne", previous=start):
        centres = np.stack([points[labels == k].mean(axis=0) for k in range(3)])
        units = [c / np.linalg.norm(c, axis=1, keepdims=True) for c in (centres, corners)]
        assert (np.sum(units[0] * units[1], axis=1) > 0.8).all()
        assert points.std() > 3, "they were spread by t-SNE, not left where they began"


def test_the_file_of_a_map_is_read_back(tmp_path):
    uids = np.array([5, -3, 2**62])
    points = np.array([[1.5, -2], [0.25, 1e-7], [3, 4]])
    texts = ["a,\"b'", "c\nd", "é"]
    for name in ("old", "new"):
        tables = [
            PlacedSamples("old", uids, texts, texts, texts, points + 1),
            PlacedSamples(name, uids, texts, texts, texts, points),
        ]
    write_csv(tmp_path / "embedding.csv", tables)
    found = read_map(tmp_path / "embedding.csv", np.array([2**62, 4, 5]))
    np.testing.assert_allclose(found, [[3, 4], [np.nan, np.nan], [1.5, -2]])
    with pytest.raises(SslpipeError, match="cannot be read"):
        read_map(tmp_path / "nothing.csv", uids)
    (tmp_path / "other.csv").write_text("uid,a\n1,2\n")
    with pytest.raises(SslpipeError, match=r"is no map .*'x'.*name the embedding.csv"):
        read_map(tmp_path / "other.csv", uids)
