"""Tasks on sound: tables, no samples. wav2vec 2.0's distractors, and HuBERT's labels of frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ...batch import MaskSpec, TargetSpec
from ...errors import ShardError
from ...philox import MASK
from ...rng import U64, Keys
from .crop import SoundCrop
from .frame_labels import LabelledFrames, read_frame_labels

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
AT_ONCE = 1 << 14  # blocks of words that are drawn at once: some samples', in a core's cache
HALF, LOW = np.uint64(32), np.uint64(MASK)  # bits of a word, and all of them set
MOST = 16_384  # hidden steps, of which a word can choose two: 7 minutes of wav2vec 2.0's frames


class Cropped(NamedTuple):
    """Where the views of a group lie in their recordings, by what was drawn for them."""

    crop: SoundCrop
    words_VB: I64
    extents: I64  # (B, 3): frames, rate and channels of the recordings

    @property
    def start_VB(self) -> I64:
        """The samples of the recordings at which the views begin, at their own rates."""
        start: I64 = self.crop.start(self.words_VB, self.extents[:, 0], self.extents[:, 1])
        return start


class SoundTask(Protocol):
    """Decides a target from the keys of samples, and from where their views begin."""

    @property
    def files(self) -> str:
        """What files that it reads hash to; "": none."""
        ...

    def spec(self, view: str, crop: SoundCrop, masks: Mapping[str, MaskSpec]) -> TargetSpec:
        """What it asks for; a ValueError says why crop or masks of the recipe do not suit."""
        ...

    def draw(
        self, keys: Keys, stream: str, spec: TargetSpec, views: Cropped, masks: Mapping[str, Bools]
    ) -> I64:
        """The target, (count, B, *shape); masks: those of the batch, (M, B, N)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """For each hidden step, `count` others of the same utterance, with repeats (wav2vec 2.0, 3.2).

    The target is (1, B, M, K) int64 in [0, M): which of the M hidden steps of the mask, in their
    order; never the step itself. Where masks hide different numbers, of m hidden steps the first m
    rows count, and lie in [0, m). fairseq, models/wav2vec/wav2vec2.py, sample_negatives. Keyed by
    sample: officially the global generator of the process draws them.
    """

    count: int = 100
    mask: str = "spans"
    files: ClassVar = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}; a step has one distractor or more")

    def spec(self, view: str, crop: SoundCrop, masks: Mapping[str, MaskSpec]) -> TargetSpec:
        """Say the shape of the ids of distractors: so many for each hidden step."""
        if self.mask not in masks:
            raise ValueError(
                f"chooses among the steps that masks.{self.mask} hides, which this recipe has not; "
                "add it, or set mask to another one"
            )
        hidden = masks[self.mask].hidden or masks[self.mask].most
        if hidden is None or masks[self.mask].count != 1 or masks[self.mask].view != view:
            raise ValueError(
                f"needs one mask over {view!r} that hides the same number of steps in all samples; "
                f"masks.{self.mask} does not: set its view and count, and a sampler such as spans"
            )
        if hidden < 2:
            raise ValueError(f"masks.{self.mask} hides {hidden} step; others are needed, too")
        if hidden > MOST:
            raise ValueError(
                f"masks.{self.mask} hides {hidden:,} steps; {MOST:,} at most, by 32 bits"
            )
        return TargetSpec(view, 1, hidden, (hidden, self.count))

    def draw(
        self, keys: Keys, stream: str, spec: TargetSpec, views: Cropped, masks: Mapping[str, Bools]
    ) -> I64:
        """Uniform over the others: one number less, moved past the step itself.

        A random word makes two of them, the first digits of a fraction in base M - 1, as all that
        is drawn here costs more than the rest of a batch; of 400 steps, one is more likely than
        another by 1 part in 26,000 at most.
        """
        steps, count = spec.shape
        blocks = -(-steps * count // 8)
        base_B1 = np.maximum(masks[self.mask][0].sum(-1, keepdims=True) - 1, 0).astype(np.uint64)
        found = np.empty((len(base_B1), blocks, 4, 2), dtype=np.int64)
        step = max(1, AT_ONCE // blocks)
        for at in (slice(start, start + step) for start in range(0, len(found), step)):
            for word, words_VBN in enumerate(keys.at(at).four_words(stream, blocks)):
                digits(words_VBN[0], base_B1[at], found[at, :, word].view(np.uint64))
        other = found.reshape(1, len(base_B1), -1)[..., : steps * count]
        other = other.reshape(1, -1, steps, count)
        other += other >= np.arange(steps)[:, None]
        return other


def digits(words_BN: U64, base_B1: U64, out_BN2: U64) -> None:
    """Write the first two digits in a base of fractions, words by 2**32; the words are spoilt."""
    words_BN *= base_B1
    np.right_shift(words_BN, HALF, out=out_BN2[..., 0])
    words_BN &= LOW
    words_BN *= base_B1
    np.right_shift(words_BN, HALF, out=out_BN2[..., 1])


@dataclass(frozen=True, kw_only=True)
class FrameLabels:
    """The label of each frame of view 0, out of a file that `sslpipe frame-labels` made.

    HuBERT's targets (arXiv:2106.07447, 3.1). The target is (1, B, N) int64, N the frames of the
    mask; IGNORED behind the last whole frame of a recording. Crops begin where frames do (`align`),
    so a label is of exactly the samples that its frame sees.
    """

    file: str
    mask: str = "spans"

    @property
    def labels(self) -> LabelledFrames:
        """The labels of frames that stand in the file."""
        return read_frame_labels(self.file)

    @property
    def files(self) -> str:
        """The digest of the file that holds the labels."""
        return f"frame labels {self.labels.digest}"

    def spec(self, view: str, crop: SoundCrop, masks: Mapping[str, MaskSpec]) -> TargetSpec:
        """Classes of the frames of a mask."""
        try:
            grid = self.labels.grid
        except ShardError as error:
            raise ValueError(str(error)) from error
        if self.mask not in masks or masks[self.mask].view != view:
            raise ValueError(
                f"labels the frames that a mask covers, and masks.{self.mask} is none over "
                f"{view!r}; add it, or set mask to another one"
            )
        mask = masks[self.mask]
        if (grid.rate, grid.shift) != (crop.rate, mask.patch[0]):
            raise ValueError(
                f"{self.file} has a label every {grid.shift} samples at {grid.rate:,} Hz, and "
                f"masks.{self.mask} a frame every {mask.patch[0]} at {crop.rate:,}; make labels "
                f"with --rate {crop.rate} --shift {mask.patch[0]}"
            )
        if crop.align % grid.shift and crop.place != "start":
            raise ValueError(
                f"views begin anywhere between two frames; write align: {grid.shift} in Crop"
            )
        return TargetSpec(view, 1, grid.classes, mask.grid)

    def draw(
        self, keys: Keys, stream: str, spec: TargetSpec, views: Cropped, masks: Mapping[str, Bools]
    ) -> I64:
        """Look up the label of each frame of a view, (1, B, frames); nothing is random."""
        grid, rate_B = self.labels.grid, views.extents[:, 1]
        first_B = views.start_VB[0] * views.crop.rate // np.maximum(rate_B, 1) // grid.shift
        frames = masks[self.mask].shape[-1]  # fewer of a batch of short recordings
        return self.labels.at(keys.uids, first_B, frames)[None]


TASKS: Mapping[str, type[SoundTask]] = MappingProxyType(
    {"distractors": Distractors, "frame_labels": FrameLabels}
)
