"""What every op is made of: what it draws from, what it promises, and the checks that they share.

Letters: V views, B samples, P columns, A attempts.
"""

import dataclasses
from collections.abc import Iterator
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
Pair = tuple[float, float]
PerView: TypeAlias = T | tuple[T, ...]  # one setting for all views, or a list: one per view
UNBOUNDED = 1e6  # of factors: Kornia wants finite ones
ATTEMPTS = 10  # of torchvision's boxes before they fall back


@dataclass(frozen=True, slots=True)
class Draw:
    """What an op draws from: the keyed uniforms of its own stream, and the sizes of pictures."""

    keys: Keys
    stream: str
    sizes_B2: I64  # height, width of the canvases in pixels
    view: tuple[int, int]  # height, width of the views in pixels

    def uniforms(self, count: int) -> F64:
        """(V, B, count) float64 in [0, 1)."""
        return self.keys.uniforms(self.stream, count)

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
        p_V = np.broadcast_to(np.asarray(p, dtype=np.float64), (len(self.keys.views),))
        return (u_VB < p_V[:, None]).astype(np.float64)

    def between(self, u: F64, bounds: npt.ArrayLike) -> F64:
        """Uniforms (V, B, ...) in [0, 1) stretched to a range, or to the range of their view."""
        bounds_V2 = np.broadcast_to(np.asarray(bounds, dtype=np.float64), (len(self.keys.views), 2))
        low, high = (side.reshape(-1, *[1] * (u.ndim - 1)) for side in bounds_V2.T)
        stretched: F64 = low + (high - low) * u
        return stretched

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

    def apply(self, images_RCHW: Tensor, rows_RP: F32) -> Tensor:
        """New images, float in [0, 1] before Normalize, given the rows of the table."""
        ...


@runtime_checkable
class Particular(Protocol):
    """An op that does not suit views of every size."""

    def check_view(self, height: int, width: int) -> None:
        """Raise ValueError if views of this size do not suit it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gated:
    """An op that draws nothing but its gate; abstract."""

    p: PerView[float]
    columns: ClassVar = ("on",)
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        probabilities(self.p)

    def draw(self, source: Draw) -> F64:
        """Draw whether the op is on, (V, B, 1)."""
        return source.gates(source.uniforms(1)[..., 0], self.p)[..., None]


def first_fitting(area: F64, ratio: F64, limits_B2: I64) -> tuple[F64, F64, npt.NDArray[np.bool_]]:
    """The first of A proposed boxes that fits into `limits_B2` (its longest height and width).

    area, ratio (long / across): (V, B, A). Returns the two sides and whether one fits, (V, B).
    """
    long, across = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (long <= limits_B2[:, :1]) & (across <= limits_B2[:, 1:]) & (long > 0) & (across > 0)
    first = fits.argmax(-1)[..., None]
    long, across = (np.take_along_axis(side, first, -1)[..., 0] for side in (long, across))
    return long, across, np.asarray(fits.any(-1))


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
    """Raise ValueError unless both sides are at least one pixel."""
    if min(size) < 1:
        raise ValueError(f"size = {list(size)} must be at least 1 pixel each way")


def probabilities(p: PerView[float]) -> None:
    """Raise ValueError unless all are in [0, 1]."""
    if not all(0 <= value <= 1 for value in np.atleast_1d(p)):
        raise ValueError(f"p = {p} must lie in [0, 1]")


def bounded(setting: str, value: PerView[Pair], low: float, high: float) -> None:
    """Raise ValueError unless every range lies in [low, high] and does not run backwards."""
    for bounds in pairs(value):
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(
                f"{setting} = {list(bounds)} must be [from, to] within [{low:g}, {high:g}]"
            )
