"""What an optimizer step on a CPU keeps in memory, and what making a batch takes: tried, not known.

step     a copy of the method takes the loss of a few samples of the stream, and of twice as many.
         What autograd keeps for backward is counted: it lies on a line, part of it once a batch,
         most of it once a sample. So heads, vocabularies, teachers and masks count as they are
making   likewise the views of some samples are made, and the tensors that live at the same time
         counted: waveforms as floats, partners and spectrograms take ten times what views do
"""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .batch import Batch
from .modalities.loading import PackedLoading
from .pipeline import Pipeline
from .stream.packed import Packed
from .stream.source import ROW, Share
from .stream.tasks import DECODE

FEW, MORE = 2, 4  # samples, whose loss is taken
SOME, TWICE = 8, 16  # whose views are made: some are worked on together in parts
ON_THE_WAY = 1.25  # times what is found: gradients of activations, temporaries of kernels
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
    return pipe.make_batch(small_share(pipe, count), pipe.step)


def small_share(pipe: Pipeline, count: int) -> Share:
    """The first `count` samples or rows of the next batch, decoded."""
    assert isinstance(pipe.source, Packed)
    assert isinstance(pipe.loading, PackedLoading)
    wants = pipe.source.wants(pipe.step)
    rows = wants.segments[:, ROW] if wants.segments.shape[1] else np.arange(len(wants))
    places = np.flatnonzero(rows < count).tolist()
    return pipe.loading.load_some(pipe.step, places, DECODE)


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


def making_bytes(pipe: Pipeline) -> int:
    """Bytes of what lives at the same time while a batch is made, its views among it.

    Not only tensors: kernels have memory of their own. Of images nothing is seen: their executors
    on a CPU work in a little memory of NumPy's. 0: it cannot be tried.
    """
    try:
        (some, some_bytes), (twice, twice_bytes) = (
            made_bytes(pipe, count) for count in (SOME, TWICE)
        )
    except Exception:  # a bad sample, of which the stream will tell
        return 0
    each = (twice_bytes - some_bytes) / (twice - some) if twice > some else 0.0  # a small batch
    rows = pipe.spec.size // pipe.world_size
    return int(ON_THE_WAY * (some_bytes + max(0.0, each) * (rows - some)))


def made_bytes(pipe: Pipeline, count: int) -> tuple[int, int]:
    """How many samples there are of so many at most, and the bytes that making them takes."""
    share = small_share(pipe, count)
    with LiveBytes() as live:
        batch = pipe.make_batch(share, pipe.step)
    return len(batch.uids), live.most


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that are made inside, in the thread of the caller.

    now: of those that live. most: at any time. What kernels take for themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._tensors: dict[int, int] = {}  # where a storage lies -> tensors that refer to it
        self._given: set[int] = set()  # storages that were there before

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what is asked for, and note what comes out."""
        given = (place_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        self._given.update(place for place in given if place not in self._tensors)
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and place_of(each) not in self._given:
                self._note(each)
        return made

    def _note(self, tensor: Tensor) -> None:
        """Count a tensor until it is gone."""
        place, size = place_of(tensor), tensor.untyped_storage().nbytes()
        self._tensors[place] = self._tensors.get(place, 0) + 1
        if self._tensors[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        """A tensor is gone; with the last one its storage is."""
        self._tensors[place] -= 1
        if not self._tensors[place]:
            del self._tensors[place]
            self.now -= size


def place_of(tensor: Tensor) -> int:
    """Where the storage of a tensor lies."""
    return tensor.untyped_storage().data_ptr()
