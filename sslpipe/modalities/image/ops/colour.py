"""Colour and blur: what pixels become. All but Normalize want values in [0, 1]."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import ClassVar, Literal

import numpy as np

from .op import F64, I64, UNBOUNDED, Draw, Gated, Pair, PerView, bounded, probabilities


@dataclass(frozen=True, kw_only=True)
class RandomGrayscale(Gated):
    """Grey in all three channels (BT.601). Our default p is the papers'; Kornia's is 0.1."""

    p: PerView[float] = 0.2


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue as torchvision defines them.

    A number f means [1 - f, 1 + f], of hue [-f, f]. Ours: `order` is drawn `per_sample` and view.
    Kornia draws one order per batch; `batch` gives whole batches one order too, drawn per epoch and
    view, because a sample's order must not hang on the batch that it happens to be in. A list such
    as [0, 1, 2, 3] (brightness, contrast, saturation, hue) is a fixed order, as in Kornia.
    """

    brightness: float | PerView[Pair] = 0.0
    contrast: float | PerView[Pair] = 0.0
    saturation: float | PerView[Pair] = 0.0
    hue: float | PerView[Pair] = 0.0  # in turns
    order: Literal["per_sample", "batch"] | tuple[int, int, int, int] = "per_sample"
    p: PerView[float] = 1.0
    columns: ClassVar = (
        "on", "brightness", "contrast", "saturation", "hue", "order0", "order1", "order2", "order3",
    )  # fmt: skip
    numbers: ClassVar = 9
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        probabilities(self.p)
        for name, bounds in zip(self.columns[1:5], self.ranges(), strict=True):
            bounded(name, bounds, *((-0.5, 0.5) if name == "hue" else (0, UNBOUNDED)))
        if isinstance(self.order, tuple) and sorted(self.order) != [0, 1, 2, 3]:
            raise ValueError(f"order = {list(self.order)} must hold 0, 1, 2 and 3 once each")

    def ranges(self) -> tuple[PerView[Pair], ...]:
        """Ranges of the four factors: brightness, contrast, saturation, hue (in turns)."""
        factors = (self.brightness, self.contrast, self.saturation)
        scaled = (f if isinstance(f, tuple) else (max(0.0, 1 - f), 1 + f) for f in factors)
        hue = self.hue if isinstance(self.hue, tuple) else (-self.hue, self.hue)
        return (*scaled, hue)

    def draw(self, source: Draw) -> F64:
        """Gate, four factors, and the order: which factor (0..3, as listed) comes at each place."""
        u = source.uniforms(self.numbers)
        made = np.empty((*u.shape[:2], len(self.columns)))
        made[..., 0] = source.gates(u[..., 0], self.p)
        for number, bounds in enumerate(self.ranges(), 1):
            made[..., number] = source.between(u[..., number], bounds)
        made[..., 5:] = self.orders(source, u[..., 5:])
        return made

    def orders(self, source: Draw, u_VB4: F64) -> F64:
        """The order of the four factors, (V, B, 4): random, the batch's, or the given one."""
        if isinstance(self.order, tuple):
            return np.broadcast_to(np.array(self.order, dtype=np.float64), u_VB4.shape)
        if self.order == "batch":
            u_VB4 = source.common(self.numbers)[..., 5:]
        return orders_of_four()[comparisons(u_VB4)]


def comparisons(values_4: F64) -> I64:
    """Which of two of the four numbers (..., 4) is smaller, for each pair: the bits of (...)."""
    bits = np.zeros(values_4.shape[:-1], dtype=np.int64)
    for bit, (one, other) in enumerate(combinations(range(4), 2)):
        bits |= (values_4[..., other] < values_4[..., one]).astype(np.int64) << bit
    return bits


@cache
def orders_of_four() -> F64:
    """(64, 4): the stable argsort of four numbers, by their `comparisons`: 10 x as fast."""
    orders = np.array(list(permutations(range(4))), dtype=np.float64)
    found = np.zeros((64, 4))
    found[comparisons(orders.argsort(-1).astype(np.float64))] = orders
    return found


@dataclass(frozen=True, kw_only=True)
class RandomGaussianBlur:
    """Gaussian blur of a fixed odd kernel, reflecting at the border; sigma is drawn per view."""

    kernel_size: tuple[int, int]  # pixels, odd
    sigma: PerView[Pair] = (0.1, 2.0)  # pixels
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "sigma")
    numbers: ClassVar = 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        probabilities(self.p)
        if any(k % 2 == 0 or k < 1 for k in self.kernel_size):
            raise ValueError(f"kernel_size = {list(self.kernel_size)} must be odd")
        bounded("sigma", self.sigma, 0.01, UNBOUNDED)

    def check_view(self, height: int, width: int) -> None:
        """Raise ValueError if the border cannot be reflected."""
        if self.kernel_size[0] // 2 >= height or self.kernel_size[1] // 2 >= width:
            raise ValueError(
                f"kernel_size = {list(self.kernel_size)} is too large to reflect views of "
                f"{height} x {width} px at their border; take a smaller one"
            )

    def draw(self, source: Draw) -> F64:
        """Draw the gate and sigma in pixels, (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.between(u[..., 1], self.sigma)], -1)


@dataclass(frozen=True, kw_only=True)
class RandomSolarize:
    """Invert what is at or above the threshold.

    Our default is the papers': threshold 0.5 and no addition. Kornia's own defaults draw the
    threshold from (0.4, 0.6) and add up to 0.1 of brightness first.
    """

    thresholds: PerView[Pair] = (0.5, 0.5)  # in [0, 1]
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "threshold")
    numbers: ClassVar = 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("thresholds", self.thresholds, 0, 1)

    def draw(self, source: Draw) -> F64:
        """Draw the gate and the threshold in [0, 1], (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.between(u[..., 1], self.thresholds)], -1)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """(x - mean) / std per channel; the default is ImageNet's."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    columns: ClassVar[tuple[str, ...]] = ()
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std = {list(self.std)} must be above 0")

    def draw(self, source: Draw) -> F64:
        """No numbers, (V, B, 0): nothing is random."""
        return np.zeros((len(source.keys.views), len(source.keys.uids), 0))
