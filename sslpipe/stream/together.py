"""Decoding of a whole share at once, for decoders that are quick with lists and fail as a whole.

It does not know what a decoded sample is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .loader import Loader, Share

T = TypeVar("T")


class Together(Generic[T]):
    """`together(positions)` -> Share, as a Loader; of one thread.

    first: reads and checks the samples, and prepares them.
    finish: the prepared samples of a share, decoded; None for what it could not do.
    alone: loads those again by itself, so that its policy decides which samples are bad.
    """

    def __init__(
        self,
        first: Loader[Any],
        finish: Callable[[Sequence[Any]], Sequence[T | None]],
        alone: Loader[T],
    ) -> None:
        self._first, self._finish, self._alone = first, finish, alone

    def __call__(self, positions: npt.NDArray[np.int64]) -> Share[T]:
        """Load the samples at these positions of the stream.

        Raises:
            SampleError, ShardError: as Loader.
        """
        share = self._first(positions)
        made = self._finish([item.decoded for item in share.loaded])
        missed = [i for i, decoded in enumerate(made) if decoded is None]
        again = iter(self._alone(positions[missed]).loaded if missed else ())
        loaded = [
            next(again) if decoded is None else replace(item, decoded=decoded)
            for item, decoded in zip(share.loaded, made, strict=True)
        ]
        return Share(share.epochs, loaded)
