"""Decoded shares of packed shards: many ahead in the workers, bad samples replaced, in one buffer.

    step -> Wants -> records, instructions, places in a slot -> tasks      `submit`, ahead of time
    tasks done -> bad ones replaced -> Share                               `finish`

All that is decided here is decided for the samples of a share at once. It does not know what a
decoded sample is: that is for the parts of the recipe.
"""

from collections.abc import Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import SampleError, ShardError
from ..rng import whole_samples
from .columns import ShareColumns
from .flights import Landed
from .jobs import keys_of
from .mixture import StepsInARow
from .packed import Packed, Wants
from .partners import PartnerDraw, put_wants
from .source import SUBSTITUTES, Column, Drawn, Fault, OnBad, Share
from .tasks import ALONE, DECODE, READ, TRIMMED, Kind

I64 = npt.NDArray[np.int64]


B = TypeVar("B")  # samples of a step that are booked
F = TypeVar("F", bound="Departed")


class Departed(Protocol):
    """Samples that are on their way, or here: `flights.Flight`, `stored.StoredFlight`."""

    @property
    def kind(self) -> Kind: ...
    @property
    def drawn(self) -> tuple[Drawn | None, ...]: ...


class Departures(Protocol[B, F]):
    """How samples come here: through workers (flights.py), or read here (stored.py)."""

    def book(self, steps: Sequence[Wants], kind: Kind) -> list[B]:
        """Decide all that can be decided of the samples of some steps beforehand."""
        ...

    def depart(self, booked: B) -> F:
        """Begin with the samples of a step."""
        ...

    def land(self, flight: F) -> Landed:
        """Wait until the samples of a flight are here."""
        ...


class Loader(Generic[B, F]):
    """`load(step)` gives a share; `submit` and `finish` do it in two steps, many at a time.

    flights: how samples come here. columns: makes those of a share. partners: what is loaded beside
    samples.
    """

    def __init__(
        self,
        source: Packed,
        flights: Departures[B, F],
        columns: ShareColumns,
        *,
        on_bad: OnBad,
        partners: PartnerDraw,
    ) -> None:
        self._source, self._columns, self._on_bad = source, columns, on_bad
        self._partners, self._flights = partners, flights
        self._in_a_row = {
            kind: StepsInARow(partial(self._booked, kind=kind), samples=source.planned_as)
            for kind in (DECODE, TRIMMED, ALONE, READ)
        }

    def load(self, step: int, kind: Kind = DECODE) -> Share:
        """This rank's samples of global batch `step`; as `finish`."""
        self._source.arrive(step)
        return self.finish(self._flights.depart(self._booked([step], kind)[0]))

    def load_some(self, step: int, places: Sequence[int], kind: Kind) -> Share:
        """The samples in some places of a share; as `finish`."""
        (wants,) = self._source.planned([step])
        some = self._partners.beside(wants.at(np.array(places, dtype=np.int64)))
        return self.finish(self._sent(some, kind))

    def submit(self, step: int, kind: Kind = DECODE) -> F:
        """Have workers begin with a share; from one thread."""
        self._source.arrive(step)
        return self._flights.depart(self._in_a_row[kind](step))

    def _booked(self, steps: Sequence[int], kind: Kind) -> list[B]:
        """All that is decided of the samples of some steps before they are sent."""
        wants = [self._partners.beside(each) for each in self._source.planned(steps)]
        try:
            return self._flights.book(wants, kind)
        except ShardError:
            if len(wants) == 1:
                raise
            return self._booked(steps[:1], kind)  # it may be of a later step, whose turn will come

    def _sent(self, wants: Wants, kind: Kind) -> F:
        """Have workers begin with some samples."""
        return self._flights.depart(self._flights.book([wants], kind)[0])

    def finish(self, flight: F) -> Share:
        """Wait for a share, and replace what is bad in it.

        Raises:
            SampleError: a sample is bad and the policy is `raise`.
            ShardError: data is gone, or too many samples in a row are bad.
        """
        landed, faults = self._flights.land(flight), dict[int, list[Fault]]()
        self._note(landed, faults)
        if self._on_bad != "mask":
            self._substitute(landed, flight.kind, faults)
        told = tuple(fault for place in sorted(faults) for fault in faults[place])
        columns = () if flight.kind == READ else self._columns(landed)
        return self._share(landed, columns, told, flight.drawn)

    def _note(self, landed: Landed, faults: dict[int, list[Fault]]) -> None:
        """Write down what is wrong with samples.

        Raises:
            SampleError: the policy is `raise`.
        """
        for place in sorted(landed.reasons):
            fault = self._fault(landed, place)
            if self._on_bad == "raise":
                raise SampleError(fault.reason)
            faults.setdefault(place, []).append(fault)

    def _fault(self, landed: Landed, place: int) -> Fault:
        """What is wrong with one sample; its uid only where its bytes agree with the index."""
        wants, key = landed.wants, landed.key(place)
        corpus = self._source.corpora[wants.corpora[place]]
        uid = None if key is None else int(landed.records.samples["uid"][place])
        where = corpus.files[wants.shards[place]], int(wants.rows[place])
        reason, epoch = landed.reasons[place], int(wants.epochs[place])
        return Fault(*where, uid, key, reason, epoch, corpus.fingerprint)

    def _substitute(self, landed: Landed, kind: Kind, faults: dict[int, list[Fault]]) -> None:
        """Put the next good samples of their lanes in the places of bad ones.

        Raises:
            ShardError: too many of them are bad, too.
        """
        for attempt in range(1, SUBSTITUTES + 1):
            if not landed.reasons:
                return
            places = np.array(sorted(landed.reasons), dtype=np.int64)
            if attempt == SUBSTITUTES:
                break
            places, wants = self._others(landed.wants, places, attempt)
            landed.replace(places, self._flights.land(self._sent(wants, kind)))
            self._note(landed, faults)
        last = faults[int(places[-1])][-1]
        raise ShardError(
            f"{last.shard}: {SUBSTITUTES} bad samples in a row, the last: {last.reason}; mend "
            "them or leave them out (`sslpipe verify` finds those that do not decode)"
        )

    def _others(self, wants: Wants, bad: I64, attempt: int) -> tuple[I64, Wants]:
        """What stands in for bad samples, and in which places; those get new partners, too."""
        count = len(wants) // (1 + self._partners.count)
        owners, partners = bad[bad < count], bad[bad >= count]
        found = self._source.substitutes(wants.at(owners), attempt)
        theirs = (owners + count * np.arange(1, 1 + self._partners.count)[:, None]).ravel()
        partners = np.union1d(partners, theirs)
        if not len(partners):
            return owners, found
        whole = put_wants(wants, owners, found).at(partners % count)
        drawn = self._partners.drawn(whole, wants.turns[partners], attempt)
        return np.concatenate([owners, partners]), Wants.joined([found, drawn])

    def _share(
        self,
        landed: Landed,
        columns: tuple[Column, ...],
        faults: tuple[Fault, ...],
        drawn: tuple[Drawn | None, ...],
    ) -> Share:
        wants, uids = landed.wants, landed.records.samples["uid"].astype(np.int64)
        labels = self._labels(landed)
        keys, valid = self._keys(landed), wants.valid.copy()
        for place in landed.reasons:  # masked: nobody may look at them
            uids[place] = uids[place] if landed.key(place) is not None else 0
            labels[place], valid[place] = -1, False
        segments = wants.segments if wants.segments.shape[1] else whole_samples()
        count = len(wants) // (1 + self._partners.count)
        own = slice(count)
        return Share(
            uids[own], keys[own], labels[own], wants.epochs[own], valid[own], columns, faults,
            segments[own], uids[count:].reshape(self._partners.count, count), drawn,
        )  # fmt: skip

    def _labels(self, landed: Landed) -> I64:
        """(n,), -1 where a corpus numbers its classes by itself."""
        labels = landed.records.samples["label"].astype(np.int64)
        for number, corpus in enumerate(self._source.corpora):
            if not corpus.labelled:
                labels[landed.wants.corpora == number] = -1
        return labels

    def _keys(self, landed: Landed) -> tuple[str, ...]:
        """The key of every sample; its place where nothing tells the key of a bad one."""
        if len(landed.keys) == len(landed.wants):
            told = map(landed.keys.__getitem__, range(len(landed.wants)))
            return tuple(key or self._nameless(landed.wants, n) for n, key in enumerate(told))
        keys = keys_of(landed.words)
        for place in {*landed.keys, *landed.reasons}:
            keys[place] = landed.key(place) or self._nameless(landed.wants, place)
        return tuple(keys)

    def _nameless(self, wants: Wants, place: int) -> str:
        corpus = self._source.corpora[wants.corpora[place]]
        return f"{corpus.files[wants.shards[place]]}#{wants.rows[place]}"
