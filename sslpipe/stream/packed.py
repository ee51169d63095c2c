"""Packed shards as a source: which samples a batch has, and where they lie. It reads no payload."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..shards.index import MEMBER, SAMPLE
from ..shards.labels_file import Relabelled
from ..shards.manifest import Manifest
from ..shards.read.store import ShardStore
from .lanes import distinct_numbers
from .mixture import StepsInARow
from .order import I64, Located, Order
from .plan import Picks, Plan, RankSlots
from .records import ROWS, Records, RecordTable
from .shard_lookahead import ShardLookahead


@dataclass(frozen=True, slots=True)
class Wants:
    """Samples that are to be loaded: nine arrays of n, all int64 but `valid`."""

    corpora: I64
    positions: I64  # in the corpus's own stream
    epochs: I64  # for which draws are made
    shards: I64
    rows: I64  # in the tar
    valid: npt.NDArray[np.bool_]  # False: a repeat that fills the batch
    segments: I64  # (n, 4) of SEGMENT, which its decoder is told; (n, 0): whole samples
    turns: I64  # 0: a sample of the batch; t: the t-th partner of one (partners.py)
    owners: I64  # of a partner: what the draws for that one are keyed by

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: I64 | slice) -> "Wants":
        """The samples in some places of these, in the order that was asked for."""
        return Wants(*(getattr(self, name)[places] for name in self.__slots__))

    @classmethod
    def joined(cls, some: Sequence["Wants"]) -> "Wants":
        """Samples behind each other."""
        if len(some) == 1:
            return some[0]
        columns = ([getattr(each, name) for each in some] for name in cls.__slots__)
        return cls(*(np.concatenate(column) for column in columns))


class Corpus:
    """One packed set: its order, its records, and the rows that it leaves out.

    `order` is over the rows that are left; `excluded` maps a shard's number to the others.
    `members`: extensions that are read beside the payload; a sample may lack them.
    `relabelled`: labels that go before those of the indexes.
    """

    def __init__(
        self,
        store: ShardStore,
        order: Order,
        *,
        fingerprint: str,
        files: Sequence[str],
        excluded: Mapping[int, Sequence[int]],
        members: Collection[str] = (),
        labelled: bool = True,
        relabelled: Relabelled | None = None,
    ) -> None:
        self.order, self.fingerprint, self.files, self.members = order, fingerprint, files, members
        self.records = RecordTable(store, len(files), relabelled)
        self.classes = relabelled.classes if relabelled else store.classes
        self.store, self._ahead = store, copy(order)  # an order keeps the tables of where it is
        self.identity = f"{fingerprint} {relabelled.fingerprint}" if relabelled else fingerprint
        self.labelled = labelled  # False: its labels are not those of the other corpora
        self._gaps = {
            shard: np.array(rows, dtype=np.int64) - np.arange(len(rows))
            for shard, rows in excluded.items()
        }
        self._lock = threading.Lock()  # the order keeps the tables of the last epoch

    def locate(self, positions: I64) -> Located:
        """Epoch, shard and row in the tar of each position."""
        with self._lock:
            located = self.order.locate(positions)
        rows = self._in_tar(located.shards, located.rows)
        return Located(located.epochs, located.shards, rows)

    def _in_tar(self, shards: I64, kept: I64) -> I64:
        """The rows in their tars of the samples that are the `kept`-th of those left."""
        rows = kept.copy()
        for shard in distinct_numbers(shards) if self._gaps else ():
            if int(shard) in self._gaps:
                here = shards == shard
                # kept row r lies behind all excluded rows x_i with x_i - i <= r
                rows[here] += np.searchsorted(self._gaps[int(shard)], rows[here], side="right")
        return rows

    def _among_kept(self, shards: I64, rows: I64) -> I64:
        """The opposite: which of those left the samples in some rows of tars are."""
        kept = rows.copy()
        for shard in distinct_numbers(shards) if self._gaps else ():
            if int(shard) in self._gaps:
                here, gaps = shards == shard, self._gaps[int(shard)]
                kept[here] -= np.searchsorted(gaps + np.arange(len(gaps)), rows[here])
        return kept

    def another(self, shards: I64, rows: I64, drawn: I64) -> tuple[I64, I64]:
        """Another sample of the shard of each, told by a large number: shards and rows.

        Of a shard that has no other, it is one of the whole set; of such a set, the sample itself.
        """
        sizes = self.order.sizes
        ends = np.cumsum(sizes)
        alone = sizes[shards] == 1
        first = np.where(alone, 0, (ends - sizes)[shards])
        count = np.where(alone, ends[-1], sizes[shards])
        own = (ends - sizes)[shards] + self._among_kept(shards, rows)
        found = first + drawn % np.maximum(count - 1, 1)
        found = np.minimum(found + (found >= own), ends[-1] - 1)
        there = np.searchsorted(ends, found, side="right")
        return there, self._in_tar(there, found - (ends - sizes)[there])

    def shards(self, positions: I64) -> I64:
        """The shards of some positions, from the thread that looks ahead."""
        return distinct_numbers(self.ahead(positions))

    def ahead(self, positions: I64) -> I64:
        """The shard of each position, from the thread that looks ahead."""
        return self._ahead.locate(positions).shards


class Packed:
    """A corpus, or several (packed_mixture.py): `plan` says which of whose positions make a batch.

    Badness is a property of the bytes, so the substitute of a bad sample, the next good one of its
    lane, is the same on every topology.
    """

    exact = True

    def __init__(
        self,
        corpora: Sequence[Corpus],
        plan: Plan,
        slots: RankSlots,
        *,
        identity: str,
    ) -> None:
        self.corpora, self.plan, self.identity = corpora, plan, identity
        self._slots, self.share = slots, slots.share
        self._in_a_row = StepsInARow(self.planned, samples=self.planned_as)
        self._lookaheads = [
            ShardLookahead(self._shards_of(number), corpus.store, epoch=len(plan))
            for number, corpus in enumerate(corpora)
        ]

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    @property
    def manifests(self) -> list[Manifest]:
        """Of the corpora, in their order."""
        return [corpus.store.manifest for corpus in self.corpora]

    @property
    def rank_epoch(self) -> tuple[int, int]:
        """About how many samples and bytes of tars this rank reads in an epoch."""
        share = self.share / max(1, self.plan.size)
        samples = sum(corpus.order.samples for corpus in self.corpora)
        return int(samples * share), int(sum(c.store.bytes for c in self.corpora) * share)

    def wants(self, step: int) -> Wants:
        """This rank's samples of global batch `step`; stores begin to fetch what comes next."""
        self.arrive(step)
        return self._in_a_row(step)

    def arrive(self, step: int) -> None:
        """Have stores begin to fetch what a step needs, and those behind it."""
        for lookahead in self._lookaheads:
            lookahead.at(step)

    def planned(self, steps: Sequence[int]) -> list[Wants]:
        """This rank's samples of some steps, found in one go; at least of the first of them.

        Not of all, where the indexes that they need are more than are kept at a time.
        """
        picks, ends = self.picked(steps)
        wants = self.located(picks.corpora, picks.positions, picks.valid)
        return self.kept(wants, [wants.at(slice(*pair)) for pair in pairwise([0, *ends])])

    @property
    def planned_as(self) -> int:
        """How many samples a step counts as where several are planned in one go."""
        return self.share

    def kept(self, wants: Wants, found: list[Wants]) -> list[Wants]:
        """Those of several steps, or of the first alone: see `planned`."""
        return found if len(found) == 1 or self._are_kept(wants) else found[:1]

    def _are_kept(self, wants: Wants) -> bool:
        """Whether the indexes of samples are read once, even if others are read meanwhile."""
        used = distinct_numbers(wants.corpora << 32 | wants.shards).tolist()
        sizes = (self.corpora[each >> 32].order.sizes[each & (1 << 32) - 1] for each in used)
        return int(sum(sizes)) <= ROWS // 2

    def substitutes(self, wants: Wants, attempt: int) -> Wants:
        """The samples that stand in for others, in their epochs' draws; the `attempt`-th ones."""
        strides = np.array([corpus.order.stride for corpus in self.corpora], dtype=np.int64)
        positions = wants.positions + attempt * strides[wants.corpora]
        found = self.located(wants.corpora, positions, wants.valid)
        return replace(found, positions=wants.positions, epochs=wants.epochs)

    def slots_at(self, step: int) -> I64:
        """This rank's places in a batch, ascending."""
        return self._slots.at(step)

    def picks(self, step: int) -> Picks:
        """Which samples this rank's are."""
        return self.plan(step, self._slots.at(step))

    def picked(self, steps: Sequence[int]) -> tuple[Picks, list[int]]:
        """Those of some steps behind each other, and where each step ends."""
        picks = [self.picks(step) for step in steps]
        columns = ([getattr(p, name) for p in picks] for name in Picks.__slots__)
        ends = np.cumsum([len(p.valid) for p in picks]).tolist()
        return Picks(*map(np.concatenate, columns)), ends

    def located(self, corpora: I64, positions: I64, valid: npt.NDArray[np.bool_]) -> Wants:
        """Where samples lie, in the order that was asked for."""
        epochs, shards, rows = (np.empty_like(positions) for _ in range(3))
        for corpus in distinct_numbers(corpora):
            here = corpora == corpus
            found = self.corpora[corpus].locate(positions[here])
            epochs[here], shards[here], rows[here] = found.epochs, found.shards, found.rows
        whole, alone = np.empty((len(positions), 0), dtype=np.int64), np.zeros_like(positions)
        return Wants(corpora, positions, epochs, shards, rows, valid, whole, alone, alone)

    def records(self, wants: Wants) -> Records:
        """What the indexes say of samples.

        Raises:
            ShardError: an index is missing, cut, or of another tar.
        """
        if len(self.corpora) == 1:
            return self.corpora[0].records.at(wants.shards, wants.rows)
        samples, payloads = np.empty(len(wants), SAMPLE), np.empty(len(wants), MEMBER)
        for corpus in distinct_numbers(wants.corpora):
            here = wants.corpora == corpus
            found = self.corpora[corpus].records.at(wants.shards[here], wants.rows[here])
            samples[here], payloads[here] = found
        return Records(samples, payloads)

    def _shards_of(self, corpus: int) -> Callable[[int], I64]:
        """Say which shards of a corpus this rank needs for a step; for a thread of its own."""
        return lambda step: self.corpora[corpus].shards(self.picks(step).positions)

    def row_length(self, step: int) -> int:
        """None: samples are samples."""
        return 0

    def anchor(self, step: int) -> dict[str, Any]:
        """Nothing: any step is found at once."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Do nothing: samples follow from the step."""

    def close(self) -> None:
        """Stop what fetches ahead, and close the stores."""
        for lookahead in self._lookaheads:
            lookahead.close()
        for corpus in self.corpora:
            corpus.store.close()
