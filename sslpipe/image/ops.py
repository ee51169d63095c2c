"""The augmentation vocabulary: what each op is called, accepts and draws. It touches no pixel.

Names and settings are Kornia's; every op is also built as the genuine Kornia class, which checks
the ranges. What is ours says so. An op draws a table with `columns`, one row per view and sample;
its gate is always draw 0 of its stream, so switching an op off never changes another draw.

Letters: V views, B samples, P columns.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import kornia.augmentation as K
import numpy as np
import numpy.typing as npt

from ..rng import Keys

F64 = npt.NDArray[np.float64]
Pair = tuple[float, float]
PerView = float | tuple[float, ...]  # one probability, or one per view
ATTEMPTS = 10  # of torchvision's RandomResizedCrop before it falls back to the centre


@dataclass(frozen=True, slots=True)
class Draw:
    """What an op draws from: the keyed uniforms of its own stream, and the canvas sizes."""

    keys: Keys
    stream: str
    sizes_B2: npt.NDArray[np.int64]  # height, width in pixels

    def uniforms(self, count: int) -> F64:
        """(V, B, count) float64 in [0, 1)."""
        return self.keys.uniforms(self.stream, count)

    def gates(self, u_VB: F64, p: PerView) -> F64:
        """(V, B) of 0.0 and 1.0: u < p, p being one number or one per view."""
        p_V = np.broadcast_to(np.asarray(p, dtype=np.float64), (len(self.keys.views),))
        return (u_VB < p_V[:, None]).astype(np.float64)


class Op(Protocol):
    """One augmentation: frozen settings, and a pure draw."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what it draws."""
        ...

    def draw(self, source: Draw) -> F64:
        """(V, B, P) table."""
        ...


def between(u: F64, bounds: Pair) -> F64:
    """Uniforms in [0, 1) stretched to the range."""
    low, high = bounds
    return low + (high - low) * u


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random box, resized; the boxes are drawn as torchvision's `get_params` does.

    `antialias` is ours: Kornia has none, and without it small crops alias (20 to 39 dB).
    """

    size: tuple[int, int]  # height, width in pixels
    scale: Pair = (0.08, 1.0)  # of the canvas area
    ratio: Pair = (3 / 4, 4 / 3)  # width / height
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    columns: ClassVar = ("x", "y", "w", "h")

    def __post_init__(self) -> None:
        positive_size(self.size)
        K.RandomResizedCrop(self.size, scale=self.scale, ratio=self.ratio)

    def draw(self, source: Draw) -> F64:
        """Box in pixels of the canvas, whole numbers."""
        u_VBA = source.uniforms(2 * ATTEMPTS + 2)
        height, width = source.sizes_B2[:, 0], source.sizes_B2[:, 1]
        area = between(u_VBA[..., 0 : 2 * ATTEMPTS : 2], self.scale) * (height * width)[:, None]
        low, high = np.log(self.ratio)
        ratio = np.exp(between(u_VBA[..., 1 : 2 * ATTEMPTS : 2], (low, high)))
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = fits.argmax(-1)[..., None]
        w, h = (np.take_along_axis(side, first, -1)[..., 0] for side in (w, h))
        x = np.floor(u_VBA[..., -2] * (width - w + 1))
        y = np.floor(u_VBA[..., -1] * (height - h + 1))
        box = np.stack([x, y, w, h], -1)
        return np.where(fits.any(-1)[..., None], box, self.fallback(height, width))

    def fallback(self, height: npt.NDArray[np.int64], width: npt.NDArray[np.int64]) -> F64:
        """(B, 4): torchvision's central crop at the clamped aspect ratio."""
        aspect = np.clip(width / height, *self.ratio)
        w = np.minimum(width, np.rint(height * aspect))
        h = np.minimum(height, np.rint(width / aspect))
        return np.stack([(width - w) // 2, (height - h) // 2, w, h], -1)


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A random box of the output's size out of the canvas, zero-padded on each side first."""

    size: tuple[int, int]
    padding: int = 0  # pixels
    columns: ClassVar = ("x", "y", "w", "h")

    def __post_init__(self) -> None:
        positive_size(self.size)
        K.RandomCrop(self.size, padding=self.padding)

    def draw(self, source: Draw) -> F64:
        """Box in pixels; x and y reach from -padding. A smaller canvas is padded further."""
        u_VB2 = source.uniforms(2)
        h, w = self.size
        room = source.sizes_B2 + 2 * self.padding - np.array(self.size)  # (B, 2): y, x
        yx = np.floor(u_VB2 * (np.maximum(room, 0) + 1)) - self.padding + np.minimum(room, 0) // 2
        sides = np.broadcast_to([float(w), float(h)], yx.shape)
        return np.concatenate([yx[..., ::-1], sides], -1)


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The central box, for evaluation. `resize` is ours: shrink the shorter side to it first."""

    size: tuple[int, int]
    resize: int | None = None  # pixels; None: the larger of `size`
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    columns: ClassVar = ("x", "y", "w", "h")

    def __post_init__(self) -> None:
        positive_size(self.size)
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"resize = {self.resize} is smaller than size = {list(self.size)}")
        K.CenterCrop(self.size)

    def draw(self, source: Draw) -> F64:
        """Crop and resize as one box, rounded to whole canvas pixels."""
        height, width = source.sizes_B2[:, 0], source.sizes_B2[:, 1]
        unit = np.minimum(height, width) / (self.resize or max(self.size))
        h = np.clip(np.rint(self.size[0] * unit), 1, height)
        w = np.clip(np.rint(self.size[1] * unit), 1, width)
        box = np.stack([(width - w) // 2, (height - h) // 2, w, h], -1)
        return np.broadcast_to(box, (len(source.keys.views), *box.shape))


@dataclass(frozen=True, kw_only=True)
class Gated:
    """An op that draws nothing but its gate; abstract."""

    p: PerView
    columns: ClassVar = ("on",)

    def __post_init__(self) -> None:
        probabilities(self.p)

    def draw(self, source: Draw) -> F64:
        """The gate."""
        return source.gates(source.uniforms(1)[..., 0], self.p)[..., None]


@dataclass(frozen=True, kw_only=True)
class RandomHorizontalFlip(Gated):
    """Mirror left and right."""

    p: PerView = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomVerticalFlip(Gated):
    """Mirror top and bottom."""

    p: PerView = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomGrayscale(Gated):
    """Grey in all three channels (BT.601). Our default p is the papers'; Kornia's is 0.1."""

    p: PerView = 0.2


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue as torchvision defines them, in random order.

    Ours: the order is drawn per sample and view; Kornia draws one per batch.
    """

    brightness: float | Pair = 0.0
    contrast: float | Pair = 0.0
    saturation: float | Pair = 0.0
    hue: float | Pair = 0.0  # in turns
    p: PerView = 1.0
    columns: ClassVar = (
        "on", "brightness", "contrast", "saturation", "hue", "order0", "order1", "order2", "order3",
    )  # fmt: skip

    def __post_init__(self) -> None:
        probabilities(self.p)
        K.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)

    def ranges(self) -> tuple[Pair, Pair, Pair, Pair]:
        """(low, high) of the four factors."""
        factors = (self.brightness, self.contrast, self.saturation)
        scaled = (f if isinstance(f, tuple) else (max(0.0, 1 - f), 1 + f) for f in factors)
        hue = self.hue if isinstance(self.hue, tuple) else (-self.hue, self.hue)
        return (*scaled, hue)  # type: ignore[return-value]

    def draw(self, source: Draw) -> F64:
        """Gate, four factors, and the order: which factor (0..3, as listed) comes at each place."""
        u = source.uniforms(9)
        on = source.gates(u[..., 0], self.p)[..., None]
        factors = [between(u[..., 1 + i], bounds) for i, bounds in enumerate(self.ranges())]
        order = np.argsort(u[..., 5:], axis=-1, kind="stable")
        return np.concatenate([on, np.stack(factors, -1), order], -1)


@dataclass(frozen=True, kw_only=True)
class RandomGaussianBlur:
    """Gaussian blur of a fixed odd kernel, reflecting at the border; sigma is drawn per view."""

    kernel_size: tuple[int, int]  # pixels, odd
    sigma: Pair = (0.1, 2.0)  # pixels
    p: PerView = 0.5
    columns: ClassVar = ("on", "sigma")

    def __post_init__(self) -> None:
        probabilities(self.p)
        if any(k % 2 == 0 or k < 1 for k in self.kernel_size):
            raise ValueError(f"kernel_size = {list(self.kernel_size)} must be odd")
        K.RandomGaussianBlur(self.kernel_size, self.sigma)

    def draw(self, source: Draw) -> F64:
        """Gate and sigma."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, between(u[..., 1], self.sigma)], -1)


@dataclass(frozen=True, kw_only=True)
class RandomSolarize:
    """Invert what is at or above the threshold.

    Our default is the papers': threshold 0.5 and no addition. Kornia's own defaults draw the
    threshold from (0.4, 0.6) and add up to 0.1 of brightness first.
    """

    thresholds: Pair = (0.5, 0.5)  # in [0, 1]
    p: PerView = 0.5
    columns: ClassVar = ("on", "threshold")

    def __post_init__(self) -> None:
        probabilities(self.p)
        K.RandomSolarize(self.thresholds, (0.0, 0.0))

    def draw(self, source: Draw) -> F64:
        """Gate and threshold."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, between(u[..., 1], self.thresholds)], -1)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """(x - mean) / std per channel; the default is ImageNet's."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std = {list(self.std)} must be above 0")

    def draw(self, source: Draw) -> F64:
        """Nothing."""
        return np.zeros((len(source.keys.views), len(source.keys.uids), 0))


def positive_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless both sides are at least one pixel."""
    if min(size) < 1:
        raise ValueError(f"size = {list(size)} must be at least 1 pixel each way")


def probabilities(p: PerView) -> None:
    """Raise ValueError unless all are in [0, 1]."""
    if not all(0 <= value <= 1 for value in np.atleast_1d(p)):
        raise ValueError(f"p = {p} must lie in [0, 1]")
