"""Canvases -> views, masks and targets, by tables that are decided first."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..batch import MaskSpec, TargetSpec, ViewSpec
from ..lookup import Entry
from . import executors
from .draws import draw, keys_of, policy
from .handoff import Send
from .masks import masker
from .scale import Canvas, fitted
from .targets import pretext

I64 = npt.NDArray[np.int64]


class ViewSettings(Protocol):
    """A view group of a recipe."""

    @property
    def count(self) -> int: ...
    @property
    def draws(self) -> str: ...
    @property
    def ops(self) -> Sequence[Entry]: ...


class MaskSettings(Protocol):
    """A mask of a recipe."""

    @property
    def view(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def sampler(self) -> Entry: ...


class TargetSettings(Protocol):
    """A pretext task of a recipe."""

    @property
    def view(self) -> str: ...
    @property
    def task(self) -> Entry: ...


Made = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]


class Views:
    """Everything that a recipe makes of a canvas, checked and ready.

    Raises:
        RecipeError: an op, mask or task that does not exist or does not suit; says file:line.
    """

    def __init__(
        self,
        views: Mapping[str, ViewSettings],
        masks: Mapping[str, MaskSettings],
        targets: Mapping[str, TargetSettings],
        *,
        seed: int,
        device: torch.device,
        executor: executors.Name = "auto",
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.seed, self.device = seed, device
        self.policies = {
            name: policy(name, group.ops, count=group.count, shared=group.draws == "shared")
            for name, group in views.items()
        }
        self.executors = {
            name: executors.choose(executor, group, device, threads=threads)
            for name, group in self.policies.items()
        }
        specs = self.view_specs
        self.maskers = {
            name: masker(
                name,
                m.sampler,
                view=m.view,
                spec=specs[m.view],
                count=m.count,
                patch_size=m.patch_size,
            )
            for name, m in masks.items()
        }
        self.pretexts = {
            name: pretext(name, t.task, view=t.view, spec=specs[t.view])
            for name, t in targets.items()
        }

    @property
    def view_specs(self) -> dict[str, ViewSpec]:
        """Per view group."""
        return {name: group.spec for name, group in self.policies.items()}

    @property
    def mask_specs(self) -> dict[str, MaskSpec]:
        """Per mask."""
        return {name: m.spec for name, m in self.maskers.items()}

    @property
    def target_specs(self) -> dict[str, TargetSpec]:
        """Per pretext task."""
        return {name: t.spec for name, t in self.pretexts.items()}

    def decide(
        self, *, epochs: I64, uids: I64, sizes_B2: I64
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The parameter tables: group -> (V, B, P)."""
        return {
            name: draw(p, keys_of(p, seed=self.seed, epochs=epochs, uids=uids), sizes_B2)
            for name, p in self.policies.items()
        }

    def make(
        self, canvases: Sequence[Canvas], labels: Tensor, *, epochs: I64, uids: I64, send: Send
    ) -> Made:
        """Views, masks, targets, parameter tables and the labels, on the device but for the tables.

        All is decided first; then pixels, masks, targets and labels travel together.
        """
        nominal_B2 = np.array([canvas.nominal for canvas in canvases], dtype=np.int64)
        actual_B2 = np.array([canvas.pixels.shape[:2] for canvas in canvases], dtype=np.int64)
        tables = self.decide(epochs=epochs, uids=uids, sizes_B2=nominal_B2)
        hidden, chosen = (
            [torch.from_numpy(d.draw(seed=self.seed, epochs=epochs, uids=uids)) for d in drawers]
            for drawers in (self.maskers.values(), self.pretexts.values())
        )
        pixels, hidden_there, chosen_there, (labels,) = send_groups(
            send, [canvas.pixels for canvas in canvases], hidden, chosen, [labels]
        )
        views = {
            name: self.executors[name](
                p,
                pixels,
                fitted(p, tables[name], nominal_B2, actual_B2),
                device=self.device,
            )
            for name, p in self.policies.items()
        }
        for task, chosen_VB in zip(self.pretexts.values(), chosen, strict=True):
            views[task.spec.view] = task.task.apply(views[task.spec.view], chosen_VB.numpy())
        masks = dict(zip(self.maskers, hidden_there, strict=True))
        targets = dict(zip(self.pretexts, chosen_there, strict=True))
        return views, masks, targets, {n: torch.from_numpy(t) for n, t in tables.items()}, labels


def send_groups(send: Send, *groups: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Send several lists of tensors together."""
    sent = iter(send([tensor for group in groups for tensor in group]))
    return (list(islice(sent, len(group))) for group in groups)
