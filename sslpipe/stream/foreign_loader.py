"""Decoded shares of an iterable: its samples in parcels through a crew, some ahead.

    the iterable -> Parcel -> MEASURE: extents, as an index has them -> DECODE -> Share

A share is what comes next that is good, so a bad sample moves all behind it: a share may be made of
several parcels, and those that are taken next are as large as is missing. Whatever runs ahead, the
samples, their order and their substitutes are the same as without.
"""

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ..errors import SampleError, ShardError
from .columns import ShareColumns
from .flights import Flight, Flights, Landed
from .foreign import Foreign, check_keys
from .jobs import are_alike
from .packed import Wants
from .parcels import NAME, Parcel, Parcels
from .records import Records
from .source import SUBSTITUTES, Drawn, Fault, OnBad, Share
from .tasks import DECODE, MEASURE, READ, Kind

I64 = npt.NDArray[np.int64]
Picked = tuple["Delivery", I64]  # and rows of it


class Delivery:
    """A parcel on its way through the workers, until all of its samples are in shares.

    next: the first row that is in no share yet.
    """

    def __init__(self, parcel: Parcel, parcels: Parcels, flights: Flights, kind: Kind) -> None:
        self.parcel, self.kind, self.next = parcel, kind, 0
        self._parcels, self._flights = parcels, flights
        self._measured: Landed | None = None
        self._landed: Landed | None = None
        self._failed: Exception | None = None
        self._flight: Flight | None = self._sent(parcel.wants, READ if kind == READ else MEASURE)

    @property
    def left(self) -> int:
        """Samples that are in no share yet."""
        return len(self.parcel.keys) - self.next

    def decode(self) -> None:
        """Wait for the extents, and have the samples decoded; what fails is told by `landed`."""
        if self.kind == READ or self._measured or self._failed or self._flight is None:
            return
        try:
            self._measured = self._flights.land(self._flight)
            bad, rows = self._measured.reasons, self.parcel.wants.rows
            good = np.setdiff1d(rows, [*bad]) if bad else rows
            # one part alone knows the extent, the others say zeros
            extents = self._measured.results["extent"][good].max(1)
            self._parcels.learn(self.parcel, good, extents)
            wants = self.parcel.wants.at(good) if bad else self.parcel.wants
            self._flight = self._sent(wants, self.kind) if len(good) else None
        except Exception as error:
            self._failed = error

    def landed(self) -> Landed:
        """Wait for all samples, a row each.

        Raises:
            Exception: what is no fault of a sample.
        """
        if self._landed is None:
            self.decode()
            if self._failed:
                raise self._failed
            found = self._flights.land(self._flight) if self._flight else None
            self._landed = self._whole(found)
            self._parcels.drop(self.parcel)
        return self._landed

    def _whole(self, found: Landed | None) -> Landed:
        """What was decoded, and what was bad already when it was measured."""
        if found and not (self._measured and self._measured.reasons):
            return found
        assert self._measured is not None
        if found:
            self._measured.replace(found.wants.rows, found)
        return self._measured

    @property
    def drawn(self) -> tuple[Drawn | None, ...]:
        """What was drawn of each part ahead of decoding, if a share has all of the parcel."""
        return self._flight.drawn if self._flight else ()

    def rows(self, most: int) -> I64:
        """The next rows, which are in a share from now on."""
        start, self.next = self.next, min(self.next + most, len(self.parcel.keys))
        return np.arange(start, self.next)

    def drop(self) -> None:
        """Wait until no worker reads it, and forget it."""
        if self._flight:
            with suppress(Exception):  # nobody asks for it any more
                self._flights.land(self._flight)
        self._parcels.drop(self.parcel)

    def _sent(self, wants: Wants, kind: Kind) -> Flight:
        return self._flights.depart(self._flights.book([wants], kind)[0])

    def fault(self, row: int) -> Fault:
        """What is wrong with a sample; workers know its number and its key."""
        landed, key, url = self.landed(), self.parcel.keys[row], self.parcel.urls[row]
        reason = landed.reasons[row]
        for name in (key, f"sample {row}"):
            reason = reason.removeprefix(f"{NAME} {name}: ")
        uid, epoch = landed.records.samples["uid"][row], landed.wants.epochs[row]
        return Fault(url, None, int(uid), key, f"{url} {key}: {reason}", int(epoch))


class ForeignLoader:
    """`load(step)` gives a share; the samples of shares behind it are with the workers already."""

    def __init__(
        self,
        source: Foreign,
        parcels: Parcels,
        flights: Flights,
        columns: ShareColumns,
        *,
        on_bad: OnBad,
    ) -> None:
        self._source, self._parcels, self._flights = source, parcels, flights
        self._columns, self._on_bad = columns, on_bad
        self._lock = threading.Lock()
        self._coming: deque[Delivery] = deque()
        self._next = 0  # the step that comes next; -1: after an error the iterable begins anew
        self._ended: Exception | None = None  # why there are no more samples

    def load(self, step: int, kind: Kind = DECODE, *, decoded: int = 1, taken: int = 1) -> Share:
        """The next samples; asking for another than the next step iterates anew.

        decoded: shares, with this one, that workers are at. taken: those that they have at all.

        Raises:
            SampleError: one is bad, and the policy is `raise`.
            ShardError: an iterable that gives something else, or too many bad samples in a row.
        """
        with self._lock:
            stale = self._coming and self._coming[0].kind != kind
            if step != self._next or stale:
                self._begin(step)
            self._next = -1
            self._fill(taken, kind)
            self._decode(decoded)
            share = self._made(kind)
            self._next = step + 1
            return share

    def _begin(self, step: int) -> None:
        """Have nothing on its way, and iterate anew."""
        while self._coming:
            self._coming.popleft().drop()
        self._source.begin(step)
        self._ended = None

    @property
    def _left(self) -> int:
        """Samples that were taken and are in no share yet."""
        return sum(delivery.left for delivery in self._coming)

    def _fill(self, shares: int, kind: Kind) -> None:
        """Take samples until so many shares of them are on their way."""
        share = self._source.share
        while not self._ended and (missing := shares * share - self._left) > 0:
            self._take(missing if missing < 2 * share else share, kind)  # a rest is no parcel

    def _decode(self, shares: int) -> None:
        """Have the first shares decoded."""
        before = 0
        for delivery in self._coming:
            if before >= shares * self._source.share:
                return
            delivery.decode()
            before += delivery.left

    def _made(self, kind: Kind) -> Share:
        """The next good samples.

        Raises:
            SampleError, ShardError: as `load`.
        """
        picked, faults, missing, in_a_row = list[Picked](), list[Fault](), self._source.share, 0
        while missing:
            delivery = self._first(missing, kind)
            landed, rows = delivery.landed(), delivery.rows(missing)
            if not delivery.left:
                self._coming.popleft()
            bad = [row for row in rows.tolist() if row in landed.reasons] if landed.reasons else []
            found = [delivery.fault(row) for row in bad]
            if found and self._on_bad == "raise":
                raise SampleError(found[0].reason)
            faults += found
            kept = np.setdiff1d(rows, bad) if bad and self._on_bad != "mask" else rows
            in_a_row = int(rows[-1] - kept[-1]) if len(kept) else in_a_row + len(rows)
            if in_a_row >= SUBSTITUTES:
                raise ShardError(
                    f"{NAME}: {SUBSTITUTES} bad samples in a row, the last: {found[-1].reason}"
                )
            picked.append((delivery, kept))
            missing -= len(kept)
        return self._share(picked, faults, kind)

    def _first(self, missing: int, kind: Kind) -> Delivery:
        """The parcel with the next sample; taken now if none is on its way.

        Raises:
            Exception: there are no more samples, and why.
        """
        if not self._coming:
            self._take(missing, kind)
        if not self._coming:
            assert self._ended is not None
            raise self._ended
        return self._coming[0]

    def _take(self, count: int, kind: Kind) -> None:
        """Take samples and send them to be measured; fewer if the iterable ends."""
        if self._ended is None:
            samples, self._ended = self._source.take(count)
            if samples:
                parcel = self._parcels.pack(samples)
                self._coming.append(Delivery(parcel, self._parcels, self._flights, kind))

    def _share(self, picked: Sequence[Picked], faults: Sequence[Fault], kind: Kind) -> Share:
        """The share of some rows of parcels.

        Raises:
            ShardError: all have one key.
        """
        landed = put_behind([(delivery.landed(), rows) for delivery, rows in picked])
        keys = tuple(
            delivery.parcel.keys[row] for delivery, rows in picked for row in rows.tolist()
        )
        check_keys(keys)
        labels, valid = landed.records.samples["label"].astype(np.int64), landed.wants.valid.copy()
        for place in landed.reasons:  # masked: nobody may look at them
            labels[place], valid[place] = -1, False
        return Share(
            landed.records.samples["uid"].astype(np.int64), keys, labels, landed.wants.epochs,
            valid, () if kind == READ else self._columns(landed), tuple(faults),
            drawn=picked[0][0].drawn if len(picked) == 1 else (),
        )  # fmt: skip


def put_behind(pieces: Sequence[tuple[Landed, I64]]) -> Landed:
    """Some rows of samples that have landed, behind each other."""
    first, rows = pieces[0]
    if len(pieces) == 1 and len(rows) == len(first.wants):
        return first
    slots: list[npt.NDArray[np.uint8]] = []
    slot: list[I64] = []
    reasons: dict[int, str] = {}
    for landed, rows in pieces:
        end = sum(map(len, slot))
        used, numbers = np.unique(landed.slot[rows], return_inverse=True)
        slot.append(numbers + len(slots))
        slots += [landed.slots[each] for each in used.tolist()]
        told = enumerate(rows.tolist(), end)
        reasons |= {at: landed.reasons[row] for at, row in told if row in landed.reasons}
    words = np.concatenate([landed.words[rows] for landed, rows in pieces])
    alike = not reasons and len(slots) == 1 and are_alike(words)
    tables = ([landed.records[n][rows] for landed, rows in pieces] for n in range(2))
    return Landed(
        Wants.joined([landed.wants.at(rows) for landed, rows in pieces]),
        Records(*map(np.concatenate, tables)),
        words, alike,
        np.concatenate([landed.starts[rows] for landed, rows in pieces]),
        slots, np.concatenate(slot), {}, reasons,
    )  # fmt: skip
