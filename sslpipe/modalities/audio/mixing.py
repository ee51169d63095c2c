"""Ops that mix another recording into a view: the partner that the stream draws by its key.

A partner goes through the ops before the mixing one as the view does; its crop is drawn by the key
of the sample that it is for. Each view of a sample has a partner of its own, but with
`draws: shared`: one that all views heard would make them alike in what is not the sample.
Letters: V views, B samples, R = V * B.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .op import F64, I64, SoundRows, SoundShape
from .spectrograms import EPS


@runtime_checkable
class PartnerOp(Protocol):
    """An op that needs a partner of each view."""

    def mixed(self, views: Tensor, others: Tensor, rows: SoundRows) -> Tensor:
        """New views; others: the partners', of the same shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class DrawnShare:
    """An op that draws how much of the partner is mixed in, uniformly up to `ratio`; abstract."""

    ratio: float = 0.4
    columns = ("share",)
    numbers = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio = {self.ratio} must lie in (0, 1]")

    def steps(self, real: I64, before: SoundShape) -> I64:
        """The same: a partner is heard where there is sound already."""
        return real

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """The share of the partner, (V, B, 1)."""
        return self.ratio * uniforms_VBN

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Leave the views alone: here they have no partner."""
        return views


@dataclass(frozen=True, kw_only=True)
class Mix(DrawnShare):
    """(1 - a) x + a z of waveforms, a uniform up to `ratio`; mixup (arXiv:1710.09412) one-sided."""

    def shape(self, before: SoundShape) -> SoundShape:
        """Waveforms stay as long as they are."""
        before.wanted("T")
        return before

    def mixed(self, views: Tensor, others: Tensor, rows: SoundRows) -> Tensor:
        """The weighted sum where the view is no padding."""
        share_R1 = rows.table_RP * rows.real_steps()
        return torch.lerp(views, others, share_R1)


@dataclass(frozen=True, kw_only=True)
class MixLog(DrawnShare):
    """log((1 - a) exp(x) + a exp(z)) of spectrograms: BYOL-A's mixup (arXiv:2103.06695, 3.2).

    nttcslab/byol-a, augmentations.py, MixupBYOLA. Deviation: the partner is another sample of the
    shard, drawn by key; officially one of the last 2,048 that a worker process saw.
    """

    def shape(self, before: SoundShape) -> SoundShape:
        """Spectrograms stay as large as they are."""
        before.wanted("CFT")
        return before

    def mixed(self, views: Tensor, others: Tensor, rows: SoundRows) -> Tensor:
        """The log of the weighted sum of energies where the view is no padding."""
        share = rows.table_RP[:, :, None, None]
        mixed = (torch.lerp(views.exp(), others.exp(), share) + EPS).log()
        return torch.where(rows.real_steps()[:, None, None], mixed, views)
