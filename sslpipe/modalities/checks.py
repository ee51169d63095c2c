"""Whether what a recipe's parts ask of a source can be had of it, before anything is read."""

from collections.abc import Sequence

from ..errors import RecipeError
from ..recipe import Recipe
from ..stream.packed import Packed
from ..stream.source import Source
from .parts import Part


def check_device_decoding(recipe: Recipe, source: Source, parts: Sequence[Part]) -> None:
    """Whether a device can decode what there is.

    Raises:
        RecipeError: it is an iterable, or there are several modalities.
    """
    device = f"{recipe.path}: decode.device = {recipe.decode.device!r}"
    if not isinstance(source, Packed):
        raise RecipeError(
            f"{device}: what a device cannot decode is read again, which an iterable does not "
            "allow; use packed or indexed shards, or write decode: {device: cpu}"
        )
    if len(parts) > 1:
        raise RecipeError(
            f"{device}: decodes recipes of one modality; write decode: {{device: cpu}}"
        )


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
