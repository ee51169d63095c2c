"""Where the samples of global batch t come from; what the pipeline needs to know of it, no more.

Packed    packed shards, exact and elastic; several by weight: packed_mixture.py    packed.py
Foreign   somebody's iterable of samples, such as a webdataset pipeline: neither  foreign.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..rng import whole_samples
from .lanes import distinct_numbers, first_of_runs

if TYPE_CHECKING:  # a stream of raw samples needs no torch
    from torch import Tensor

I64 = npt.NDArray[np.int64]
OnBad = Literal["raise", "replace", "mask", "exclude"]
SUBSTITUTES = 100  # bad samples in a row before a run gives up
# columns of a segment, a piece of a document in a packed row: which row of the share, where in the
# row, where in the document, and how many steps
SEGMENT = ROW, COLUMN, START, LENGTH = range(4)


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


class Column(NamedTuple):
    """The samples of a share as one part of the recipe decoded them.

    arrays: n of them, a `device.ragged.Ragged` unless some lie on a device already.
    extents: (n, E), for which their draws are made. With k partners a sample, n (1 + k) of both.
    """

    arrays: Sequence[Tensor]
    extents: I64


class Drawn(NamedTuple):
    """Tables of samples that were drawn before these were decoded, for many steps in one go.

    They hold for the ids and extents that were expected; whoever finds others draws anew.
    """

    epochs: I64  # (n,)
    uids: I64  # (n,)
    extents: I64  # (n, E), of decoded samples
    params: Mapping[str, npt.NDArray[np.float32]]  # view group -> (V, n, P)
    # (n, W) instructions to workers that follow from them, for TRIMMED samples; of no use once told
    told: I64 | None = None

    def at(self, places: slice) -> Drawn:
        """Those of some of the samples, in memory of their own."""
        params = {name: table[:, places].copy() for name, table in self.params.items()}
        return Drawn(self.epochs[places], self.uids[places], self.extents[places], params)

    def are_of(self, *, epochs: I64, uids: I64, extents: I64) -> bool:
        """Whether they hold for these samples: by bytes, which is the least to do once a batch."""
        pairs = (epochs, self.epochs), (uids, self.uids), (extents, self.extents)
        return all(one.tobytes() == other.tobytes() for one, other in pairs)


def no_partners() -> I64:
    """Make the table of partners of samples that have none."""
    return np.empty((0, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of a global batch: n samples in the order of its slots."""

    uids: I64  # (n,)
    keys: tuple[str, ...]
    labels: I64  # (n,); -1: none
    epochs: I64  # (n,)
    valid: npt.NDArray[np.bool_]  # (n,); False: masked, or a repeat that fills the batch
    columns: tuple[Column, ...]  # of each part of the recipe
    faults: tuple[Fault, ...]  # the bad samples that were met
    # (n, 4) of SEGMENT where samples are pieces of rows
    segments: I64 = field(default_factory=whole_samples)
    # (k, n) uids of the partners of each (partners.py), whose arrays lie behind its own in columns
    partners: I64 = field(default_factory=no_partners)
    drawn: tuple[Drawn | None, ...] = ()  # of each part, where all was drawn ahead of decoding

    @property
    def rows(self) -> int:
        """Rows of the batch: samples, unless these are pieces of rows."""
        return len(self._firsts) if len(self.segments) else len(self.uids)

    @property
    def _firsts(self) -> I64:
        """The first piece of each row, whose pieces stand beside each other."""
        return first_of_runs(self.segments[:, ROW])

    @property
    def samples(self) -> int:
        """Samples that it is made of; of rows the documents, each once, whatever its pieces."""
        return len(distinct_numbers(self.uids)) if len(self.segments) else len(self.uids)

    def in_rows(self) -> Share:
        """The share of a batch: samples themselves, or rows under the names of their first piece.

        A row is valid if any of its pieces is. Its pieces stay in `columns` and `segments`.
        """
        if not len(self.segments):
            return self
        first = self._firsts
        valid = np.logical_or.reduceat(self.valid, first)
        keys = tuple(self.keys[place] for place in first.tolist())
        return replace(
            self, uids=self.uids[first], keys=keys, labels=self.labels[first],
            epochs=self.epochs[first], valid=valid,
        )  # fmt: skip


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

    def __len__(self) -> int:
        """Batches per epoch, the same on all ranks."""
        ...

    def slots_at(self, step: int) -> I64:
        """This rank's places in a global batch, ascending: (batch_size / world_size,)."""
        ...

    def row_length(self, step: int) -> int:
        """How long the rows of a batch are, the same on all ranks; 0: it has no packed rows."""
        ...

    def anchor(self, step: int) -> dict[str, Any]:
        """What else a state says, so that resuming at `step` is quick; most need nothing."""
        ...

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, which has a `step` and what `anchor` said."""
        ...

    def close(self) -> None:
        """Let go of what is open; nothing is asked for afterwards."""
        ...
