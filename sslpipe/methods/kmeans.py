"""Spherical k-means: directions that points on the sphere gather around."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 8192  # points at a time: the (points, K) similarities of a whole data set would not fit


@torch.no_grad()
def spherical_kmeans(
    points_XD: Tensor, clusters: int, *, iterations: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Centroids (K, D) of length 1 and the cluster of each point (X,) int64.

    `cluster_memory` of facebookresearch/swav, main_deepclusterv2.py: starts at K points drawn
    without return; a cluster that loses all its points keeps its centroid. Deterministic, so that
    all ranks find the same without talking to each other.
    """
    generator = torch.Generator().manual_seed(seed)
    order_X = torch.randperm(len(points_XD), generator=generator)
    # fewer points than clusters: some begin twice, and the second stays empty
    start_K = order_X[torch.arange(clusters) % len(order_X)]
    centroids_KD = points_XD[start_K.to(points_XD.device)]
    with torch.autocast(points_XD.device.type, enabled=False):  # bf16 mistakes near centroids
        for _ in range(iterations):
            sums_KD, counts_K = cluster_sums(points_XD, centroids_KD)
            means_KD = torch.where(counts_K[:, None] > 0, sums_KD, centroids_KD)
            centroids_KD = F.normalize(means_KD, dim=1)  # a sum points where its mean does
        chunks = torch.split(points_XD, CHUNK)
        return centroids_KD, torch.cat([nearest(chunk, centroids_KD) for chunk in chunks])


def nearest(points_XD: Tensor, centroids_KD: Tensor) -> Tensor:
    """The most similar centroid of each point, (X,) int64."""
    return (points_XD @ centroids_KD.T).argmax(1)


def cluster_sums(points_XD: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the points nearest to each centroid, (K, D), and their number, (K,)."""
    sums_KD = torch.zeros_like(centroids_KD)
    counts_K = sums_KD.new_zeros(len(sums_KD))
    for chunk_XD in torch.split(points_XD, CHUNK):
        # by a product: index_add_ sums in another order each time on a GPU
        member_XK = F.one_hot(nearest(chunk_XD, centroids_KD), len(sums_KD)).to(sums_KD.dtype)
        sums_KD += member_XK.T @ chunk_XD
        counts_K += member_XK.sum(0)
    return sums_KD, counts_K
