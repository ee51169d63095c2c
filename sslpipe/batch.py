"""THE CONTRACT between the data side and the method side; neither knows more of the other.

A batch is tensors with named axes. Their letters are used as suffixes of tensor names everywhere:

    V  views of a group      C  channels             N  patches of a view, row-major
    B  samples               H  W  pixels            D  features
    M  masks per sample      T  frames or samples    K  classes or prototypes
    P  columns of a table    F  frequencies          L  tokens

The axes of one view are a word over C, T, F, H, W, L: "CHW" is an image, "CTHW" a clip, "T" a
waveform, "CFT" a spectrogram, "L" tokens. A mask covers all axes of a view but its channels.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import ContractError

AXES = frozenset("CTFHWL")
IGNORED = -100  # a target that no loss looks at, as in torch.nn.functional.cross_entropy
I64 = npt.NDArray[np.int64]


# fmt: off
@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one global batch. What a modality has no use for is empty, never None."""

    views:    dict[str, Tensor]  # group -> (V, B, *shape), see ViewSpec; x1, x2 = views["global"]
    masks:    dict[str, Tensor]  # name  -> (M, B, N) bool, True = hidden
    hidden:   dict[str, I64]     # name  -> (M, B) how many patches are hidden, known on the host;
                                 #          of a task on tokens: how many it asks for at most
    targets:  dict[str, Tensor]  # name  -> (count, B, *shape) as TargetSpec says
    labels:   Tensor             # (B,) int64 of the data set, -1 = none; for evaluation only
    params:   dict[str, Tensor]  # group -> (V, B, P) float32: what was drawn for the views before a
                                 #          task cut them into more; ViewSpec.columns names P
    uids:     Tensor             # (B,) int64: stable ids of the samples
    keys:     tuple[str, ...]    # B keys of the samples
    valid:    Tensor             # (B,) bool; False: a stand-in (stream.remainder pad, on_bad mask)
    epoch:    int                # of the first sample
    step:     int                # of the run; with recipe and manifest it makes the batch again
    # group -> (V, B) int64: real steps of the last axis, where views are padded to one size
    lengths:  dict[str, Tensor] = field(default_factory=dict)
    # group -> (2, B, L) int64, of packed rows: number of the document (-1: padding), position in
    # it; (3, B, L) of rows of two texts: in which of them, 0 or 1, too; target -> the same as of
    # packed rows, of a target that is a row of its own
    segments: dict[str, Tensor] = field(default_factory=dict)
# fmt: on

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """All tensors that methods read, on `device`; ids, tables and flags stay where they are."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: t.to(device, non_blocking=non_blocking) for k, t in tensors.items()}

        return replace(
            self,
            views=move(self.views),
            masks=move(self.masks),
            targets=move(self.targets),
            lengths=move(self.lengths),
            segments=move(self.segments),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def in_float32(self) -> Self:
        """The batch with views of half precision in float32, as weights of float32 need them."""
        whole = {
            name: view.float() if view.dtype in (torch.bfloat16, torch.float16) else view
            for name, view in self.views.items()
        }
        return replace(self, views=whole)

    @property
    def tensors(self) -> list[Tensor]:
        """All that lies on the device."""
        groups = (self.views, self.masks, self.targets, self.lengths, self.segments)
        return [tensor for group in groups for tensor in group.values()] + [self.labels]

    def asdict(self) -> dict[str, Any]:
        """The fields as a dict (shallow), for trainers that want mappings."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


# fmt: off
@dataclass(frozen=True, slots=True)
class ViewSpec:
    """What group `group` holds: (count, B, *shape)."""

    group:      str
    count:      int                   # views per sample (V)
    axes:       str                   # of one view, a letter each: "CHW"
    shape:      tuple[int, ...]       # of one view, a size per axis: (3, 224, 224)
    dtype:      torch.dtype = torch.float32
    columns:    tuple[str, ...] = ()  # names of the P columns of its parameter table
    vocabulary: int | None = None     # of token ids: they lie in [0, vocabulary)
# fmt: on

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.shape), (self.axes, self.shape)
        assert AXES.issuperset(self.axes), self.axes

    def size(self, axis: str) -> int:
        """How long an axis is.

        Raises:
            ContractError: the views of this group have no such axis.
        """
        if axis not in self.axes:
            raise ContractError(
                f"views {self.group!r} have the axes {self.axes}, not {axis!r}; give a method for "
                "views of another kind, or another view group"
            )
        return self.shape[self.axes.index(axis)]

    @property
    def shown(self) -> str:
        """The shape for messages: "3 x 224 x 224"."""
        return " x ".join(map(str, self.shape))

    @property
    def grid_axes(self) -> str:
        """The axes that a mask covers: all but channels."""
        return self.axes.replace("C", "")


# fmt: off
@dataclass(frozen=True, slots=True)
class MaskSpec:
    """`count` masks over the patches of group `view`: (count, B, N) bool."""

    view:   str
    count:  int              # masks per sample (M)
    axes:   str              # that the masks cover: "HW"
    patch:  tuple[int, ...]  # steps of a patch along each of them: (16, 16)
    grid:   tuple[int, ...]  # patches along each of them: (14, 14)
    hidden: int | None       # patches that every mask hides; None: they differ, Batch.hidden counts
    most:   int | None = None  # patches that no mask hides more of, where they differ; None: N
# fmt: on

    @property
    def patches(self) -> int:
        """How many patches the grid has: the N of masks, (count, B, N)."""
        return math.prod(self.grid)


# fmt: off
@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What is to be guessed of group `view`: (count, B, *shape), class ids or numbers."""

    view:    str
    count:   int                   # targets per sample: one per view, or one for all views together
    classes: int | None            # ids lie in [0, classes); None: float32 numbers, no ids
    shape:   tuple[int, ...] = ()  # of one target
# fmt: on


# fmt: off
@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What every batch of a pipeline holds; known when the recipe is read, before any data."""

    size:        int                      # samples per rank (B)
    global_size: int                      # samples over all ranks
    views:       Mapping[str, ViewSpec]
    masks:       Mapping[str, MaskSpec]
    targets:     Mapping[str, TargetSpec]
    epoch_size:  int | None = None        # samples in whole batches of an epoch; None: not known
# fmt: on

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
