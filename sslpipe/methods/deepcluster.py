"""DeepCluster v2: classify every crop by the k-means cluster its image had an epoch ago.

Caron et al. 2020, arXiv:2006.09882, section 4.1 and appendix D; facebookresearch/swav,
main_deepclusterv2.py. L classification heads, A = 2 remembered crops, N samples of an epoch here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..errors import ContractError
from ..process import group_ranks
from .method import Method, Output
from .parts.checks import check_axes, positive
from .parts.collapse import PROTOTYPE_CAUSES
from .parts.collectives import all_mean, gather
from .parts.heads import at_least_fp32
from .parts.queues import uncompiled
from .parts.several_views import CropEmbedder

MEMORIES = 2  # crops_for_assign of the official code: the first two views
UNKNOWN = -100  # the cluster of a sample that was not clustered


def deepcluster_loss(logits_VBK: Tensor, clusters_B: Tensor) -> Tensor:
    """Cross entropy of every crop to its image's cluster, over images with one; 0 without any.

    Divided by the mean number of such images per rank, so that the mean over ranks is the loss of
    the joined batch.
    """
    check_axes("deepcluster_loss", logits_VBK=logits_VBK, clusters_B=clusters_B)
    with torch.autocast(logits_VBK.device.type, enabled=False):
        log_p_VBK = F.log_softmax(at_least_fp32(logits_VBK), dim=-1)
        known_B = clusters_B != UNKNOWN
        index_VB1 = clusters_B.clamp(min=0)[:, None].expand(len(log_p_VBK), -1, 1)
        loss_B = -log_p_VBK.gather(2, index_VB1)[:, :, 0].mean(0)
        count = all_mean(known_B.sum().to(loss_B.dtype))
        return torch.where(known_B, loss_B, 0.0).sum() / count.clamp(min=1e-9)


class DeepClusterV2(Method):
    """Needs 2 'global' views; 'local' ones are optional. The first epoch only fills the memory.

    Officially a pass without training does that before the first epoch; a stream is not rewound for
    it, and the loss of that epoch is 0 here.

    Raises:
        ContractError: the batches come without end, so that there are no epochs.
    """

    collapse_causes = PROTOTYPE_CAUSES
    centroids_LKD: Tensor
    clusters_LN: Tensor
    sorted_uids_N: Tensor
    # the encoder that is trained is kept; there is no teacher
    encoders = (("student", "embedder.encoder"),)

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        temperature: float = 0.1,
        projector: tuple[int, ...] = (2048, 128),
        prototypes: int = 3000,
        heads: int = 3,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        if spec.epoch_size is None:
            raise ContractError(
                "deepcluster_v2 clusters every epoch, but the batches come without end; "
                "set BatchSpec.epoch_size to the samples of an epoch"
            )
        positive(temperature=temperature, projector=projector, prototypes=prototypes)
        positive(heads=heads, iterations=iterations)
        self.temperature = temperature
        self.iterations = iterations
        self.epoch = 0
        self.embedder = CropEmbedder("deepcluster_v2", encoder, spec, projector=projector)
        size, dim = max(spec.epoch_size, spec.global_size), projector[-1]
        self.memory = EpochMemory(MEMORIES, size, dim)
        # buffers, not parameters: centroids are never trained
        self.register_buffer("centroids_LKD", torch.zeros(heads, prototypes, dim))
        self.register_buffer("clusters_LN", torch.full((heads, size), UNKNOWN))
        self.register_buffer("sorted_uids_N", torch.zeros(size, dtype=torch.int64))
        # equal on all ranks as they are; DDP would send them (1.3 GB for ImageNet) at every step
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if not name.startswith("embedder")
        ]

    def forward(self, batch: Batch) -> Output:
        """Cluster if an epoch begins, then classify, then remember the batch for the next epoch."""
        places = self.begin(batch) if self.training else None
        z_VBD = F.normalize(at_least_fp32(self.embedder(batch.views)), dim=-1)
        uids_B = batch.uids.to(z_VBD.device, non_blocking=True)
        clusters_LB = self.lookup(uids_B)
        with torch.autocast(z_VBD.device.type, enabled=False):
            losses = [
                deepcluster_loss(F.linear(z_VBD, centroids_KD) / self.temperature, clusters_B)
                for centroids_KD, clusters_B in zip(self.centroids_LKD, clusters_LB, strict=True)
            ]
        if places is not None:
            self.memory.remember(z_VBD[:MEMORIES], uids_B, places)
        known = (clusters_LB[0] != UNKNOWN).float().mean()
        return Output(torch.stack(losses).mean(), {"clustered": known})

    @uncompiled
    def begin(self, batch: Batch) -> Tensor:
        """Cluster if an epoch begins, and say where the samples will be remembered."""
        if batch.epoch != self.epoch:
            self.cluster()
            self.epoch = batch.epoch
        return self.memory.turn(len(batch.uids) * group_ranks().size)

    def lookup(self, uids_B: Tensor) -> Tensor:
        """Find each head's cluster of each sample, (L, B) int64; UNKNOWN if not remembered."""
        place_B = torch.searchsorted(self.sorted_uids_N, uids_B)
        place_B = place_B.clamp(max=len(self.sorted_uids_N) - 1)
        found_B = self.sorted_uids_N[place_B] == uids_B
        return torch.where(found_B, self.clusters_LN[:, place_B], UNKNOWN)

    @torch.no_grad()
    def cluster(self) -> None:
        """Cluster all that is remembered; head l takes crop l % A.

        The work of an epoch's border: all ranks do it alike, and the host may wait for it.
        """
        count, size = len(self.memory), len(self.memory.uids_N)
        if count == 0:
            return  # a run that begins in a later epoch
        # places that hold nothing yet get an id above all others, and stay UNKNOWN
        empty = self.memory.uids_N.new_full((size - count,), 2**63 - 1)
        uids_N = torch.cat([self.memory.uids_N[:count], empty])
        sorted_N, order_N = uids_N.sort(stable=True)
        self.sorted_uids_N.copy_(sorted_N)
        for head, centroids_KD in enumerate(self.centroids_LKD):
            found_KD, clusters = spherical_kmeans(
                self.memory.rows_AND[head % MEMORIES, :count], len(centroids_KD),
                iterations=self.iterations, seed=self.epoch * len(self.centroids_LKD) + head,
            )  # fmt: skip
            centroids_KD.copy_(found_KD)
            self.clusters_LN[head] = F.pad(clusters, (0, size - count), value=UNKNOWN)[order_N]

    def get_extra_state(self) -> int:
        """Save the epoch that the clusters are for, so that a resume is exact."""
        return self.epoch

    def set_extra_state(self, state: int) -> None:
        """Restore what `get_extra_state` saved."""
        self.epoch = state


class EpochMemory(nn.Module):
    """The embeddings of the last epoch, with the ids of their samples; equal on all ranks.

    A ring in the order of arrival: an elastic stream has no positions of samples, only ids.
    A `views` per sample; N `places`, the samples of an epoch.
    """

    rows_AND: Tensor
    uids_N: Tensor

    def __init__(self, views: int, places: int, dim: int) -> None:
        super().__init__()
        self.stored = 0  # samples ever stored; on the host, so that nothing waits for the device
        self.register_buffer("rows_AND", torch.zeros(views, places, dim))
        self.register_buffer("uids_N", torch.zeros(places, dtype=torch.int64))

    def __len__(self) -> int:
        """Count the places that are filled."""
        return min(self.stored, len(self.uids_N))

    def turn(self, samples: int) -> Tensor:
        """Number the oldest places, (samples,) int64, and count them as filled."""
        places_B = torch.arange(self.stored, self.stored + samples, device=self.uids_N.device)
        self.stored += samples
        return places_B % len(self.uids_N)

    @torch.no_grad()
    def remember(self, rows_ABD: Tensor, uids_B: Tensor, places_B: Tensor) -> None:
        """Replace the places that `turn` named by the samples of all ranks, in their order."""
        rows_BAD, uids = gather(rows_ABD.detach().transpose(0, 1)), gather(uids_B)
        self.rows_AND[:, places_B] = rows_BAD.transpose(0, 1).to(self.rows_AND.dtype)
        self.uids_N[places_B] = uids

    def get_extra_state(self) -> int:
        """Save the number of stored samples, the part of the state_dict that is no tensor."""
        return self.stored

    def set_extra_state(self, state: int) -> None:
        """Restore what `get_extra_state` saved."""
        self.stored = state


CHUNK = 8192  # points at a time: the (points, K) similarities of a whole data set would not fit


@torch.no_grad()
def spherical_kmeans(
    points_XD: Tensor, clusters: int, *, iterations: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Find centroids (K, D) of length 1, and the cluster of each point, (X,) int64.

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
    """Find the most similar centroid of each point, (X,) int64."""
    return (points_XD @ centroids_KD.T).argmax(1)


def cluster_sums(points_XD: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the points nearest to each centroid, (K, D), and count them, (K,)."""
    sums_KD = torch.zeros_like(centroids_KD)
    counts_K = sums_KD.new_zeros(len(sums_KD))
    for chunk_XD in torch.split(points_XD, CHUNK):
        # by a product: index_add_ sums in another order each time on a GPU
        member_XK = F.one_hot(nearest(chunk_XD, centroids_KD), len(sums_KD)).to(sums_KD.dtype)
        sums_KD += member_XK.T @ chunk_XD
        counts_K += member_XK.sum(0)
    return sums_KD, counts_K
