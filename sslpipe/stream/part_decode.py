"""How a part of a recipe decodes samples, in a worker; what a decoder returns is looked at here."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.buffers import Memory
from ..errors import ContractError, SampleError
from .reader import Sample
from .tasks import SENT

Array = npt.NDArray[Any]
MOST_EXTENT = 2**32 - 1  # as in an index
WHOLE = int, np.integer
TYPES = frozenset(map(np.dtype, SENT))  # the name of a type takes 5 us


class Decoder(Protocol):
    """Bytes to an array, as `modalities.Decode` says."""

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None
    ) -> Any: ...

    def extent(self, sample: Sample) -> Any:
        """By a quick look, where no index says it."""
        ...


class PartDecode(NamedTuple):
    """How one part of a recipe decodes a sample.

    first: as the device wants it; alone: whole, on the CPU; the same but where a device decodes.
    extensions: of the member that is the part's payload; None: it is the sample's.
    """

    first: Decoder
    alone: Decoder
    extensions: Collection[str] | None = None

    def of(self, sample: Sample) -> Sample:
        """A sample as this part sees it.

        Raises:
            SampleError: it has no member of the part's modality.
        """
        if self.extensions is None:
            return sample
        found = sorted(sample.members, key=lambda ext: "." in ext)  # .json before .name.json
        for ext in found:
            if ext.rpartition(".")[2] in self.extensions:
                return Sample(sample.uid, sample.key, sample.label, sample.members[ext])
        wanted = ", .".join(sorted(self.extensions))
        raise SampleError(f"has no member .{wanted}; put one beside it, or leave the sample out")


def measured_extent(part: PartDecode, sample: Sample) -> Sequence[int]:
    """The extent of a sample's payload, which the part that decodes it looks up; else none.

    Raises:
        SampleError: the sample is bad.
        ContractError: the decoder returns something else.
    """
    if part.extensions is not None:
        return ()
    extent: Sequence[int] = part.alone.extent(sample)
    fits = holds_numbers(extent) and len(extent) <= 4
    if not fits or not all(0 <= n <= MOST_EXTENT for n in extent):
        raise ContractError(
            f"{author_of(part.alone)}: {sample.key}: extent() returned {extent!r}; return a tuple "
            "of up to four whole numbers from 0 to 2^32 - 1, as the codec names them"
        )
    return extent


def decoded(
    decode: Decoder, sample: Sample, instructions: Sequence[int], memory: Memory | None
) -> tuple[Array, Sequence[int]]:
    """What a decoder returns: an array that can be sent, and the extent of the sample.

    Raises:
        SampleError: the sample is bad.
        ContractError: the decoder returns something else.
    """
    made = decode(sample, instructions, memory)
    data, extent = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    sent = isinstance(data, np.ndarray) and data.dtype in TYPES and data.ndim <= 4
    if not sent or not holds_numbers(extent) or not 0 < len(extent) <= 4:
        kind = type(data).__name__
        if isinstance(data, np.ndarray):
            kind = f"{data.dtype} of {data.ndim} axes and the extent {extent!r}"
        raise ContractError(
            f"{author_of(decode)}: {sample.key}: returned {kind}; "
            f"return Raw(array, extent): up to four axes of {', '.join(SENT)}, and one to four "
            "whole numbers, as the codec names them"
        )
    return data, extent


def holds_numbers(extent: object) -> bool:
    """Whether it is a tuple of whole numbers."""
    return isinstance(extent, tuple) and all([isinstance(n, WHOLE) for n in extent])  # noqa: C419 - a generator takes twice as long


def author_of(decode: Decoder) -> str:
    """The class of a decoder, by which a user finds it."""
    return f"{type(decode).__module__}:{type(decode).__qualname__}"
