"""Every other augmentation of Kornia: run by Kornia itself, sample by sample, from keyed seeds."""

import importlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ....device.keyed_random import KeyedRandom
from ....errors import RecipeError
from ....recipe.names import Entry, bind, choose, suggest
from .op import F32, F64, Draw, PerView, probabilities

WORD = 2**24  # the largest range of whole numbers that float32 holds exactly
OURS = ("p", "p_batch", "same_on_batch", "keepdim")  # of Kornia's settings: never passed on
MIXES = "it mixes samples, and a sample's views may not depend on its neighbours"
REASONS: Mapping[str, str] = MappingProxyType({
    "RandomDissolving": "it downloads a diffusion model",
    "RandomJigsaw": "Kornia counts it among the classes that mix samples; write your own op",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KorniaOp:
    """A Kornia class by name. Its samplers, which follow torch's generator, get a keyed seed each.

    So it is as keyed as the other ops, and slow: one sample at a time, in the kornia executor only.
    Equal pixels are promised on one kind of device and one version of Kornia, not across them.
    """

    kind: type[nn.Module]
    settings: Mapping[str, Any]
    p: PerView[float]
    columns: ClassVar = ("on", "seed0", "seed1")
    numbers: ClassVar = 3
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)

    def kornia_module(self) -> nn.Module:
        """The genuine class, always on: its gate is ours."""
        gate = {"p": 1.0} if "p" in inspect.signature(self.kind).parameters else {}
        return self.kind(**self.settings, **gate)

    def check_view(self, height: int, width: int) -> None:
        """Try it on a grey view; raise ValueError if it fails or changes the shape."""
        grey = torch.full((1, 3, height, width), 0.5)
        try:
            made = self.view(self.kornia_module(), grey, seed=0)
        except Exception as error:
            raise ValueError(f"Kornia refuses a view of {height} x {width} px: {error}") from error
        if made.shape != grey.shape:
            raise ValueError(f"it changes {height} x {width} px to {tuple(made.shape[-2:])}")

    def draw(self, source: Draw) -> F64:
        """Gate, and the high and low word of the seed: whole numbers below 2**24."""
        u = source.uniforms(3)
        on = source.gates(u[..., 0], self.p)
        return np.concatenate([on[..., None], u[..., 1:] * WORD], -1)

    def apply(self, images_RCHW: Tensor, rows_RP: F32) -> Tensor:
        """Each gated row alone, under its own seed."""
        module, made = self.kornia_module(), images_RCHW.clone()
        for r in np.flatnonzero(rows_RP[:, 0]):
            seed = int(rows_RP[r, 1]) * WORD + int(rows_RP[r, 2])
            made[r] = self.view(module, images_RCHW[r : r + 1].clone(), seed=seed)[0]
        return made

    def view(self, module: nn.Module, image_1CHW: Tensor, *, seed: int) -> Tensor:
        """One view, whatever is random in it following the seed."""
        with KeyedRandom(seed):
            return module(image_1CHW)  # type: ignore[no-any-return]


def augmentations() -> ModuleType:
    """Kornia's augmentations, which take 0.2 s to import: most recipes need none of them."""
    return importlib.import_module("kornia.augmentation")


def foreign_names() -> list[str]:
    """Kornia's 2-D augmentations that work on one sample at a time."""
    K = augmentations()
    return [
        name
        for name, kind in vars(K).items()
        if inspect.isclass(kind)
        and issubclass(kind, K.AugmentationBase2D)
        and not name.endswith("Base2D")
        and name not in REASONS
    ]


def foreign(entry: Entry, known: Mapping[str, Any]) -> KorniaOp:
    """The Kornia class that an entry names, its settings checked by its own constructor.

    known: the ops that are not foreign, for the message.

    Raises:
        RecipeError: no such class, one that mixes samples, or settings that it does not take.
    """
    kind = foreign_class(entry, known)
    parameters = inspect.signature(kind).parameters
    check_names(entry, [name for name in parameters if name not in OURS])
    default = parameters["p"].default if "p" in parameters else 1.0
    gate = Entry(entry.name, {"p": entry.settings.get("p", default)}, entry.where)
    settings = {name: tuples(value) for name, value in entry.settings.items() if name != "p"}
    try:
        op = KorniaOp(kind=kind, settings=settings, **bind(gate_settings, gate))
        op.kornia_module()
    except Exception as error:  # whatever a foreign constructor raises
        raise RecipeError(f"{entry.where}: {entry.name}: {error}; correct the settings") from error
    return op


def foreign_class(entry: Entry, known: Mapping[str, Any]) -> type[nn.Module]:
    """The class itself.

    Raises:
        RecipeError: there is none of this name, or it can be no op; says why.
    """
    K = augmentations()
    kind = getattr(K, entry.name, None)
    names = foreign_names()
    mixes = inspect.isclass(kind) and issubclass(kind, K.MixAugmentationBaseV2)
    reason = REASONS.get(entry.name) or (MIXES if mixes else None)
    if reason:
        raise RecipeError(f"{entry.where}: {entry.name} cannot be an op: {reason}")
    classes = {**known, **dict.fromkeys(names, kind)}
    return choose(entry, classes, "op")  # type: ignore[no-any-return]


def check_names(entry: Entry, names: Collection[str]) -> None:
    """Check the names of settings, since Kornia's `forward` swallows what it is given.

    Raises:
        RecipeError: the class has no such setting; says which it has.
    """
    for name in entry.settings:
        if name not in (*names, "p"):
            allowed = suggest(name, [*names, "p"])
            raise RecipeError(f"{entry.where}: {entry.name} has no setting {name!r}; {allowed}")


def gate_settings(*, p: PerView[float]) -> None:
    """The one setting of a foreign op that is ours."""


def tuples(value: Any) -> Any:
    """Lists of a recipe as the tuples that Kornia's constructors want."""
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value
