"""MoCo: a query finds its key among those of a queue, which a slowly moving encoder made.

v1: He et al. 2019, "Momentum contrast for unsupervised visual representation learning",
arXiv:1911.05722. v2: Chen et al. 2020, arXiv:2003.04297. facebookresearch/moco, moco/builder.py.
Q rows of the queue, X samples of the global batch here.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch import Batch, BatchSpec
from ..errors import ContractError
from ..process import group_ranks
from .method import Method, Output
from .parts.checks import check_axes, positive, shares
from .parts.collapse import CONTRASTIVE_CAUSES, embeddings_alike
from .parts.collectives import gather
from .parts.heads import at_least_fp32, feature_dim, relu_mlp
from .parts.queues import Queue, random_rows
from .parts.teachers import ema_update, frozen_copy
from .simclr import pair_monitors


def info_nce(q_BD: Tensor, k_BD: Tensor, queue_QD: Tensor, *, temperature: float) -> Tensor:
    """Eq. 1 of v1: cross entropy of each query to its key, against the rows of the queue.

    Queries and keys are L2-normalised inside; the queue's rows are so already. No gradient
    reaches keys and queue.
    """
    check_axes("info_nce", q_BD=q_BD, k_BD=k_BD, queue_QD=queue_QD)
    with torch.autocast(q_BD.device.type, enabled=False):
        logits = cosines(q_BD, k_BD.detach(), queue_QD.detach()) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def cosines(q_BD: Tensor, k_BD: Tensor, queue_QD: Tensor) -> Tensor:
    """Compare each query with its own key, then with the rows of the queue: (B, 1 + Q).

    In at least fp32. Queries and keys are L2-normalised inside; the queue's rows are so already.
    """
    q_BD, k_BD = (F.normalize(at_least_fp32(x_BD), dim=1) for x_BD in (q_BD, k_BD))
    own_B1 = (q_BD * k_BD).sum(1, keepdim=True)
    return torch.cat([own_B1, q_BD @ queue_QD.to(q_BD.dtype).T], dim=1)


@torch.no_grad()
def retrieval(q_BD: Tensor, k_BD: Tensor, queue_QD: Tensor) -> dict[str, Tensor]:
    """Tell the share of queries whose key is the nearest of all candidates, as officially."""
    with torch.autocast(q_BD.device.type, enabled=False):
        return {"top1": (cosines(q_BD, k_BD, queue_QD).argmax(1) == 0).float().mean()}


class MoCo(Method):
    """Needs 2 'global' views: the query's and the key's. v1 has projector [128], v2 [2048, 128].

    `bn_groups` is for shuffling BN (v1, section 3.3): batch norm takes the statistics of as many
    parts of the global batch, officially one per GPU, and keys are encoded in a random order.
    Else query and key of an image share their statistics, by which the loss is lowered without
    learning. The parts do not depend on the number of ranks. 1: batch norm as it is.
    """

    collapse_signs = (embeddings_alike,)
    collapse_causes = CONTRASTIVE_CAUSES
    # the query's encoder is kept, as officially
    encoders = (("student", "query.0"), ("teacher", "key.0"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (2048, 128),
        queue: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        bn_groups: int = 8,
    ) -> None:
        super().__init__()
        spec.require("moco", views={"global": 2})
        positive(temperature=temperature, projector=projector, queue=queue)
        shares(momentum=momentum)
        self.temperature = temperature
        self.momentum = momentum
        self.bn_groups = bn_groups
        head = relu_mlp((feature_dim(encoder, "moco"), *projector))
        groups = groups_per_rank(spec, bn_groups)
        if bn_groups > 1:
            group_batch_norms(encoder, groups)
        self.query = nn.Sequential(encoder, head)
        self.key = frozen_copy(self.query)
        rows_QD = random_rows(queue, projector[-1])
        self.queue = Queue(rows_QD, batch=spec.global_size, setting="method.moco.queue")
        self.chance_loss = math.log(queue + 1)

    def forward(self, batch: Batch) -> Output:
        """Put keys into the queue after the loss, or each would be among its own negatives."""
        places_B = self.queue.turn(enqueues=self.training)
        query_BCHW, key_BCHW = batch.views["global"][:2]
        q_BD = self.query(query_BCHW)
        with torch.no_grad():
            k_BD = F.normalize(at_least_fp32(self.keys(key_BCHW, batch.step)), dim=1)
        queue_QD = self.queue.snapshot()
        loss = info_nce(q_BD, k_BD, queue_QD, temperature=self.temperature)
        metrics = pair_monitors(q_BD, k_BD) | retrieval(q_BD, k_BD, queue_QD)
        if self.training:  # a loss taken for validation leaves no trace, as with batch norm
            self.queue.enqueue(k_BD, places_B)
        return Output(loss, metrics)

    def keys(self, images_BCHW: Tensor, step: int) -> Tensor:
        """Embed this rank's images by the key encoder, in batches mixed from those of all ranks."""
        if self.bn_groups == 1:
            keys_BD: Tensor = self.key(images_BCHW)
            return keys_BD
        order_X = random_order(len(images_BCHW) * group_ranks().size, step)
        order_X = order_X.to(images_BCHW.device, non_blocking=True)
        keys_XD = gather(self.key(gather(images_BCHW)[own_share(order_X)]))
        return own_share(keys_XD[order_X.argsort()])

    def after_step(self, progress: float) -> None:
        """Move the key encoder by its EMA; officially between a step's query and key passes.

        The weights that the key pass sees are the same here, also when gradients are accumulated:
        then the official order would move the key encoder with every batch.
        """
        ema_update(self.key, self.query, self.momentum)


def own_share(all_X: Tensor) -> Tensor:
    """Take this rank's share of what is laid out in the order of ranks."""
    return all_X.chunk(group_ranks().size)[group_ranks().rank]


def random_order(count: int, step: int) -> Tensor:
    """Draw a permutation, int64, that all ranks and a resumed run draw alike without talking."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(step))


def groups_per_rank(spec: BatchSpec, bn_groups: int) -> int:
    """Count the groups that one rank holds.

    Raises:
        ContractError: groups would be unequal, or cut by a rank's border.
    """
    samples, left = divmod(spec.global_size, max(bn_groups, 1))
    if bn_groups < 1 or left or (bn_groups > 1 and spec.size % samples):
        raise ContractError(
            f"moco needs equal groups, whole on every rank: method.moco.bn_groups = {bn_groups}, "
            f"the global batch is {spec.global_size}, of which a rank holds {spec.size}. Set "
            "bn_groups to a divisor of the batch and a multiple of the number of ranks"
        )
    return max(spec.size // samples, 1)


class GroupedBatchNorm(nn.Module):
    """A batch norm that takes the statistics of each of `groups` equal runs of samples.

    One group per GPU is what DDP does by itself; several are colab-notebook's SplitBatchNorm. It
    takes over the tensors of `norm`, under their names. It is no subclass of torch's, so that
    SyncBatchNorm.convert_sync_batchnorm leaves it alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.eps = norm.eps
        self.momentum = cast(float, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); shape and dtype stay."""
        if not self.training:
            mean_C, var_C = self.running_mean, self.running_var
            return F.batch_norm(x, mean_C, var_C, self.weight, self.bias, eps=self.eps)
        assert len(x) % self.groups == 0, (len(x), self.groups)
        means_GC = self.running_mean.repeat(self.groups, 1)
        vars_GC = self.running_var.repeat(self.groups, 1)
        parts = [
            F.batch_norm(
                part, mean_C, var_C, self.weight, self.bias, True, self.momentum, self.eps
            )
            for part, mean_C, var_C in zip(x.chunk(self.groups), means_GC, vars_GC, strict=True)
        ]  # fmt: skip
        self.track(means_GC, vars_GC)
        return parts[0] if self.groups == 1 else torch.cat(parts)

    @torch.no_grad()
    def track(self, means_GC: Tensor, vars_GC: Tensor) -> None:
        """Keep the mean of what the groups saw."""
        self.running_mean.copy_(means_GC.mean(0))
        self.running_var.copy_(vars_GC.mean(0))
        self.num_batches_tracked.add_(1)


def group_batch_norms(module: nn.Module, groups: int) -> None:
    """Replace every batch norm inside `module` by a grouped one; names in state_dict stay.

    Raises:
        ContractError: one is of a kind that a grouped norm cannot stand in for.
    """
    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm):
                setattr(parent, name, GroupedBatchNorm(groupable(norm), groups))


def groupable(norm: _BatchNorm) -> _BatchNorm:
    """Refuse what a grouped norm cannot stand in for.

    Raises:
        ContractError: a subclass, cumulative statistics, or none.
    """
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    if not plain or norm.momentum is None or not norm.track_running_stats:
        raise ContractError(
            f"batch norm in groups needs plain BatchNorm1d and 2d with a momentum, not {norm}; "
            "set bn_groups to 1, or train.backbone to a ResNet"
        )
    return norm
