"""What ops on sound are made of: what each makes of the shape of a view, draws and computes.

Letters: R = V * B rows, one for each view of each sample; P columns; T, F as in batch.py.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class SoundShape(NamedTuple):
    """What a view is between two ops: a waveform "T" or a spectrogram "CFT"."""

    axes: str
    sizes: tuple[int, ...]
    rate: int  # samples per second of the recording

    @property
    def steps(self) -> int:
        """How long the last axis is: samples or frames."""
        return self.sizes[-1]

    def wanted(self, axes: str) -> None:
        """Raise a ValueError unless these are the axes."""
        if self.axes != axes:
            kinds = {"T": "waveforms", "CFT": "spectrograms"}
            change = "put it before" if axes == "T" else "put it behind"
            raise ValueError(
                f"is for {kinds[axes]}, and here views are {kinds[self.axes]}; {change} the op "
                "that makes spectrograms (Fbank, MelSpectrogram or WhisperMel)"
            )


class SoundRows(NamedTuple):
    """What an op must know of the views that it gets, beside their numbers."""

    table_RP: Tensor  # float32: its own columns
    real_R: Tensor  # int64: steps of the last axis that are no padding
    before: SoundShape

    def real_steps(self) -> Tensor:
        """Which steps are no padding, (R, steps) bool."""
        steps = torch.arange(self.before.steps, device=self.real_R.device)
        return steps < self.real_R[:, None]


class SoundOp(Protocol):
    """One op behind the crop: frozen settings, a pure draw, and what it computes on the device."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that it draws: columns of the parameter table."""
        ...

    @property
    def numbers(self) -> int:
        """How many uniform numbers it takes for a view of a sample."""
        ...

    def shape(self, before: SoundShape) -> SoundShape:
        """What it makes of views; a ValueError says why they do not suit."""
        ...

    def steps(self, real: I64, before: SoundShape) -> I64:
        """How many steps are no padding behind it, of `real` ones before it."""
        ...

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Its columns of the table, (V, B, P)."""
        ...

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """New views, (R, T) or (R, 1, F, T) float32; those that it gets are its to change."""
        ...


class Plain:
    """An op that draws nothing and leaves the shape as it is; abstract."""

    columns: tuple[str, ...] = ()
    numbers: int = 0

    def shape(self, before: SoundShape) -> SoundShape:
        """The same shape: an op that is plain changes none."""
        return before

    def steps(self, real: I64, before: SoundShape) -> I64:
        """The same numbers of real steps."""
        return real

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """No numbers, (V, B, 0): nothing is random."""
        return np.empty((*real_VB.shape, 0))
