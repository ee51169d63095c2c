"""Arrays of many shapes in one flat buffer: the decoded samples of a batch, host or device.

A kernel reads an array by its offset; everybody else takes it out by its place. One buffer crosses
to a device in one copy, whatever it holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .arena import ALIGN

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ragged(Sequence[Tensor]):
    """B arrays of one type and one number of axes; a sequence of tensors that share its memory."""

    flat_N: Tensor  # (N,) uint8: the arrays' bytes, and room between them that nobody reads
    offsets_B: I64  # where in flat_N each array begins, in bytes; on the host
    shapes_BD: I64  # (B, D) of each array; on the host
    dtype: torch.dtype

    @classmethod
    def of(cls, arrays: Sequence[Tensor]) -> "Ragged":
        """Copy arrays of one device, one type and one number of axes behind each other."""
        dtype, shapes = arrays[0].dtype, [array.shape for array in arrays]
        sizes_B = np.array([-(-array.nbytes // ALIGN) * ALIGN for array in arrays], dtype=np.int64)
        offsets_B = np.cumsum(sizes_B) - sizes_B
        flat_N = arrays[0].new_empty(int(sizes_B.sum()), dtype=torch.uint8)
        ragged = cls(flat_N, offsets_B, np.array(shapes, dtype=np.int64), dtype)
        for mine, array in zip(ragged, arrays, strict=True):
            mine.copy_(array)
        return ragged

    @property
    def used(self) -> int:
        """Bytes of the buffer up to the end of the last array."""
        sizes_B = self.shapes_BD.prod(1) * self.dtype.itemsize
        return int((self.offsets_B + sizes_B).max())

    def joined(self) -> Tensor:
        """All elements, array after array, in one gather: a view of each would cost 10 us."""
        counts_B = self.shapes_BD.prod(1)
        begins_B = self.offsets_B // self.dtype.itemsize - (np.cumsum(counts_B) - counts_B)
        return self.elements(np.arange(int(counts_B.sum())) + np.repeat(begins_B, counts_B))

    def elements(self, places: I64 | npt.NDArray[np.int32]) -> Tensor:
        """Gather elements by their places in the buffer, counted in elements: of their shape."""
        whole = len(self.flat_N) // self.dtype.itemsize * self.dtype.itemsize
        there = torch.from_numpy(places).to(self.flat_N.device, non_blocking=True)
        found = self.flat_N[:whole].view(self.dtype).index_select(0, there.flatten())
        return found.view(there.shape)

    def between(self, start: int, end: int) -> "Ragged":
        """The arrays of some places, in the same buffer."""
        part = slice(start, end)
        return Ragged(self.flat_N, self.offsets_B[part], self.shapes_BD[part], self.dtype)

    def on(self, flat_N: Tensor) -> "Ragged":
        """The same arrays in another buffer, a copy of this one."""
        return Ragged(flat_N, self.offsets_B, self.shapes_BD, self.dtype)

    def __len__(self) -> int:
        """How many arrays there are, B."""
        return len(self.offsets_B)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor]:
        """The array in a place, or several; no byte is copied."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        shape = self.shapes_BD[place].tolist()
        start = int(self.offsets_B[place])
        size = int(np.prod(shape)) * self.dtype.itemsize
        return self.flat_N[start : start + size].view(self.dtype).view(shape)

    def __iter__(self) -> Iterator[Tensor]:
        """The arrays one by one."""
        return (self[place] for place in range(len(self)))
