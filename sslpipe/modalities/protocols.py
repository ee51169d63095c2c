"""What decides, decodes and makes for a modality; `Modality` itself stands in __init__.py."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..shards.codec import EXTENTS
from .messages import Made, Raw, Tables

if TYPE_CHECKING:  # decoders are imported by workers, which must not wait for torch
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from ..batch import MaskSpec, TargetSpec, ViewSpec
    from ..device.buffers import Memory
    from ..rng import Place
    from ..stream.reader import Sample
    from ..stream.source import Drawn

    I64 = npt.NDArray[np.int64]


@runtime_checkable
class Decider(Protocol):
    """DECIDE: pure functions of ids and extents. Letters as in batch.py; E numbers of an extent."""

    @property
    @abstractmethod
    def views(self) -> Mapping[str, ViewSpec]:
        """What each view group holds, tasks applied."""

    @abstractmethod
    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """The tables of a batch; extents: (B, E) of its decoded samples."""

    @property
    def masks(self) -> Mapping[str, MaskSpec]:
        """The grid that each mask covers, and what it hides of it."""
        return MappingProxyType({})

    @property
    def targets(self) -> Mapping[str, TargetSpec]:
        """What each pretext task asks of a batch."""
        return MappingProxyType({})

    @property
    def summaries(self) -> Mapping[str, str]:
        """One line on each view group, for people."""
        return {name: f"{spec.count} x {spec.shown}" for name, spec in self.views.items()}

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """What workers must know before they decode: (B, anything) int64, read by `decode` alone.

        extents: (B, E) of the index; zeros where it does not know them.
        """
        return np.zeros((len(uids), 0), dtype=np.int64)


@runtime_checkable
class DrawsAhead(Protocol):
    """A decider that can draw before samples are decoded, for many batches in one go."""

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """Draw what `decide` needs of samples; extents: (B, 4) of the index, zeros: not known; of
        rows of kept ids (B, 8), where their segments lie behind.

        None: the index does not tell enough of all of them.
        """

    def decide_drawn(
        self, drawn: Drawn, *, epochs: I64, uids: I64, place: Place, extents: I64
    ) -> Tables:
        """What `decide` says of a batch, by what was drawn of just its samples and extents."""


@runtime_checkable
class Decode(Protocol):
    """Bytes to an array, in workers. It is picklable, and its module imports no torch."""

    @abstractmethod
    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """Decode as told.

        memory: has an `empty` as NumPy's, which gives the place where the array is wanted; an array
        that lies elsewhere is copied there.

        Raises:
            SampleError: the reason, without the place, which only the caller knows.
        """

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """The extent of a sample whose index does not say it, by a quick look; zeros: not told."""
        return (0,) * EXTENTS

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """How many bytes the array of each sample takes, (B,); 0: not known, the worker will tell.

        extents: (B, 4) of the index; sizes: (B,) bytes of the payloads. It runs in the main
        process, for many samples at once.
        """
        return np.zeros_like(sizes)


class ShareDecode(Protocol):
    """Decoding of a whole share at once, in two stages: for devices, which are quick with lists."""

    @property
    def first(self) -> Decode:
        """In workers: what `finish` needs of a sample, such as its bytes."""
        ...

    def finish(self, arrays: Sequence[Tensor]) -> Sequence[Raw | None]:
        """In one thread: the samples of a share, decoded; None: `Decode` must do it."""
        ...


@runtime_checkable
class Maker(Protocol):
    """DO, on the device: arrays and tables become views and targets."""

    @property
    @abstractmethod
    def blank(self) -> Raw:
        """What stands in the place of a sample that is not shown (`stream.on_bad: mask`)."""

    @abstractmethod
    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """The views of a batch.

        arrays: `Raw.data` of each sample, on the device; as a rule a `device.ragged.Ragged`, whose
        memory is used again once nobody refers to it. targets: `tables.targets`, there too.
        """
