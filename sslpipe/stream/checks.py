"""Whether the stream section of a recipe suits what is to be streamed, before anything is read."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import RecipeError
from ..process import node_ranks
from ..recipe import Recipe
from ..shards.read.store import ShardStore
from .plan import Remainder

log = logging.getLogger(__name__)
STRADDLING = 1 / 16  # of the samples; smaller batches that straddle hold up to 1.6 % twice


def remainder_of(recipe: Recipe) -> Remainder:
    """What a recipe says, or the default of its order.

    `sequential` is for evaluation, which wants every sample once: a short last batch needs no
    second look, where a padded one is counted wrong by whoever forgets `batch.valid`.
    """
    return recipe.stream.remainder or ("short" if recipe.stream.order == "sequential" else "wrap")


def check_short(recipe: Recipe, remainder: Remainder, samples: int, world_size: int) -> None:
    """Every rank gets the same number of samples of every batch.

    Raises:
        RecipeError: the last batch would be smaller on some of several ranks.
    """
    if remainder == "short" and world_size > 1 and samples % recipe.stream.batch_size:
        said = "remainder" if recipe.stream.remainder else "order"
        raise RecipeError(
            f"{recipe.where('stream', said)}: the last batch would be short, and "
            f"{world_size} ranks would wait for each other; set stream.remainder to pad (and use "
            "batch.valid), drop or wrap"
        )


def check_repeats(recipe: Recipe, fits: int, world_size: int) -> None:
    """Copies of a sample in a batch would be each other's negatives.

    A batch that straddles two epochs may have some as well: of t samples of one epoch and h of the
    next, t * h / fits are in both in the mean, at most size^2 / 4 / fits. It is told where that is
    many: the epochs of `wrap` are whole, and large sets have next to none.

    Raises:
        RecipeError: there must be some above `fits` samples, and nobody insists.
    """
    size = recipe.stream.batch_size
    if recipe.stream.allow_repeats:
        return
    if size > fits:
        raise RecipeError(
            f"{recipe.where('stream', 'batch_size')}: stream.batch_size = {size} is more than the "
            "shards have: copies of a sample would stand in one batch; set it to "
            f"{max(fits - fits % world_size, 1)} or less, or stream.allow_repeats: true"
        )
    if fits % size and size > STRADDLING * fits:
        log.warning(
            "%s: stream.batch_size = %d does not divide the %d samples: a batch that straddles two "
            "epochs holds up to about %d of them twice; choose a divisor, stream.remainder: "
            "drop, or a smaller batch",
            recipe.where("stream", "batch_size"), size, fits, math.ceil(size * size / 4 / fits),
        )  # fmt: skip


def say_shared_lanes(recipe: Recipe, lanes: int, store: ShardStore, world_size: int) -> None:
    """Tell where many nodes will download the same shards of a set that lies elsewhere."""
    together = world_size // math.gcd(lanes, world_size)  # ranks that share lanes
    if recipe.stream.order == "sequential" or not store.distant:
        return
    if recipe.stream.order == "global" and world_size > node_ranks():
        say_all_are_read(recipe, world_size)
    elif recipe.stream.order == "lanes" and together > node_ranks():
        log.warning(
            "%s: %d lanes for %d ranks: %d of them share each lane, so several nodes download the "
            "same shards; set stream.lanes to a multiple of the ranks that divides "
            "stream.batch_size = %d",
            recipe.where("stream", "lanes"), lanes, world_size, together, recipe.stream.batch_size,
        )  # fmt: skip


def say_all_are_read(recipe: Recipe, world_size: int, names: str = "") -> None:
    """Tell that `order: global` has every rank read in all shards, of the sets of some names."""
    log.warning(
        "%s: stream.order = global over shards that lie elsewhere%s: each of %d ranks reads in "
        "all of them; stream.order: lanes gives each node shards of its own",
        recipe.where("stream", "order"), names, world_size,
    )  # fmt: skip


def say_shared_in_mixture(
    recipe: Recipe, lanes: Mapping[str, int], stores: Sequence[ShardStore], world_size: int
) -> None:
    """Tell where many nodes will download the same shards of sets of a mixture.

    lanes: of each set, by name. Of each set a rank walks along the lanes of its share of a batch
    (rank_split.py), so nodes have lanes of their own if there are as many; neighbours may share
    one at the border.
    """
    nodes = world_size / node_ranks()
    far = {name: lanes[name] for name, store in zip(lanes, stores, strict=True) if store.distant}
    shared = [name for name, count in far.items() if count < nodes]
    if recipe.stream.order == "global" and far and nodes > 1:
        say_all_are_read(recipe, world_size, f" ({', '.join(far)})")
    elif recipe.stream.order == "lanes" and shared:
        log.warning(
            "%s: %s of the mixture have %s lanes for %d nodes, so several nodes download the same "
            "shards; choose a larger stream.batch_size, or more weight for them in stream.mix",
            recipe.where("stream", "lanes" if recipe.stream.lanes else "batch_size"),
            ", ".join(shared), ", ".join(str(far[name]) for name in shared), math.ceil(nodes),
        )  # fmt: skip


def check_mixture(recipe: Recipe, paths: Mapping[str, str | Path]) -> None:
    """The sets that were given are those that are weighed, and a mixture makes sense.

    Raises:
        RecipeError: other names, or an order or remainder of single sets.
    """
    stream = recipe.stream
    if stream.mix and set(stream.mix) != set(paths):
        raise RecipeError(
            f"{recipe.where('stream', 'mix')}: stream.mix weighs {', '.join(sorted(stream.mix))}, "
            f"but {', '.join(paths) or 'nothing'} was given; the names must be the same"
        )
    if not paths:
        raise RecipeError(f"{recipe.path}: no shards were given; give a path, or NAME=PATH")
    if stream.order == "sequential" or stream.remainder not in (None, "wrap"):
        wrong = "order" if stream.order == "sequential" else "remainder"
        raise RecipeError(
            f"{recipe.where('stream', wrong)}: stream.order = {stream.order!r} with "
            f"stream.remainder = {stream.remainder!r}: a mixture goes on for ever and has no "
            "last batch; use lanes or global, and leave the remainder out"
        )


def check_bucket(recipe: Recipe, given: str) -> None:
    """Batches of similar lengths are of one packed set, whose index knows them.

    Raises:
        RecipeError: something else was given.
    """
    if recipe.stream.bucket:
        raise RecipeError(
            f"{recipe.where('stream', 'bucket')}: stream.bucket sorts the samples of one packed "
            f"set by the lengths in its index, and {given} was given; pack into one set, or leave "
            "stream.bucket out"
        )


def check_iterable(recipe: Recipe) -> None:
    """An iterable has no index, no rows to exclude and no last batch.

    Raises:
        RecipeError: the recipe asks for what needs one of them.
    """
    stream = recipe.stream
    check_bucket(recipe, "an iterable")
    if stream.holdout:
        raise RecipeError(
            f"{recipe.where('stream', 'holdout')}: stream.holdout keeps samples apart by the uids "
            "of an index, which an iterable does not have; pack it, or leave stream.holdout out"
        )
    if stream.on_bad == "exclude" or stream.remainder not in (None, "wrap"):
        wrong = "on_bad" if stream.on_bad == "exclude" else "remainder"
        raise RecipeError(
            f"{recipe.where('stream', wrong)}: stream.on_bad = {stream.on_bad!r} with "
            f"stream.remainder = {stream.remainder!r}: an iterable has no rows to exclude, and its "
            "epochs follow each other; use replace, mask or raise, and wrap"
        )


def check_world(recipe: Recipe, rank: int, world_size: int) -> None:
    """Every rank gets the same number of samples of every batch.

    Raises:
        RecipeError: the batch does not divide, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise RecipeError(f"rank = {rank} is not in [0, {world_size}); check the launcher")
    size = recipe.stream.batch_size
    if size % world_size:
        raise RecipeError(
            f"{recipe.where('stream', 'batch_size')}: stream.batch_size = {size} is "
            f"not divisible by the {world_size} ranks; choose a multiple of {world_size}"
        )
