"""What an optimizer step on a CPU keeps in memory, beside weights that are there: tried, not known.

A copy of the method takes the loss of a few samples of the stream, and of twice as many. What
autograd keeps for backward is counted: it lies on a line, part of it once a batch, most of it once
a sample. So heads, vocabularies, teachers and masks count as they are.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch
from .modalities.loading import PackedLoading
from .pipeline import Pipeline
from .stream.packed import Packed
from .stream.source import ROW
from .stream.tasks import DECODE

FEW, MORE = 2, 4  # samples
ON_THE_WAY = 1.25  # times what is kept: gradients of activations, optimizer's temporaries
COPIES = 3  # of weights that are trained: their gradients, and two moments at most


def step_bytes(pipe: Pipeline, method: nn.Module) -> int:
    """Bytes of gradients, moments and what backward needs of a batch; 0: it cannot be tried.

    Nothing of the method changes, nor does any random generator move on. Logits of all pairs of a
    batch, which grow with its square, count as of few samples: they are small beside the rest.
    """
    if pipe.world_size > 1:  # losses gather over ranks, which would wait for one that cannot
        return 0
    train = pipe.recipe.train
    low = train is not None and train.precision != "fp32"
    weights = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    try:
        (few, few_bytes), (more, more_bytes) = (
            (len(batch.uids), kept_bytes(method, batch, low=low))
            for batch in (small_batch(pipe, count) for count in (FEW, MORE))
        )
    except Exception:  # a method that wants whole batches, or memory that it was not given yet
        return 0
    each = (more_bytes - few_bytes) / max(1, more - few)
    kept = few_bytes + max(0.0, each) * (pipe.spec.size - few)
    return int(ON_THE_WAY * kept) + COPIES * weights


def small_batch(pipe: Pipeline, count: int) -> Batch:
    """The first samples, or rows, of the batch that comes next."""
    assert isinstance(pipe.source, Packed)
    assert isinstance(pipe.loading, PackedLoading)
    wants = pipe.source.wants(pipe.step)
    rows = wants.segments[:, ROW] if wants.segments.shape[1] else np.arange(len(wants))
    places = np.flatnonzero(rows < count).tolist()
    return pipe.make_batch(pipe.loading.load_some(pipe.step, places, DECODE), pipe.step)


def kept_bytes(method: nn.Module, batch: Batch, *, low: bool) -> int:
    """Bytes that backward needs of a batch, counted once each; no generator moves on.

    low: in bfloat16 where autocast takes it.
    """
    tried = copy.deepcopy(method)
    precision: AbstractContextManager[object] = (
        torch.autocast("cpu", torch.bfloat16) if low else nullcontext()
    )
    with torch.random.fork_rng(devices=()), precision:
        return kept_by(tried, lambda: tried(batch if low else batch.in_float32()))


def kept_by(module: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that autograd keeps of `work`, each storage once, without the module's own tensors."""
    kept: dict[int, Tensor] = {}
    known = {
        tensor.untyped_storage().data_ptr()
        for tensor in chain(module.parameters(), module.buffers())
    }

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = work()
    del held
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
