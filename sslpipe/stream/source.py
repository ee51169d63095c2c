"""Where the samples of global batch t come from; what the pipeline needs to know of it, no more.

Packed    packed shards, one corpus or a weighted mixture: exact and elastic      packed.py
Foreign   somebody's iterable of samples, such as a webdataset pipeline: neither  foreign.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .reader import Sample

T = TypeVar("T")
Decode = Callable[[Sample, int], T]  # of a sample and its epoch; SampleError if it is bad
OnBad = Literal["raise", "replace", "mask", "exclude"]
SUBSTITUTES = 100  # bad samples in a row before a run gives up


@dataclass(frozen=True, slots=True)
class Fault:
    """A bad sample. `manifest` is the fingerprint of its shard set; None: not known."""

    shard: str
    row: int | None
    uid: int | None
    key: str | None
    reason: str
    epoch: int
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """One sample, without its bytes; `faults` tell of the bad ones that it stands in for."""

    sample: Sample
    decoded: T | None  # None: it is bad, and policy `mask` leaves its place empty
    epoch: int
    faults: tuple[Fault, ...] = ()
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Share(Generic[T]):
    """One rank's share of a global batch, in the order of its slots."""

    loaded: list[Loaded[T]]
    valid: npt.NDArray[np.bool_]  # False: masked, or a repeat that fills the batch

    @property
    def epochs(self) -> npt.NDArray[np.int64]:
        """The epoch of each sample, (n,) int64."""
        return np.array([item.epoch for item in self.loaded], dtype=np.int64)


class Source(Protocol):
    """A stream of samples, cut into batches."""

    @property
    def exact(self) -> bool:
        """Whether a share is a function of the step: on any number of ranks, after any resume."""
        ...

    @property
    def identity(self) -> str:
        """What a state must agree with to be resumed: data and weights."""
        ...

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """This rank's places in every global batch, (batch_size / world_size,)."""
        ...

    def __len__(self) -> int:
        """Batches per epoch, the same on all ranks."""
        ...

    def share(self, step: int, decode: Decode[T]) -> Share[T]:
        """This rank's samples of global batch `step`; always batch_size / world_size of them.

        Raises:
            SampleError: one is bad and the policy is `raise`.
            ShardError: data is gone, or too many samples in a row are bad.
        """
        ...

    def close(self) -> None:
        """Let go of what is open; nothing is asked for afterwards."""
        ...


def without_bytes(sample: Sample, label: int) -> Sample:
    """The identity of a sample: its memory is taken by the next one, still in the CPU's cache."""
    return Sample(sample.uid, sample.key, label, b"")
