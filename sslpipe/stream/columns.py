"""The arrays of landed samples as the columns of a share: where they lie, or copied together."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..device.arena import ALIGN
from ..device.ragged import Ragged
from ..device.slots import Slots
from .flights import Landed
from .source import Column
from .tasks import EXTENT_WORD, SENT, SHAPE_WORD, WORDS

Array = npt.NDArray[Any]


class Blank(Protocol):
    """What stands in the place of a sample that is not shown: `modalities.Raw`."""

    @property
    def data(self) -> Any: ...
    @property
    def extent(self) -> tuple[int, ...]: ...


class ShareColumns:
    """`columns(landed)` -> those of each part.

    blanks: of each part, for `stream.on_bad: mask`.
    """

    def __init__(self, slots: Slots, blanks: Sequence[Blank]) -> None:
        self._slots, self._blanks = slots, blanks

    def __call__(self, landed: Landed) -> tuple[Column, ...]:
        """The arrays of each part, where they lie if they lie in one slot."""
        column = self._in_place if landed.alike else self._copied
        return tuple(column(landed, part) for part in range(landed.starts.shape[1]))

    def _in_place(self, landed: Landed, part: int) -> Column:
        """The arrays of a part where they lie."""
        words = landed.words[:, part * WORDS :]
        _, kind, axes, extents = words[0, :1].view(np.int16).tolist()
        flat, starts = torch.from_numpy(landed.slots[0]), landed.starts[:, part]
        arrays = Ragged(flat, starts, words[:, SHAPE_WORD : SHAPE_WORD + axes], TYPES[kind])
        return Column(arrays, words[:, EXTENT_WORD : EXTENT_WORD + extents])

    def _copied(self, landed: Landed, part: int) -> Column:
        """The arrays of a part from several slots in a new one; two kinds: a list."""
        raws = [self._raw(landed, place, part) for place in range(len(landed.wants))]
        extents = np.array([extent for _, extent in raws], dtype=np.int64)
        kinds = {(array.dtype, array.ndim) for array, _ in raws}
        if len(kinds) > 1:
            return Column([torch.from_numpy(array) for array, _ in raws], extents)
        return Column(self._together([array for array, _ in raws]), extents)

    def _raw(self, landed: Landed, place: int, part: int) -> tuple[Array, Sequence[int]]:
        """One array where it lies, and its extent."""
        if place in landed.reasons:
            blank = self._blanks[part]
            return np.asarray(blank.data), blank.extent
        result, start = landed.results[place, part], int(landed.starts[place, part])
        shape = result["shape"][: result["axes"]].tolist()
        memory = landed.slots[landed.slot[place]][start : start + int(result["bytes"])]
        array = memory.view(KINDS[int(result["type"])]).reshape(shape)
        return array, result["extent"][: result["extents"]].tolist()

    def _together(self, arrays: Sequence[Array]) -> Ragged:
        """Arrays of one kind behind each other in a new slot."""
        sizes = np.array([-(-array.nbytes // ALIGN) * ALIGN for array in arrays], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        memory = self._slots.take(int(sizes.sum())).memory
        for array, start in zip(arrays, starts.tolist(), strict=True):
            place = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array
        shapes = np.array([array.shape for array in arrays], dtype=np.int64)
        return Ragged(torch.from_numpy(memory), starts, shapes, TYPES[arrays[0].dtype.num])


# NumPy's number of a type -> the type, and torch's
KINDS: dict[int, np.dtype[Any]] = {np.dtype(name).num: np.dtype(name) for name in SENT}
TYPES: dict[int, torch.dtype] = {np.dtype(name).num: getattr(torch, name) for name in SENT}
