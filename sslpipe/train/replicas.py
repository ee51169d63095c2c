"""A method on several ranks: whole on each (DDP), or cut to shards that all hold (FSDP2)."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..batch import Batch
from ..encoders.blocks import blocks_of
from ..encoders.t5 import T5
from ..errors import RecipeError, SslpipeError
from ..methods import Output
from ..pipeline import Pipeline
from .joint_norm import join_norms


class Parts(NamedTuple):
    """An Output as a tuple, in which FSDP looks for what gradients come from."""

    loss: Tensor
    metrics: dict[str, Tensor]
    weight: Tensor | None
    terms: Tensor | None


class Sharded(nn.Module):
    """The root of a method that is sharded; gives its outputs as `Parts`."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Parts:
        """Call the method, and give its output as a tuple of the same fields."""
        output: Output = self.method(batch)
        return Parts(output.loss, output.metrics, output.weight, output.terms)


def check_group(pipeline: Pipeline) -> None:
    """Make sure that the ranks of a pipeline can talk.

    Raises:
        SslpipeError: there is no process group.
    """
    if not dist.is_initialized():
        raise SslpipeError(
            f"train: the pipeline is rank {pipeline.rank} of {pipeline.world_size}, but there is "
            "no process group; start with torchrun and train inside sslpipe.train.start_world"
        )


def check_shardable(method: nn.Module, where: str) -> None:
    """Make sure that `shard` can cut a method.

    Raises:
        RecipeError: it has a parameter that is one number, or reads one outside of its block.
    """
    scalars = [name for name, parameter in method.named_parameters() if parameter.ndim == 0]
    kept = f"{where}: train.parallel = 'fsdp' cannot cut {type(method).__name__.lower()}"
    if scalars:
        raise RecipeError(f"{kept}, whose {scalars[0]} is one number; set parallel: ddp")
    if any(isinstance(part, T5) for part in method.modules()):
        raise RecipeError(
            f"{kept}: t5 reads the positions of its first block outside of it; set parallel: ddp"
        )


def replicate(module: nn.Module, pipeline: Pipeline) -> nn.Module:
    """Wrap for data parallel training where the pipeline is one of several ranks.

    Raises:
        SslpipeError: there is no process group, or a batch norm that cannot be joined.
    """
    if pipeline.world_size == 1:
        return module
    check_group(pipeline)
    replica = DistributedDataParallel(join_norms(module, pipeline.device))
    # All ranks begin with rank 0's buffers; from then on none travels. Queues, centres and memories
    # are equal by construction (method.py), as are the statistics of joined norms, and a megabyte
    # to a gigabyte at every forward pass. Those of MoCo's groups are each rank's own; rank 0 writes
    # the checkpoints and monitors, so what counts is what DDP would have broadcast.
    # Set and not passed: as an argument it would exclude buffers from the start, too.
    replica.broadcast_buffers = False
    return replica


def shard(module: nn.Module, pipeline: Pipeline) -> nn.Module:
    """Cut parameters into a part per rank: of each block for itself, and of the rest together.

    One process holds all. All begin with rank 0's tensors. Teachers are cut as their students are,
    so that they follow part by part. Parameters become DTensors: optimizers are built afterwards.

    Raises:
        SslpipeError: there is no process group, or a batch norm that cannot be joined.
    """
    if pipeline.world_size == 1:
        return module
    check_group(pipeline)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = join_norms(module, pipeline.device)
    begin_alike(module, pipeline.device)
    mesh = init_device_mesh(pipeline.device.type, (pipeline.world_size,))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    root = Sharded(module)
    fully_shard(root, mesh=mesh)
    return root


@torch.no_grad()
def begin_alike(module: nn.Module, device: torch.device) -> None:
    """Give all ranks the tensors of rank 0, one at a time."""
    for tensor in (*module.parameters(), *module.buffers()):
        moved = tensor.data.to(device).contiguous()
        dist.broadcast(moved, 0)
        tensor.data.copy_(moved)


def reduction(replica: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Average gradients over the ranks with the last batch of a step only."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(replica, FSDPModule):
        replica.set_requires_gradient_sync(last)
    if last or not isinstance(replica, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = replica.no_sync()
    return context


def gathered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the tensors of a state together, on all ranks, which must all ask."""
    from torch.distributed.tensor import DTensor

    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in state.items()
    }
