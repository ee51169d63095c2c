"""Whether what a recipe's parts ask of a source can be had of it, before anything is read."""

from collections.abc import Collection, Sequence

from ..errors import RecipeError
from ..recipe import Recipe
from ..shards.index import Index
from ..stream.packed import Packed
from ..stream.source import Source
from .parts import Part


def check_device_decoding(recipe: Recipe, source: Source, parts: Sequence[Part]) -> None:
    """Whether a device can decode what there is.

    Raises:
        RecipeError: it is an iterable, or there are several modalities.
    """
    device = f"{recipe.where('decode', 'device')}: decode.device = {recipe.decode.device!r}"
    if not isinstance(source, Packed):
        raise RecipeError(
            f"{device}: what a device cannot decode is read again, which an iterable does not "
            "allow; use packed or indexed shards, or write decode: {device: cpu}"
        )
    if len(parts) > 1:
        raise RecipeError(
            f"{device}: decodes recipes of one modality; write decode: {{device: cpu}}"
        )


def check_members(recipe: Recipe, source: Packed, parts: Sequence[Part]) -> None:
    """Whether sets have the members that are read beside the payload, a caption's say.

    Of a set that has them the first index says it; only one without any is asked for all.

    Raises:
        RecipeError: no sample of a set has one, so none of it is good.
    """
    for part in (part for part in parts if not part.owns_payload):
        for corpus in source.corpora:
            store = corpus.store
            indexes = (store.index(shard) for shard in range(store.shards))
            if not any(has_member(index, part.members) for index in indexes):
                wanted = ", .".join(sorted(part.members))
                where = recipe.where("views", next(iter(part.decider.views)))
                raise RecipeError(
                    f"{where}: views.{', '.join(part.decider.views)} needs a member "
                    f".{wanted} beside each payload, and no sample of {store.place} has one; pack "
                    "the files with theirs beside them, or give other shards"
                )


def has_member(index: Index, extensions: Collection[str]) -> bool:
    """Whether any sample of a shard has such a member; `name.json` ends in json, too."""
    return any(ext.rpartition(".")[2] in extensions for ext in index.extensions)


def partner_count(parts: Sequence[Part]) -> int:
    """How many partners a sample has: of the one part that asks for some."""
    return sum(part.partners.count for part in parts if part.partners)


def check_partners(recipe: Recipe, source: Source, parts: Sequence[Part]) -> None:
    """Whether samples can have partners, if they are asked for.

    Raises:
        RecipeError: an iterable is asked for another sample, there are several modalities, or a
            device decodes.
    """
    if not partner_count(parts):
        return
    if not isinstance(source, Packed):
        raise RecipeError(
            f"{recipe.path}: other samples are wanted beside each, by their number, which an "
            "iterable does not allow; use packed or indexed shards, or leave out the task that "
            "wants them"
        )
    if len(parts) > 1 or parts[0].share_decode:
        raise RecipeError(
            f"{recipe.path}: other samples are wanted beside each, which needs a recipe of one "
            f"modality (this one has {len(parts)}) that workers decode; leave out the task that "
            "wants them, or write decode: {device: cpu}"
        )
