"""Packed shards as a source: located, read, checked and decoded in threads; bad ones replaced.

It does not know what a decoded sample is: `decode` is the modality's.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from ..errors import SampleError, ShardError
from ..shards.read.store import ShardStore
from .order import I64, Located, Order
from .plan import Picks, Plan
from .reader import Reader, Sample
from .shard_lookahead import ShardLookahead
from .source import SUBSTITUTES, Decode, Fault, Loaded, OnBad, Share, without_bytes

T = TypeVar("T")
TASK = 32  # samples per task at most
TASKS_PER_THREAD = 4  # per batch at least, so that all threads end at about the same time
Place = tuple[int, int, int, int, int]  # corpus, position, epoch, shard, row


class Corpus:
    """One packed set: its order, its reader, and the rows that it leaves out.

    `order` is over the rows that are left; `excluded` maps a shard's number to the others.
    """

    def __init__(
        self,
        store: ShardStore,
        reader: Reader,
        order: Order,
        *,
        fingerprint: str,
        files: Sequence[str],
        excluded: Mapping[int, Sequence[int]],
        labelled: bool = True,
    ) -> None:
        self.reader, self.order, self.fingerprint, self.files = reader, order, fingerprint, files
        self.store, self._ahead = store, copy(order)  # an order keeps the tables of where it is
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
        rows = located.rows.copy()
        for shard in np.unique(located.shards) if self._gaps else ():
            if int(shard) in self._gaps:
                here = located.shards == shard
                # kept row r lies behind all excluded rows x_i with x_i - i <= r
                rows[here] += np.searchsorted(self._gaps[int(shard)], rows[here], side="right")
        return Located(located.epochs, located.shards, rows)

    def shards(self, positions: I64) -> I64:
        """The shards of some positions, from the thread that looks ahead."""
        return np.unique(self._ahead.locate(positions).shards)


class Packed:
    """One corpus or several: `plan` says whose samples stand in a batch, and at which position.

    Badness is a property of the bytes, so the substitute of a bad sample, the next good one of its
    lane, is the same on every topology.
    """

    exact = True

    def __init__(
        self,
        corpora: Sequence[Corpus],
        plan: Plan,
        slots: I64,
        *,
        on_bad: OnBad,
        threads: ThreadPoolExecutor,
        count: int,
        identity: str,
    ) -> None:
        self.corpora, self.plan, self.slots, self.identity = corpora, plan, slots, identity
        self._on_bad, self._threads, self._count = on_bad, threads, count
        self._lookaheads = [
            ShardLookahead(partial(self._shards, number), corpus.store, epoch=len(plan))
            for number, corpus in enumerate(corpora)
        ]

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    def share(self, step: int, decode: Decode[T]) -> Share[T]:
        """This rank's samples of global batch `step`."""
        for lookahead in self._lookaheads:
            lookahead.at(step)
        return self.load(self.picks(step), decode)

    def picks(self, step: int) -> Picks:
        """Which samples this rank's are."""
        return self.plan(step, self.slots)

    def _shards(self, corpus: int, step: int) -> I64:
        """The shards of a corpus that this rank needs for a batch."""
        picks = self.picks(step)
        return self.corpora[corpus].shards(picks.positions[picks.corpora == corpus])

    def load(self, picks: Picks, decode: Decode[T]) -> Share[T]:
        """Some samples of the stream, in their order."""
        places = self.places(picks.corpora, picks.positions)
        size = max(1, min(TASK, len(places) // (TASKS_PER_THREAD * self._count)))
        tasks = [places[start : start + size] for start in range(0, len(places), size)]
        done = self._threads.map(partial(self._task, decode), tasks)
        loaded = list(chain.from_iterable(done))
        return Share(loaded, picks.valid & ~np.array([item.bad for item in loaded], dtype=bool))

    def places(self, corpora: I64, positions: I64) -> list[Place]:
        """Where samples lie, in the order that was asked for."""
        table = np.empty((len(positions), 5), dtype=np.int64)
        for corpus in np.unique(corpora):
            here = corpora == corpus
            at = positions[here]
            located = self.corpora[corpus].locate(at)
            columns = (np.full_like(at, corpus), at, located.epochs, located.shards, located.rows)
            table[here] = np.stack(columns, axis=1)
        return [(c, p, e, s, r) for c, p, e, s, r in table.tolist()]

    def close(self) -> None:
        """Stop what fetches ahead, and close the stores."""
        for lookahead in self._lookaheads:
            lookahead.close()
        for corpus in self.corpora:
            corpus.store.close()

    def _task(self, decode: Decode[T], places: list[Place]) -> list[Loaded[T]]:
        """Several samples in one thread: handing over each of them costs more than reading it."""
        return [self._load(decode, place) for place in places]

    def _load(self, decode: Decode[T], place: Place) -> Loaded[T]:
        """The sample at a place, or what stands in for it."""
        number, position, epoch, shard, row = place
        corpus, faults = self.corpora[number], list[Fault]()
        for attempt in range(1, SUBSTITUTES + 1):
            found = try_sample(corpus, shard, row, epoch, decode)
            if isinstance(found, Loaded):
                return replace(found, faults=tuple(faults)) if faults else found
            fault, error = found
            if self._on_bad == "raise":
                raise error
            faults.append(fault)
            if self._on_bad == "mask":
                return Loaded(stand_in(fault), None, epoch, tuple(faults), bad=True)
            following = np.array([position + attempt * corpus.order.stride], dtype=np.int64)
            # the draws stay those of the epoch that the batch is in
            *_, shard, row = self.places(np.array([number]), following)[0]
        raise ShardError(
            f"{corpus.files[shard]}: {SUBSTITUTES} bad samples in a row, the last: "
            f"{faults[-1].reason}; run `sslpipe verify` on the shards"
        )


def try_sample(
    corpus: Corpus, shard: int, row: int, epoch: int, decode: Decode[T]
) -> Loaded[T] | tuple[Fault, SampleError]:
    """A sample, read and decoded, or what is wrong with its bytes.

    Raises:
        ShardError, OSError: the shard cannot be read, which says nothing of the sample.
    """
    file = corpus.files[shard]
    try:
        sample = corpus.reader.read(shard, row)
    except SampleError as error:
        return Fault(file, row, None, None, str(error), epoch, corpus.fingerprint), error
    try:
        label = sample.label if corpus.labelled else -1
        return Loaded(without_bytes(sample, label), decode(sample, epoch), epoch)
    except SampleError as error:
        named = SampleError(f"{file} {sample.key}: {error}")
        reason, who = str(named), (sample.uid, sample.key)
        return Fault(file, row, *who, reason, epoch, corpus.fingerprint), named


def stand_in(fault: Fault) -> Sample:
    """What a batch says of a sample that is not shown; uid 0 where its bytes do not tell it."""
    return Sample(fault.uid or 0, fault.key or f"{fault.shard}#{fault.row}", -1, b"")


def mixture_identity(corpora: Mapping[str, Any], turns: Sequence[int]) -> str:
    """One fingerprint of all corpora, their names and their weights."""
    digest = hashlib.blake2b(digest_size=16)
    for (name, corpus), turn in zip(corpora.items(), turns, strict=True):
        digest.update(f"{name} {corpus.fingerprint} {turn}\n".encode())
    return "b2:" + digest.hexdigest()
