"""From a source to decoded shares: by workers, or in this process.

    Packed    tasks for workers, each array straight into the arena      stream/loader.py
              arrays that lie ready beside the tars, read here           stream/stored.py
    Foreign   the iterable's bytes in memory, and tasks for workers      stream/foreign_loader.py

A device that decodes lists gets what workers left to it, in `DeviceLoading`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..device.handoff import pin, unpin
from ..device.ragged import Ragged
from ..device.slots import Slots
from ..recipe import Recipe
from ..stream.columns import ShareColumns
from ..stream.crew import Crew
from ..stream.flights import Flights
from ..stream.foreign import Foreign
from ..stream.foreign_loader import ForeignLoader
from ..stream.loader import Departed, Departures, Loader
from ..stream.packed import Packed
from ..stream.packed_rows import PackedRows
from ..stream.parcels import Parcels
from ..stream.partners import PartnerDraw
from ..stream.source import Column, Share, Source
from ..stream.stored import StoredFlights
from ..stream.tasks import ALONE, DECODE, TRIMMED, Kind
from . import Raw, ShareDecode
from .checks import check_device_decoding, check_members, check_partners, partner_count
from .crews import open_crew, shares_ahead
from .parts import Part, tensor_of

I64 = npt.NDArray[np.int64]


class Loading(Protocol):
    """Gives the shares of a rank."""

    def load(self, step: int, kind: Kind = DECODE) -> Share:
        """This rank's samples of global batch `step`."""

    def load_ahead(self, step: int, kind: Kind = TRIMMED, *, end: int | None = None) -> Share:
        """The same, for steps that follow each other; another step or kind starts anew there.

        What no view reads may be arbitrary in them, unless the kind says otherwise. end: the step
        that will not be asked for, nor those behind it, if that is known.
        """

    @property
    def summary(self) -> str:
        """How often samples were decoded at a smaller scale; "": never."""
        ...

    def close(self) -> None:
        """End the workers, and what else runs for it."""
        ...


class PackedLoading:
    """Packed shards by a crew, some shares ahead."""

    def __init__(self, loader: Loader[Any, Any], crew: Crew, slots: Slots, *, ahead: int) -> None:
        self._loader, self.crew, self.slots, self._ahead = loader, crew, slots, ahead
        self._flights: deque[tuple[tuple[int, Kind], Departed]] = deque()
        self._loaded = self._reduced = 0

    def load(self, step: int, kind: Kind = DECODE) -> Share:
        """This rank's samples of global batch `step`."""
        return self._counted(self._loader.load(step, kind))

    def load_some(self, step: int, places: Sequence[int], kind: Kind) -> Share:
        """The samples in some places of a share."""
        return self._loader.load_some(step, places, kind)

    def load_ahead(self, step: int, kind: Kind = TRIMMED, *, end: int | None = None) -> Share:
        """The same as `load`, of steps that follow each other; from one thread."""
        if self._flights and self._flights[0][0] != (step, kind):
            self._flights.clear()  # their slots come back when their tasks are done
        ahead = self._ahead if end is None else max(0, min(self._ahead, end - 1 - step))
        while len(self._flights) <= ahead:
            coming = step + len(self._flights)
            self._flights.append(((coming, kind), self._loader.submit(coming, kind)))
        return self._counted(self._loader.finish(self._flights.popleft()[1]))

    def _counted(self, share: Share) -> Share:
        for arrays, extents in share.columns:
            if isinstance(arrays, Ragged) and extents.shape[1] < arrays.shapes_BD.shape[1]:
                sides = arrays.shapes_BD[:, : extents.shape[1]]
                if sides.tobytes() != extents.tobytes():  # seldom, and less to do
                    self._reduced += int((sides != extents).any(1).sum())
            self._loaded += len(arrays)
        return share

    @property
    def summary(self) -> str:
        """How often it was of use to know the views before decoding."""
        if not self._reduced:
            return ""
        told = f"{self._reduced:,} of {self._loaded:,} samples were decoded"
        return f"{told} at a smaller scale or in part"

    def close(self) -> None:
        """End the crew, and let go of the arena."""
        self._flights.clear()
        self.crew.close()
        self.slots.close()


class DeviceLoading:
    """Packed shards of one part, whose arrays a device decodes in lists; of one thread."""

    def __init__(self, packed: PackedLoading, decode: ShareDecode) -> None:
        self._packed, self._decode, self.close = packed, decode, packed.close

    @property
    def summary(self) -> str:
        """How often workers decoded at a smaller scale; the device never does."""
        return self._packed.summary

    def load(self, step: int, kind: Kind = DECODE) -> Share:
        """This rank's samples of global batch `step`."""
        share = self._packed.load(step, kind)
        return self._finished(share, step) if kind == DECODE else share

    def load_ahead(self, step: int, kind: Kind = DECODE, *, end: int | None = None) -> Share:
        """The same, for steps that follow each other."""
        share = self._packed.load_ahead(step, kind, end=end)
        return self._finished(share, step) if kind == DECODE else share

    def _finished(self, share: Share, step: int) -> Share:
        """Decode what workers left to the device; what it cannot do, workers do after all."""
        (column,) = share.columns
        raws = list(self._decode.finish(column.arrays))
        missed = [place for place, raw in enumerate(raws) if raw is None]
        if not missed:
            return replace(share, columns=(decoded_column(raws, column.extents),))
        return self._with(share, raws, missed, self._packed.load_some(step, missed, ALONE))

    def _with(
        self, share: Share, raws: list[Raw | None], missed: Sequence[int], other: Share
    ) -> Share:
        """A share with those samples of another one in the places that were missed."""
        (column,) = other.columns
        keys = list(share.keys)
        for at, place in enumerate(missed):
            raws[place] = Raw(column.arrays[at], tuple(column.extents[at].tolist()))
            keys[place] = other.keys[at]
        uids, labels, valid = share.uids.copy(), share.labels.copy(), share.valid.copy()
        uids[missed], labels[missed], valid[missed] = other.uids, other.labels, other.valid
        whole = decoded_column(raws, share.columns[0].extents)
        faults = share.faults + other.faults
        return Share(uids, tuple(keys), labels, share.epochs, valid, (whole,), faults)


def decoded_column(raws: Sequence[Raw | None], extents: I64) -> Column:
    """Canvases, on the device or not yet; what workers decoded keeps the extent that they said."""
    arrays = [tensor_of(raw.data) for raw in raws if raw is not None]
    told = [
        known if any(known) else raw.extent
        for known, raw in zip(extents.tolist(), raws, strict=True)
        if raw is not None
    ]
    return Column(arrays, np.array(told, dtype=np.int64))


class ForeignLoading:
    """An iterable's samples by a crew, some shares ahead.

    ahead: 0: the iterable is asked for no more than a share needs.
    """

    summary = "samples of an iterable were decoded as they came"

    def __init__(
        self, loader: ForeignLoader, crew: Crew, memory: Sequence[Slots | Parcels], *, ahead: int
    ) -> None:
        self._loader, self.crew, self._memory, self._ahead = loader, crew, memory, ahead

    def load(self, step: int, kind: Kind = DECODE) -> Share:
        """The next samples; with READ they are taken and not decoded."""
        return self._loader.load(step, kind)

    def load_ahead(self, step: int, kind: Kind = DECODE, *, end: int | None = None) -> Share:
        """The same, while workers are at the next ones."""
        wanted = max(1, end - step) if end is not None else 2 + self._ahead
        decoded = min(1 + self._ahead, wanted)
        # extents are asked for before they are waited for
        taken = min(2 + self._ahead, wanted) if self._ahead else 1
        return self._loader.load(step, kind, decoded=decoded, taken=taken)

    def close(self) -> None:
        """End the crew, and let go of all memory."""
        self.crew.close()
        for memory in self._memory:
            memory.close()


def over_stored(parts: Sequence[Part], source: Source) -> list[Part]:
    """The parts of a recipe, the one of a single modality with what is stored beside the tars.

    Raises:
        ShardError: a set promises such files, and one is missing or damaged.
    """
    if len(parts) > 1 or not isinstance(source, Packed):
        return [*parts]
    return [part.over(source.manifests) for part in parts]


def flights_of(
    source: Packed, crew: Crew, slots: Slots, parts: Sequence[Part], count: int
) -> Departures[Any, Any]:
    """How samples come here: read beside the tars where they lie ready, else through the crew."""
    if stored := parts[0].stored:
        return StoredFlights(source, slots, parts[0], stored)
    return Flights(source, crew, slots, parts, count=count)


def open_loading(
    recipe: Recipe, source: Source, parts: Sequence[Part], *, device: torch.device, count: int
) -> Loading:
    """What loads the shares of a source, with `count` workers.

    Raises:
        RecipeError: a device cannot decode what an iterable gives, or several modalities, or a
            decoder cannot be sent to workers, or a set has nothing of what a group reads.
    """
    devices = [part.share_decode for part in parts if part.share_decode]
    if devices:
        check_device_decoding(recipe, source, parts)
    check_partners(recipe, source, parts)
    slots = Slots(pin=pin, unpin=unpin) if device.type == "cuda" else Slots()
    columns = ShareColumns(slots, [part.maker.blank for part in parts])
    if isinstance(source, Foreign):
        return foreign_loading(recipe, source, parts, slots, columns, count)
    assert isinstance(source, Packed)
    check_members(recipe, source, parts)
    crew = open_crew(recipe, [corpus.store for corpus in source.corpora], parts, slots, count)
    rows, partners = isinstance(source, PackedRows), partner_count(parts)
    loader = Loader(
        source, flights_of(source, crew, slots, parts, count), columns,
        on_bad="mask" if rows and recipe.stream.on_bad == "replace" else recipe.stream.on_bad,
        partners=PartnerDraw(source, partners, recipe.stream.seed),
    )  # fmt: skip
    packed = PackedLoading(loader, crew, slots, ahead=shares_ahead(count))
    return DeviceLoading(packed, devices[0]) if devices else packed


def foreign_loading(
    recipe: Recipe,
    source: Foreign,
    parts: Sequence[Part],
    slots: Slots,
    columns: ShareColumns,
    count: int,
) -> ForeignLoading:
    """What loads an iterable's samples, with `count` workers.

    Raises:
        RecipeError: a decoder cannot be sent to workers.
    """
    parcels = Parcels()
    crew = open_crew(recipe, [parcels], parts, slots, count)
    flights = Flights(parcels, crew, slots, parts, count=count)
    loader = ForeignLoader(source, parcels, flights, columns, on_bad=recipe.stream.on_bad)
    ahead = shares_ahead(count) if recipe.run.prefetch else 0
    return ForeignLoading(loader, crew, (slots, parcels), ahead=ahead)
