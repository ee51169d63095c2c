"""What the shard format asks of a modality: what a payload is, and what an index says of it.

The format itself knows no modality. A codec measures every payload by up to four numbers, its
**extent** (for pictures: height and width), and marks it with bits of its own, its **flags**. Both
stand in the index; their names stand in the manifest.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import ContractError, SampleError

Extent = tuple[int, ...]  # up to EXTENTS numbers from 0 to 2**32 - 1; all 0: not known
U32 = npt.NDArray[np.uint32]

EXTENTS = 4  # numbers of an extent in an index


@runtime_checkable
class Codec(Protocol):
    """What packing, indexing and verifying know of a modality. Picklable: it goes to workers.

    A subclass says the four abstract members; the rest has the defaults of what is neither
    re-encoded nor marked.
    """

    @property
    @abstractmethod
    def modality(self) -> str:
        """The name of the modality, as recipes write it."""

    @property
    @abstractmethod
    def extensions(self) -> frozenset[str]:
        """Extensions of files that are payloads: lower case, without dot."""

    @property
    @abstractmethod
    def extents(self) -> tuple[str, ...]:
        """Names of the numbers of an extent, in their order; at most four."""

    @abstractmethod
    def inspect(self, data: bytes) -> Extent:
        """Decode everything and return the extent that was found; SampleError with the reason."""

    @property
    def flag_bits(self) -> Mapping[str, int]:
        """Names of the bits that `flags` may set, each with its value (1, 2, 4 ...)."""
        return MappingProxyType({})

    @property
    def refused_options(self) -> Mapping[str, str]:
        """Options of packing that make no sense, as they are typed, each with what to do instead.

        Known: `--resize`, `--dedupe near` and `--fps`.
        """
        return {
            "--resize": "leave it out; they are not resized",
            "--dedupe near": "use --dedupe exact; they have no hash",
            "--fps": "leave it out; they are no pictures in a row",
        }

    @property
    def shrunk_extension(self) -> str:
        """The extension of what `shrink` makes."""
        return min(self.extensions)

    @property
    def version(self) -> str:
        """Names the packages whose version may change a byte of what is packed."""
        return f"{self.modality} 1"

    @property
    def measure(self) -> str:
        """What histograms count samples by, with its unit: `shorter side, px`."""
        return self.extents[0]

    @property
    def bins(self) -> tuple[int, ...]:
        """The ascending edges of those histograms, in that unit."""
        return (10, 100, 1_000, 10_000, 100_000, 1_000_000)

    def measured(self, extents: U32) -> npt.NDArray[np.int64]:
        """That measure of every row of an (n, 4) array of extents; 0 where it is not known."""
        return extents[:, 0].astype(np.int64)

    def extension(self, data: bytes) -> str:
        """The extension that the content deserves, whatever its name; SampleError."""
        return min(self.extensions)

    def extent(self, data: bytes) -> Extent:
        """The extent by the first bytes alone: nothing is decoded; SampleError with the reason."""
        return self.inspect(data)

    def flags(self, data: bytes) -> int:
        """The bits that hold for a payload, by its first bytes; never an error."""
        return 0

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Decode everything and encode it anew, no larger than `side`.

        Raises:
            SampleError: the payload does not decode; here, as no sample of the modality is resized.
        """
        raise SampleError(f"samples of {self.modality} are not resized; leave --resize out")

    def perceptual_hash(self, data: bytes) -> int:
        """64 bits, of which similar payloads share most.

        Raises:
            SampleError: the payload does not decode; here, as the modality has no such hash.
        """
        raise SampleError(f"samples of {self.modality} have no hash; use --dedupe exact")


def payload_extent(codec: Codec, data: bytes, *, decode: bool) -> Extent:
    """The extent of a payload, by decoding all of it or by its first bytes.

    Raises:
        SampleError: the codec refuses the payload.
        ContractError: what the codec returns is not what its `extents` name.
    """
    found = codec.inspect(data) if decode else codec.extent(data)
    names, whole = (
        codec.extents,
        isinstance(found, tuple) and all(isinstance(n, int) for n in found),
    )
    if not whole or len(found) != len(names) or not all(0 <= n < 2**32 for n in found):
        raise ContractError(
            f"{type(codec).__module__}:{type(codec).__qualname__}: "
            f"{'inspect' if decode else 'extent'}() returned {found!r}; return a tuple of whole "
            f"numbers: {', '.join(names)}"
        )
    return found


def histogram(codec: Codec, extents: U32) -> dict[str, int]:
    """Name of a bin of the codec's measure -> samples in it, in order; empty bins are left out."""
    measured, edges = codec.measured(extents), codec.bins
    place = np.where(measured == 0, 0, 1 + np.digitize(measured, edges))
    found = np.bincount(place, minlength=len(edges) + 2).tolist()
    return {name: n for name, n in zip(bin_names(edges), found, strict=True) if n}


def bin_names(edges: Sequence[int]) -> list[str]:
    """`unknown`, `under 64`, `64 to 127` ... `2048 and more`."""
    between = [f"{low} to {high - 1}" for low, high in pairwise(edges)]
    return ["unknown", f"under {edges[0]}", *between, f"{edges[-1]} and more"]
