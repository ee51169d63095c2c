"""What the parts of a modality hand to each other: decoded samples, tables, finished views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # decoders are imported by workers, which must not wait for torch
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    I64 = npt.NDArray[np.int64]


class Raw(NamedTuple):
    """A decoded sample, before views are made of it.

    data: one array of any shape and type on the host, or a tensor on the device that decoded it.
    extent: how large the sample is, for which its draws were made: an image's height and width.
        `data` may be smaller where instructions said so.
    """

    data: npt.NDArray[Any] | Tensor
    extent: tuple[int, ...]


class Tables(NamedTuple):
    """All that was decided for the samples of a batch; NumPy, on the host."""

    params: dict[str, npt.NDArray[np.float32]]  # view group -> (V, B, P)
    masks: dict[str, npt.NDArray[np.bool_]]  # mask -> (M, B, N), True = hidden
    targets: dict[str, npt.NDArray[Any]]  # task -> (count, B, ...) as the task draws it
    extents: I64  # (B, E), for which the parameters were drawn
    asked: Mapping[str, I64] = {}  # task -> (count, B): how much of a sample it asks for at most
    length: int = 0  # steps that views of the batch are cut to, all alike; 0: they are not cut

    @property
    def hidden(self) -> dict[str, I64]:
        """How many patches each mask hides, and how much each task asks for, as counted here."""
        return {**{name: mask.sum(-1) for name, mask in self.masks.items()}, **self.asked}


@dataclass(frozen=True, slots=True)
class Partners:
    """What a modality asks for beside each sample: `count` others, by its key (stream/partners.py).

    They are decoded as samples are. `Maker.make` gets their arrays behind those of the B samples,
    the first partner of each, the second of each, and so on, B (1 + count) in all, and
    `Decider.decide` their extents likewise; epochs, uids and labels are those of the samples.

    instructions: `(epochs, uids, extents, turns)` -> what workers must know of partners, as wide as
    `Decider.instructions`; by name, (B,) and (B, E) as there. `uids` are the keys of those that
    they are for; `turns`: which of its partners each is, from 0.
    """

    count: int
    instructions: Callable[..., npt.NDArray[np.int64]]


class Made(NamedTuple):
    """What a maker makes: fields of `batch.Batch`, on the device."""

    views: dict[str, Tensor]
    targets: dict[str, Tensor]
    lengths: dict[str, Tensor]
    segments: dict[str, Tensor]


def class_of(author: object) -> str:
    """The class of an instance, as a recipe would name it."""
    return f"{type(author).__module__}:{type(author).__qualname__}"
