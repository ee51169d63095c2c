"""The modalities of a recipe: whose each view group is, and who decides, decodes and makes it."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..batch import BatchSpec
from ..errors import RecipeError
from ..recipe import Recipe
from ..rng import Place
from ..shards.manifest import Manifest
from ..stream.by_length import LengthBuckets
from ..stream.packed_rows import RowLayout
from ..stream.part_decode import PartDecode
from ..stream.source import Column, Drawn
from ..stream.stored import StoredReader
from ..stream.tasks import DECODE, MEASURE, READ, TRIMMED, Kind
from . import (
    Costs,
    Decider,
    Decode,
    DrawsAhead,
    Maker,
    Modality,
    Partners,
    ShareDecode,
    Tables,
)
from .finding import modality_of
from .messages import class_of
from .returned import check_groups, check_tables, given

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
    members: frozenset[str]  # extensions of that member
    layout: RowLayout | None  # of rows that documents are packed in; None: samples are samples
    files: str  # what those that the recipe names hash to, in words; "": none
    partners: Partners | None  # other samples that it wants beside each; None: none
    buckets: LengthBuckets | None  # of batches of similar lengths; None: all are equally long
    stored: StoredReader | None = None  # reads its arrays beside the tars; None: it decodes

    @property
    def worker_side(self) -> PartDecode:
        """What workers know of this part."""
        first = self.share_decode.first if self.share_decode else self.decode
        extensions = None if self.owns_payload else self.members
        return PartDecode(first, self.decode, extensions)

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """What workers must know of samples, (B, anything); extents (B, 4) of the payloads."""
        known = extents if self.owns_payload else np.zeros_like(extents)
        return self.decider.instructions(epochs=epochs, uids=uids, extents=known)

    def partner_instructions(self, *, epochs: I64, uids: I64, extents: I64, turns: I64) -> I64:
        """What workers must know of the partners that this part asks for."""
        assert self.partners is not None
        known = extents if self.owns_payload else np.zeros_like(extents)
        return self.partners.instructions(epochs=epochs, uids=uids, extents=known, turns=turns)

    def room(self, *, kind: Kind, extents: I64, sizes: I64, instructions: I64) -> I64:
        """How many bytes each decoded array takes, (B,); 0: not known."""
        if kind in (READ, MEASURE):
            return np.ones_like(sizes)
        if not self.owns_payload:
            return np.zeros_like(sizes)
        lists = self.share_decode if kind in (DECODE, TRIMMED) else None
        decode = lists.first if lists else self.decode
        return decode.room(extents=extents, sizes=sizes, instructions=instructions)

    def over(self, sets: Sequence[Manifest]) -> "Part":
        """The same part, which reads what is stored beside the tars of these sets, if it is.

        Raises:
            ShardError: a set promises such files, and one is missing or damaged.
        """
        return replace(self, stored=self.modality.stored_reader(self.decode, sets))

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """What can be drawn before samples are decoded; extents (B, 4) of the payloads."""
        if not (self.owns_payload and isinstance(self.decider, DrawsAhead)):
            return None
        return self.decider.draw_ahead(epochs=epochs, uids=uids, extents=extents)

    def decide(
        self, column: Column, *, epochs: I64, uids: I64, place: Place, drawn: Drawn | None = None
    ) -> Tables:
        """The tables of the samples of a batch; drawn: for what samples were thought to be there.

        Raises:
            ContractError: they are not what the decider's specs say.
        """
        decider, decide, extents = self.decider, self.decider.decide, column.extents
        if drawn and drawn.are_of(epochs=epochs, uids=uids, extents=extents):
            # it has drawn ahead; to ask whether it can takes longer than all else here
            decide = partial(cast(DrawsAhead, decider).decide_drawn, drawn)
        tables = decide(epochs=epochs, uids=uids, place=place, extents=extents)
        check_tables(self.decider, tables, len(uids))
        return tables


def parts_of(
    recipe: Recipe, *, device: torch.device, threads: ThreadPoolExecutor | None
) -> list[Part]:
    """One part for each modality that a view group names.

    Raises:
        RecipeError: no views, an unknown modality, or what its decider and maker refuse.
    """
    if not recipe.views:
        where = recipe.where("views")
        raise RecipeError(f"{where}: views = {{}}: there are none; write a view group")
    return [
        build_part(name, recipe, names, device=device, threads=threads)
        for name, names in groups_of(recipe).items()
    ]


def groups_of(recipe: Recipe) -> dict[str, list[str]]:
    """The view groups of each modality."""
    groups: dict[str, list[str]] = {}
    for name, group in recipe.views.items():
        groups.setdefault(group.modality or recipe.modality, []).append(name)
    return groups


def files_of(recipe: Recipe) -> list[str]:
    """What the files that a recipe names hash to, in words, as a pipeline's state has it.

    Raises:
        RecipeError: an unknown modality, or what its decider refuses.
    """
    known = [(modality_of(recipe, names[0]), names) for names in groups_of(recipe).values()]
    found = [modality.files(recipe, modality.decider(recipe, names)) for modality, names in known]
    return [words for words in found if words]


def build_part(
    name: str,
    recipe: Recipe,
    groups: Sequence[str],
    *,
    device: torch.device,
    threads: ThreadPoolExecutor | None,
) -> Part:
    """Ask the modality called `name` for all that some view groups of it need."""
    modality = modality_of(recipe, groups[0])
    who = class_of(modality)
    decider = given(who, Decider, lambda: modality.decider(recipe, groups))
    check_groups(recipe, decider, groups)
    decode = given(who, Decode, lambda: modality.decoder(recipe))
    make = partial(modality.maker, recipe, decider, device=device, threads=threads)
    return Part(
        modality,
        decider,
        decode,
        given(who, Maker, make),
        modality.share_decoder(recipe, decode, device=device),
        owns_payload=name == recipe.modality,
        members=modality.members(recipe, groups),
        layout=modality.layout(recipe, decider) if name == recipe.modality else None,
        files=modality.files(recipe, decider),
        partners=modality.partners(recipe, decider),
        buckets=modality.buckets(recipe, decider) if name == recipe.modality else None,
    )


def advice(recipe: Recipe, parts: Sequence[Part], what: Costs, *, device: torch.device) -> str:
    """How samples cost less, in words of their modality."""
    return owner_of(parts).modality.advice(recipe, what, cuda=device.type == "cuda")


class Units(NamedTuple):
    """What rates of a recipe are of."""

    sample: str  # in the singular; of packed documents: row
    steps: str = ""  # of samples of several lengths, in the plural: tokens; "": there are none


def units_of(parts: Sequence[Part]) -> Units:
    """Those of the modality whose payloads the samples are."""
    part = owner_of(parts)
    return Units("row" if part.layout else part.modality.unit, part.modality.steps)


def owner_of(parts: Sequence[Part]) -> Part:
    """The part whose payloads the samples are."""
    return next((part for part in parts if part.owns_payload), parts[0])


def members_of(parts: Sequence[Part]) -> frozenset[str]:
    """Extensions of the members that are read beside a sample's payload."""
    others = (part.members for part in parts if not part.owns_payload)
    return frozenset[str]().union(*others)


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


def merged(dicts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """The entries of several dicts; no name stands in two of them."""
    return {name: value for each in dicts for name, value in each.items()}


def tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Tensors that share the memory of arrays, each under its name."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def tensor_of(data: npt.NDArray[Any] | Tensor) -> Tensor:
    """The same memory as a tensor."""
    return data if isinstance(data, Tensor) else torch.from_numpy(data)
