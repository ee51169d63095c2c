"""Decoding of a whole share at once, for decoders that are quick with lists and fail as a whole.

It does not know what a decoded sample is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from .packed import Packed
from .source import Decode, Share

T = TypeVar("T")


class BatchDecode(Generic[T]):
    """`together(step)` -> Share; of one thread.

    first: prepares one sample, in threads.
    finish: the prepared samples of a share, decoded; None for what it could not do.
    alone: loads those again by itself, so that the source's policy decides which samples are bad.
    """

    def __init__(
        self,
        source: Packed,
        *,
        first: Decode[Any],
        finish: Callable[[Sequence[Any]], Sequence[T | None]],
        alone: Decode[T],
    ) -> None:
        self._source, self._first, self._finish, self._alone = source, first, finish, alone

    def __call__(self, step: int) -> Share[T]:
        """This rank's samples of global batch `step`.

        Raises:
            SampleError, ShardError: as Packed.
        """
        share = self._source.share(step, self._first)
        loaded, valid = list(share.loaded), share.valid.copy()
        shown = [place for place, item in enumerate(loaded) if not item.bad]
        missed = []
        for place, decoded in zip(
            shown, self._finish([loaded[place].decoded for place in shown]), strict=True
        ):
            loaded[place] = replace(loaded[place], decoded=decoded)
            if decoded is None:
                missed.append(place)
        if missed:
            again = self._source.load(self._source.picks(step).at(missed), self._alone)
            for place, item in zip(missed, again.loaded, strict=True):
                loaded[place] = replace(item, faults=(*loaded[place].faults, *item.faults))
            valid[missed] = again.valid
        return Share(loaded, valid)
