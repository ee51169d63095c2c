"""What every op is made of: what it draws from, what it promises, and the checks that they share.

Letters: V views, B samples, P columns, A attempts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....rng import Keys, uniforms

T = TypeVar("T")
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Pair = tuple[float, float]
PerView: TypeAlias = T | tuple[T, ...]  # one setting for all views, or a list: one per view
SIDE = 65_535  # pixels of the longest side that a JPEG can have
UNBOUNDED = 1e6  # of factors: Kornia wants finite ones
ATTEMPTS = 10  # of torchvision's boxes before they fall back


@dataclass(frozen=True, slots=True)
class Draw:
    """What an op draws from: the keyed uniforms of its own stream, and the sizes of pictures."""

    keys: Keys
    stream: str
    sizes_B2: I64  # height, width of the canvases in pixels
    view: tuple[int, int]  # height, width of the views in pixels
    drawn: F64 | None = None  # the first uniforms of the stream, drawn with those of other ops

    def uniforms(self, count: int) -> F64:
        """(V, B, count) float64 in [0, 1)."""
        if self.drawn is not None and count <= self.drawn.shape[-1]:
            return self.drawn[..., :count]
        return self.keys.uniforms(self.stream, count)

    def blocks(self, numbers: Sequence[int]) -> F64:
        """(V, B, 4 n) float64 in [0, 1): some blocks of four of the stream, which the op names."""
        if self.drawn is not None:
            return self.drawn
        return self.keys.blocks({self.stream: numbers})[self.stream]

    def of_some(self, count: int, v: I64, b: I64, *, first: int) -> F64:
        """(m, count) uniforms of some views `v` of samples `b`, from block `first` on."""
        keys = self.keys
        return uniforms(
            count, seed=keys.seed, epoch=keys.epochs[b], stream=self.stream, ids=keys.uids[b],
            view=keys.views[v], first=first,
        )  # fmt: skip

    def common(self, count: int) -> F64:
        """(V, B, count) alike for all samples of an epoch and view: those of a sample with id 0."""
        views, samples = len(self.keys.views), len(self.keys.uids)
        shared = uniforms(
            count,
            seed=self.keys.seed,
            epoch=self.keys.epochs,
            stream=self.stream,
            ids=np.int64(0),
            view=self.keys.views[:, None],
        )
        return np.broadcast_to(shared, (views, samples, count))

    def gates(self, u_VB: F64, p: PerView[float]) -> F64:
        """(V, B) of 0.0 and 1.0: u < p."""
        return (u_VB < np.reshape(p, (-1, 1))).astype(np.float64)

    def between(self, u: F64, bounds: npt.ArrayLike) -> F64:
        """Uniforms (V, B, ...) in [0, 1) stretched to a range, or to the range of their view."""
        ends_V2 = np.asarray(bounds, dtype=np.float64).reshape(-1, 2)  # V may be 1
        low, high = ends_V2.T.reshape(2, -1, *[1] * (u.ndim - 1))
        stretched: F64 = low + (high - low) * u
        return stretched

    def proposals(
        self,
        u_VBP: F64,
        scale: PerView[Pair],
        ratio: PerView[Pair],
        area_B: I64,
        limits_B2: I64,
        rest: Callable[[I64, I64], F64] | None = None,
    ) -> "Proposals":
        """The boxes that two uniforms for each attempt propose; `ratio` is of long / across.

        rest: (m, P) uniforms of more attempts at views `v` of samples `b` that need them.
        """
        views = len(self.keys.views)
        u_VBA2 = u_VBP.reshape(*u_VBP.shape[:2], -1, 2)
        scale_V2, log_V2 = (np.broadcast_to(each, (views, 2)) for each in (scale, np.log(ratio)))
        return Proposals(u_VBA2, scale_V2, log_V2, area_B, limits_B2, rest)

    def whole(self, u: F64, bounds: PerView[tuple[int, int]]) -> F64:
        """Uniforms (V, B) made whole numbers from low to high, both included, equally likely."""
        return np.floor(self.between(u, np.add(bounds, (0, 1))))


class Op(Protocol):
    """One augmentation: frozen settings, and a pure draw."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what it draws; "on", its gate, is the first of an op that has one."""
        ...

    @property
    def reference_only(self) -> bool:
        """Only the kornia executor has its pixels."""
        ...

    def draw(self, source: Draw) -> F64:
        """Draw the op's columns of the table, (V, B, P)."""
        ...


@runtime_checkable
class OwnPixels(Protocol):
    """An op that brings its own pixels: any Kornia class, or a user's op. Reference executor only.

    A user's op is a frozen dataclass with keyword-only settings, named `package.module:Class`.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what it draws, as of an Op."""
        ...

    def draw(self, source: Draw) -> F64:
        """Draw its columns, (V, B, P), as an Op does."""
        ...

    def apply(self, images_RCHW: Tensor, rows_RP: F32) -> Tensor:
        """New images, float in [0, 1] before Normalize, given the rows of the table."""
        ...


@runtime_checkable
class Particular(Protocol):
    """An op that does not suit views of every size."""

    def check_view(self, height: int, width: int) -> None:
        """Raise ValueError if views of this size do not suit it."""
        ...


@runtime_checkable
class Counted(Protocol):
    """An op that says how many uniforms it asks for, so that those of many ops are drawn at once.

    It saves a call; what is drawn is the same.
    """

    @property
    def numbers(self) -> int:
        """How many `source.uniforms` it wants of every view and sample."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """The same of an op that does not need all of the first ones: it asks for `source.blocks`."""

    @property
    def blocks(self) -> Sequence[int]:
        """Which blocks of four uniforms it wants of every view and sample."""
        ...


def uniform_blocks(op: object) -> Sequence[int]:
    """The blocks of four uniforms that are drawn for an op together with those of others."""
    if isinstance(op, InBlocks):
        return op.blocks
    return range(-(-op.numbers // 4)) if isinstance(op, Counted) else ()


@dataclass(frozen=True, kw_only=True)
class Gated:
    """An op that draws nothing but its gate; abstract."""

    p: PerView[float]
    columns: ClassVar = ("on",)
    numbers: ClassVar = 1
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        probabilities(self.p)

    def draw(self, source: Draw) -> F64:
        """Draw whether the op is on, (V, B, 1)."""
        return source.gates(source.uniforms(1)[..., 0], self.p)[..., None]


@dataclass(frozen=True, slots=True)
class Proposals:
    """Boxes as torchvision's `get_params` proposes them, A attempts to a view and sample.

    u_VBA2: uniforms, for the area and for log(long / across), which lie in `scale` and `log_ratio`.
    area_B: of what boxes are cut from. limits_B2: the greatest `long` and `across`. rest: draws
    those of more attempts for some.
    """

    u_VBA2: F64
    scale_V2: F64
    log_ratio_V2: F64
    area_B: I64
    limits_B2: I64
    rest: Callable[[I64, I64], F64] | None = None

    def first_fitting(self) -> tuple[F64, F64, Bools]:
        """The first that fits of each: `long`, `across` and whether one fits, (V, B) each."""
        views, samples = self.u_VBA2.shape[:2]
        v, b = np.ogrid[:views, :samples]
        found = self.propose(v, b, self.u_VBA2[:, :, 0])
        # most first ones fit: the others are proposed only where they are needed
        v, b = np.nonzero(~found[2])
        if len(v):
            self._again(found, v, b, self.u_VBA2[v, b, 1:])
            v, b = np.nonzero(~found[2])
        if len(v) and self.rest:
            self._again(found, v, b, self.rest(v, b).reshape(len(v), -1, 2))
        return found

    def _again(self, found: tuple[F64, F64, Bools], v: I64, b: I64, u_MA2: F64) -> None:
        """Put the first fitting of more attempts where none was found."""
        more = self.propose(v[:, None], b[:, None], u_MA2)
        first, every = more[2].argmax(-1), np.arange(len(v))
        for each, values in zip(found, more, strict=True):
            each[v, b] = values[every, first]

    def propose(self, v: I64, b: I64, u_2: F64) -> tuple[F64, F64, Bools]:
        """The sides of boxes of views `v` of samples `b` by their uniforms, and which fit."""
        portion, log_ratio = (
            low_high[v, 0] + (low_high[v, 1] - low_high[v, 0]) * u_2[..., part]
            for part, low_high in enumerate((self.scale_V2, self.log_ratio_V2))
        )
        ratio = np.exp(log_ratio)
        area, limits = portion * self.area_B[b], self.limits_B2[b]
        long, across = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (long <= limits[..., 0]) & (across <= limits[..., 1]) & (long > 0) & (across > 0)
        return long, across, fits


def pairs(value: PerView[tuple[T, T]]) -> tuple[tuple[T, T], ...]:
    """The ranges that a setting holds: one, or one per view."""
    return value if isinstance(value[0], tuple) else (value,)  # type: ignore[return-value]


def per_view(op: object) -> Iterator[tuple[str, int]]:
    """Name and length of every setting that is given as a list with one entry per view."""
    if dataclasses.is_dataclass(op):  # a user's op need not be one
        for field in dataclasses.fields(op):
            value = getattr(op, field.name)
            nested = isinstance(value, tuple) and bool(value) and isinstance(value[0], tuple)
            if nested or (field.name == "p" and isinstance(value, tuple)):
                yield field.name, len(value)


def positive_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless both sides are at least one pixel, and no longer than a JPEG's."""
    if min(size) < 1 or max(size) > SIDE:
        raise ValueError(f"size = {list(size)} must be 1 to {SIDE:,} pixels each way")


def probabilities(p: PerView[float]) -> None:
    """Raise ValueError unless all are in [0, 1]."""
    if p == () or not all(0 <= value <= 1 for value in np.atleast_1d(p)):
        raise ValueError(f"p = {p} must lie in [0, 1]")


def bounded(setting: str, value: PerView[Pair], low: float, high: float) -> None:
    """Raise ValueError unless every range lies in [low, high] and does not run backwards."""
    if not value:
        raise ValueError(f"{setting} = [] must be [from, to], or such a pair for each view")
    for bounds in pairs(value):
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(
                f"{setting} = {list(bounds)} must be [from, to] within [{low:g}, {high:g}]"
            )
