"""The modalities of a recipe: whose each view group is, and who decides, decodes and makes it."""

import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..batch import Batch, BatchSpec
from ..device.handoff import Send, send_groups
from ..errors import RecipeError, SampleError
from ..recipe import Entry, Recipe
from ..recipe.names import imported, suggest
from ..rng import Place
from ..stream.reader import Sample
from . import Decider, Decode, Made, Maker, Modality, Raw, ShareDecode, Tables

I64 = npt.NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One modality's share of a recipe."""

    modality: Modality
    decider: Decider
    decode: Decode
    maker: Maker
    share_decode: ShareDecode | None  # None: samples are decoded one by one
    owns_payload: bool  # False: its bytes are another member of the sample, as a picture's caption

    def load(self, sample: Sample, epoch: int) -> Raw:
        """Decode a sample as far as the views of its epoch need it.

        Raises:
            SampleError: the reason, without the place.
        """
        mine = sample if self.owns_payload else self.member_of(sample)
        return self.decode(mine, self.instructions(mine, epoch))

    def member_of(self, sample: Sample) -> Sample:
        """The sample as if the first member of this modality were its payload.

        Raises:
            SampleError: it has none.
        """
        extensions = self.modality.codec.extensions
        for ext, data in sample.members.items():
            if ext.rpartition(".")[2] in extensions:
                return Sample(sample.uid, sample.key, sample.label, data)
        raise SampleError(f"has no member .{', .'.join(sorted(extensions))}")

    def prepare(self, sample: Sample, epoch: int) -> Any:
        """The first stage of decoding a whole share at once."""
        assert self.share_decode is not None
        return self.share_decode.prepare(sample, self.instructions(sample, epoch))

    def instructions(self, sample: Sample, epoch: int) -> list[int]:
        """What the decider tells of one sample; where the index is silent, its bytes are asked."""
        extent = sample.extent if any(sample.extent) else self.decode.extent(sample)
        (row,) = self.decider.instructions(
            epochs=np.array([epoch]), uids=np.array([sample.uid]), extents=np.array([extent])
        )
        return row.tolist()  # type: ignore[no-any-return]

    def decide(self, raws: Sequence[Raw], *, epochs: I64, uids: I64, place: Place) -> Tables:
        """The tables of the samples of a batch."""
        extents = np.array([raw.extent for raw in raws], dtype=np.int64)
        return self.decider.decide(epochs=epochs, uids=uids, place=place, extents=extents)


def parts_of(
    recipe: Recipe, *, device: torch.device, threads: ThreadPoolExecutor | None
) -> list[Part]:
    """One part for each modality that a view group names.

    Raises:
        RecipeError: an unknown modality, or what its decider and maker refuse.
    """
    groups: dict[str, list[str]] = {}
    for name, group in recipe.views.items():
        groups.setdefault(group.modality or recipe.modality, []).append(name)
    return [
        build_part(name, recipe, names, device=device, threads=threads)
        for name, names in groups.items()
    ]


def build_part(
    name: str,
    recipe: Recipe,
    groups: Sequence[str],
    *,
    device: torch.device,
    threads: ThreadPoolExecutor | None,
) -> Part:
    """Ask the modality called `name` for all that some view groups of it need."""
    modality = find_modality(name, recipe.path)
    decider, decode = modality.decider(recipe, groups), modality.decoder(recipe)
    return Part(
        modality,
        decider,
        decode,
        modality.maker(recipe, decider, device=device, threads=threads),
        modality.share_decoder(recipe, decode, device=device),
        owns_payload=name == recipe.modality,
    )


def members_of(parts: Sequence[Part]) -> frozenset[str]:
    """Extensions of the members that are read beside a sample's payload."""
    others = (part.modality.codec.extensions for part in parts if not part.owns_payload)
    return frozenset[str]().union(*others)


def find_modality(name: str, where: str = "modality") -> Modality:
    """A folder of this package by its name, or the user's own `package.module:Thing`.

    A class is made an instance without arguments.

    Raises:
        RecipeError: there is no such modality; says which there are.
    """
    if ":" in name:
        thing = imported(Entry(name, where=where))
        return cast(Modality, thing() if isinstance(thing, type) else thing)
    if name not in shipped_modalities():
        raise RecipeError(
            f"{where}: unknown modality {name!r}; {suggest(name, shipped_modalities())}, or your "
            "own as package.module:Thing"
        )
    return cast(Modality, import_module(f".{name}", __package__).MODALITY)


def shipped_modalities() -> list[str]:
    """The folders beside this file."""
    folder = str(Path(__file__).parent)
    return [module.name for module in pkgutil.iter_modules([folder]) if module.ispkg]


def batch_spec(
    recipe: Recipe, parts: Sequence[Part], *, world_size: int, batches: int
) -> BatchSpec:
    """What the batches hold; an epoch has `batches` of them."""
    size = recipe.stream.batch_size
    return BatchSpec(
        size // world_size,
        size,
        merged(part.decider.views for part in parts),
        merged(part.decider.masks for part in parts),
        merged(part.decider.targets for part in parts),
        epoch_size=batches * size,
    )


def make_parts(
    parts: Sequence[Part],
    columns: Sequence[Sequence[Raw]],
    tables: Sequence[Tables],
    labels: Tensor,
    *,
    send: Send,
) -> tuple[Made, dict[str, Tensor], Tensor]:
    """What all makers make of a batch, its masks and its labels; one copy takes all to the device.

    columns, tables: of each part, the samples' arrays and what was decided for them.
    """
    arrays = [[tensor_of(raw.data) for raw in column] for column in columns]
    masks = tensors(merged(table.masks for table in tables))
    targets = tensors(merged(table.targets for table in tables))
    *arrays, masks_there, targets_there, (labels,) = send_groups(
        send, *arrays, [*masks.values()], [*targets.values()], [labels]
    )
    there = dict(zip(targets, targets_there, strict=True))
    made = [
        part.maker.make(column, table, there)
        for part, column, table in zip(parts, arrays, tables, strict=True)
    ]
    whole = Made(*(merged(dicts) for dicts in zip(*made, strict=True)))
    return whole, dict(zip(masks, masks_there, strict=True)), labels


def merged(dicts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """The entries of several dicts; no name stands in two of them."""
    return {name: value for each in dicts for name, value in each.items()}


def tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """The same memory as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tensor_of(data: npt.NDArray[Any] | Tensor) -> Tensor:
    """The same memory as a tensor."""
    return data if isinstance(data, Tensor) else torch.from_numpy(data)


def draw_sheet(parts: Sequence[Part], batch: Batch, spec: BatchSpec, *, rows: int) -> Image.Image:
    """The sheets of all modalities, one below the other."""
    sheets = [part.modality.sheet(batch, spec, part.decider, rows=rows) for part in parts]
    width, height = max(s.width for s in sheets), sum(s.height for s in sheets)
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole
