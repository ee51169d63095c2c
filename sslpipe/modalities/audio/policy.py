"""The ops of a view group, checked, and their table of parameters.

A table is a pure function of (seed, epoch, uid, view) and of the extent that the index tells.
Letters: V views, B samples, P columns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from ...batch import ViewSpec
from ...errors import RecipeError
from ...recipe import Entry
from ...recipe.names import call, choose
from ...recipe.schema import ViewSection
from ...rng import Keys
from .crop import SoundCrop
from .fbank import Fbank, MelSpectrogram, WhisperMel
from .levels import FilterAugment, LinearFader, RemoveBandMean
from .mfcc import MFCC
from .mixing import Mix, MixLog, PartnerOp
from .op import I64, SoundOp, SoundShape
from .spectrograms import NormalizeSound, PadFrames, RandomResizeCrop, SpecAugment
from .waves import Gain, RemoveMean, Standardize

CROP = "Crop"
OPS: Mapping[str, type[SoundOp]] = MappingProxyType(
    {
        "Fbank": Fbank,
        "FilterAugment": FilterAugment,
        "Gain": Gain,
        "LinearFader": LinearFader,
        "MFCC": MFCC,
        "MelSpectrogram": MelSpectrogram,
        "Mix": Mix,
        "MixLog": MixLog,
        "Normalize": NormalizeSound,
        "PadFrames": PadFrames,
        "RandomResizeCrop": RandomResizeCrop,
        "RemoveBandMean": RemoveBandMean,
        "RemoveMean": RemoveMean,
        "SpecAugment": SpecAugment,
        "Standardize": Standardize,
        "WhisperMel": WhisperMel,
    }
)
HIGH = 65_536  # a start is high * HIGH + low: float32 has room for 2**24 alone
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


@dataclass(frozen=True, slots=True)
class SoundStep:
    """One op of a policy: its random stream, what it gets, and where its columns begin."""

    op: SoundOp
    name: str  # with #2, #3 where an op stands again
    stream: str
    before: SoundShape
    start: int

    @property
    def columns(self) -> slice:
        """Which of the P columns of the table are this op's."""
        return slice(self.start, self.start + len(self.op.columns))


@dataclass(frozen=True, slots=True)
class SoundPolicy:
    """The crop of one view group and its ops, in order."""

    group: str
    count: int
    shared: bool  # all views draw as view 0 does
    crop: SoundCrop
    steps: tuple[SoundStep, ...]
    after: SoundShape  # of the finished views
    dtype: torch.dtype

    @property
    def mixes(self) -> bool:
        """Whether it wants a partner of each sample."""
        return any(isinstance(step.op, PartnerOp) for step in self.steps)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the P columns of the parameter table: the crop's, then those of each op."""
        own = (f"{step.name}.{column}" for step in self.steps for column in step.op.columns)
        return (f"{CROP}.start_{HIGH}", f"{CROP}.start", *own)

    @property
    def spec(self) -> ViewSpec:
        """What the group looks like in a batch."""
        return ViewSpec(
            self.group, self.count, *self.after[:2], dtype=self.dtype, columns=self.columns
        )

    @property
    def summary(self) -> str:
        """One line: how many views of which size, of how much sound, and the ops."""
        crop, names = self.crop, ", ".join([CROP, *(step.name for step in self.steps)])
        sizes = " x ".join(f"{size:,}" for size in self.after.sizes)
        return (
            f"{self.count} x {sizes}, of {crop.size / crop.rate:g} s at {crop.rate:,} Hz: {names}"
        )

    def keys(self, *, seed: int, epochs: I64, uids: I64) -> Keys:
        """The drawing identity of a batch for the group."""
        views = np.arange(self.count, dtype=np.int64)
        return Keys(seed, epochs, uids, views * 0 if self.shared else views)

    def words(self, keys: Keys, of: str = "") -> I64:
        """What decides where each view begins, (V, B): a random u32; of: "/partner", or its own."""
        if self.crop.place != "random":
            return np.zeros((len(keys.views), len(keys.uids)), dtype=np.int64)
        return keys.words(f"views/{self.group}/{CROP}{of}", 1)[..., 0].astype(np.int64)

    def real_steps(self, extents: I64) -> list[I64]:
        """How many steps are no padding, (B,), before each op and at the end; of (B, 3) extents."""
        real = [self.crop.real(extents[:, 0], extents[:, 1])]
        for step in self.steps:
            real.append(step.op.steps(real[-1], step.before))
        return real

    def draw(self, keys: Keys, extents: I64, words_VB: I64) -> npt.NDArray[np.float32]:
        """The (V, B, P) table, of (B, 3) extents: frames, rate and channels.

        words_VB: what `words` draws with these keys.
        """
        counts = {step.stream: step.op.numbers for step in self.steps if step.op.numbers}
        drawn, real = keys.together(counts), self.real_steps(extents)
        shape = len(keys.views), len(keys.uids)
        start_VB = self.crop.start(words_VB, extents[:, 0], extents[:, 1])
        table = np.empty((*shape, len(self.columns)), dtype=np.float32)
        table[..., 0], table[..., 1] = np.divmod(start_VB, HIGH)
        for step, before in zip(self.steps, real, strict=False):
            uniforms = drawn.get(step.stream, np.empty((*shape, 0)))
            real_VB = np.broadcast_to(before, shape)
            table[..., step.columns] = step.op.draw(uniforms, step.before, real_VB)
        return table


def sound_policy(group: str, view: ViewSection) -> SoundPolicy:
    """Build and check the ops of a view group.

    Raises:
        RecipeError: unknown op or setting, no crop first, or an op that does not suit the views.
    """
    crop = crop_of(group, view.ops)
    shape = SoundShape("T", (crop.size,), crop.rate)
    steps: list[SoundStep] = []
    seen: Counter[str] = Counter()
    start = 2
    for entry in view.ops[1:]:
        op: SoundOp = call(choose(entry, {**OPS, CROP: SoundCrop}, "op of audio"), entry)
        if isinstance(op, SoundCrop):
            raise RecipeError(f"{entry.where}: Crop stands first, and once; take this one out")
        seen[entry.name] += 1
        name = entry.name if seen[entry.name] == 1 else f"{entry.name}#{seen[entry.name]}"
        steps.append(SoundStep(op, name, f"views/{group}/{name}", shape, start))
        start += len(op.columns)
        try:
            shape = op.shape(shape)
        except ValueError as error:
            raise RecipeError(entry.told(str(error))) from error
    check_mixing(steps, view.ops[1:])
    dtype = DTYPES[view.dtype]
    return SoundPolicy(group, view.count, view.draws == "shared", crop, tuple(steps), shape, dtype)


def check_mixing(steps: Sequence[SoundStep], entries: Sequence[Entry]) -> None:
    """Raise a RecipeError unless at most one op mixes, and none before it draws anything."""
    places = [place for place, step in enumerate(steps) if isinstance(step.op, PartnerOp)]
    for place in places[1:]:
        raise RecipeError(
            f"{entries[place].where}: {entries[place].name}: a group mixes its partner in once; "
            "take one of the two out"
        )
    drawing = [step.name for step in steps[: places[0]] if step.op.numbers] if places else []
    if drawing:
        entry = entries[places[0]]
        raise RecipeError(
            f"{entry.where}: {entry.name} stands behind {drawing[0]}, which draws for the view and "
            f"not for its partner; put {entry.name} before it"
        )


def crop_of(group: str, entries: Sequence[Entry]) -> SoundCrop:
    """The first op of a group.

    Raises:
        RecipeError: it is none, or its settings are wrong.
    """
    if not entries or entries[0].name != CROP:
        where = entries[0].where if entries else f"views.{group}.ops"
        raise RecipeError(
            f"{where}: the first op of views.{group} must be Crop, which says how long views are; "
            "write ops: [Crop: {seconds: 1.0, rate: 16000}, ...]"
        )
    made: SoundCrop = call(SoundCrop, entries[0])
    return made
