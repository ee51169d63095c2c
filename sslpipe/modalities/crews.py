"""Who reads and decodes samples, how many of them, and how far ahead of what is made.

A share that is in memory costs its pages, which the system clears when they are first written.
"""

from collections.abc import Sequence

from ..device.slots import Slots
from ..errors import RecipeError
from ..process import cores, node_ranks
from ..recipe import Recipe
from ..stream.crew import Crew, InProcess
from ..stream.foreign import Foreign
from ..stream.jobs import FileStore
from ..stream.packed import Packed
from ..stream.source import Source
from ..stream.workers import Workers
from .parts import Part

FEW_CORES = 4
SMALL_SAMPLES, SMALL_BYTES = 2_000, 30_000_000  # of a rank's epoch: sooner done than workers start


def open_crew(
    recipe: Recipe, stores: Sequence[FileStore], parts: Sequence[Part], slots: Slots, count: int
) -> Crew:
    """`count` workers, or this process. stores: of the files that samples lie in.

    Raises:
        RecipeError: a decoder is made in the user's script, which workers do not run.
    """
    decoders = [part.worker_side for part in parts]
    if not count:
        return InProcess(stores, decoders)
    for decoder in decoders:
        kind = type(decoder.first)
        if kind.__module__ == "__main__":
            raise RecipeError(
                f"{recipe.path}: the decoder {kind.__name__} is defined in the script that runs, "
                "which workers do not run; move it into a module of its own, or set run.workers: 0"
            )
    return Workers(stores, decoders, slots, count=count, patience=recipe.run.patience)


def worker_count(recipe: Recipe, source: Source, parts: Sequence[Part]) -> int:
    """How many workers this rank has; none for sets that are read before workers have started.

    None where arrays lie ready beside the tars, either.
    """
    assert isinstance(source, Packed | Foreign)
    if any(part.stored for part in parts):
        return 0
    if recipe.run.workers != "auto":
        return recipe.run.workers
    samples, bytes_ = source.rank_epoch
    if samples < SMALL_SAMPLES and bytes_ < SMALL_BYTES:
        return 0
    share = cores() // node_ranks()
    # beside an H200 with 16 virtual cores, 8 workers fed a ResNet-18 with 22,000 images/s of 32 px,
    # and 16 with 13,000 to 16,000: they took the time of the thread that trains
    wanted = share if share <= FEW_CORES else max(FEW_CORES, share // 2)
    return max(1, min(wanted, source.share))


def shares_ahead(count: int) -> int:
    """How many shares `count` workers are at, besides the one that is waited for.

    So none of them waits for the last task of another. A slot more costs its pages, which the
    system clears when they are first written: 70 MB for 128 photos, a fifth of the time of a pass
    over 2,000 of them. Many workers are done with a share sooner than the next can be handed out.
    """
    return min(1, count) if count <= FEW_CORES else 2


def shares_waiting(count: int, prefetch: int) -> int:
    """How many shares of `count` workers wait, decoded, until they are made.

    Batches that are made wait behind them, `prefetch` of those, so few workers keep one: it costs
    what a share ahead costs.
    """
    return min(1, prefetch) if count <= FEW_CORES else prefetch
