"""THE CONTRACT between the data side and the method side; neither knows more of the other.

Axis letters, used as suffixes of tensor names everywhere: V views in a group, B samples,
C channels, H W pixels, M masks per sample, N patches (row-major), D features,
K classes or prototypes, P columns of a parameter table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import ContractError


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one global batch."""

    views: dict[
        str, Tensor
    ]  # group -> (V, B, C, H, W) float, normalised; x1, x2 = batch.views["global"]
    masks: dict[str, Tensor]  # name -> (M, B, N) bool, True = hidden
    hidden: dict[str, npt.NDArray[np.int64]]  # name -> (M, B) hidden patches, known on the host
    targets: dict[str, Tensor]  # name -> (V, B) int64 class ids, or as TargetSpec says
    labels: Tensor  # (B,) int64, the data set's own, -1 = none; evaluation only, never for methods
    # group -> (V, B, P) float32 table of the views as drawn, before a task cut them into more;
    params: dict[str, Tensor]  # spec.views[group].columns names P
    uids: Tensor  # (B,) int64 stable sample ids
    keys: tuple[str, ...]  # B sample keys
    valid: Tensor  # (B,) bool; False: a stand-in (stream.remainder pad, stream.on_bad mask)
    epoch: int  # epoch of the first sample
    step: int  # index in the run; with recipe and manifest enough to make the batch again

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Views, masks, targets and labels on `device`; tables stay where they are."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: t.to(device, non_blocking=non_blocking) for k, t in tensors.items()}

        return replace(
            self,
            views=move(self.views),
            masks=move(self.masks),
            targets=move(self.targets),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All that lies on the device."""
        groups = (self.views, self.masks, self.targets)
        return [tensor for group in groups for tensor in group.values()] + [self.labels]

    def asdict(self) -> dict[str, Any]:
        """The fields as a dict (shallow), for trainers that want mappings."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """`count` views of (channels, height, width); `columns` names the P columns of the table."""

    count: int
    channels: int
    height: int
    width: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """`count` masks over the patch grid of group `view`.

    `hidden`: patches that every row hides; None: rows differ, `Batch.hidden` counts them.
    """

    view: str
    count: int
    patch_size: int  # pixels
    grid: tuple[int, int]  # patches: rows, columns
    hidden: int | None

    @property
    def patches(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What is to be guessed of group `view`: (count, B, *shape), ids in [0, classes) or numbers."""

    view: str
    count: int  # targets per sample: one per view, or one for all views together
    classes: int | None  # None: float32 numbers, not class ids
    shape: tuple[int, ...] = ()  # of one target


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What every batch of a pipeline holds; known when the recipe is read, before any data."""

    size: int  # samples per rank (B)
    global_size: int  # samples over all ranks
    views: Mapping[str, ViewSpec]
    masks: Mapping[str, MaskSpec]
    targets: Mapping[str, TargetSpec]
    epoch_size: int | None = None  # samples in the whole batches of an epoch; None: not known

    def require(
        self,
        method: str,
        *,
        views: Mapping[str, int],
        masks: Iterable[str] = (),
        targets: Iterable[str] = (),
    ) -> None:
        """Check at construction what a method needs; its hot loop then never tests for None.

        `views` maps a group to the least number of views.

        Raises:
            ContractError: something is missing; says which setting to change.
        """
        for group, count in views.items():
            made = self.views[group].count if group in self.views else 0
            if made < count:
                raise ContractError(
                    f"{method} needs {count} {group!r} views; this recipe makes {made}. "
                    f"Set views.{group}.count to {count} or more"
                )
        sections = (("masks", masks, self.masks), ("targets", targets, self.targets))
        for section, needed, present in sections:
            for name in needed:
                if name not in present:
                    raise ContractError(
                        f"{method} needs {section}[{name!r}]; "
                        f"this recipe makes {sorted(present) or 'none'}. "
                        f"Add {section}.{name}"
                    )

    def classes(self, method: str, target: str) -> int:
        """How many classes a target of class ids has.

        Raises:
            ContractError: its targets are no class ids.
        """
        classes = self.targets[target].classes
        if classes is None:
            raise ContractError(
                f"{method} needs class ids in targets[{target!r}], which holds numbers; "
                f"set targets.{target}.task to one that gives class ids"
            )
        return classes


def whole_group(groups: Iterable[str]) -> str:
    """The group whose views show most of an image: 'global', or the first (MSN's targets)."""
    names = list(groups)
    return "global" if "global" in names else names[0]
