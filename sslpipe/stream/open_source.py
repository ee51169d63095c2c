"""What `load(shards=...)` may be, made a source: a packed set, several of them, or an iterable.

A packed set is named by its place, or given as a Manifest, which may exclude samples.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecipeError, ShardError
from ..recipe import Recipe
from ..rng import sample_id
from ..shards.manifest import Manifest, open_manifest
from ..shards.read.store import open_store
from . import order
from .by_length import LengthBuckets, PackedByLength
from .checks import (
    check_bucket,
    check_iterable,
    check_mixture,
    check_repeats,
    check_short,
    remainder_of,
    say_shared_in_mixture,
    say_shared_lanes,
)
from .foreign import Foreign, epoch_length
from .holdout import beside
from .mixture import Mixture, turns_of
from .packed import Corpus, Packed
from .packed_mixture import PackedMixture, mixture_identity
from .packed_rows import PackedRows, RowLayout, check_counts
from .plan import FixedSlots, Single
from .records import open_labels
from .source import Source

Shards = str | Path | Manifest | Mapping[str, str | Path] | Iterable[Any]


@dataclass(frozen=True, slots=True)
class ReadingRank:
    """Which rank of how many reads, and what of a sample."""

    rank: int
    world_size: int
    threads: ThreadPoolExecutor  # for an iterable's samples
    modality: str = "image"  # whose codec must have written the index
    payloads: Collection[str] = ()  # extensions of what an iterable's samples hold to be decoded
    members: Collection[str] = ()  # extensions of what else is read of a sample, captions say
    layout: RowLayout | None = None  # of rows that its documents are packed in; None: samples
    buckets: LengthBuckets | None = None  # of batches of similar lengths; None: equally long

    def slots(self, batch_size: int, lanes: int) -> FixedSlots:
        """This rank's places in every batch."""
        return FixedSlots(
            order.slots(
                batch_size=batch_size, lanes=lanes, rank=self.rank, world_size=self.world_size
            )
        )


def open_source(recipe: Recipe, shards: Shards, reading: ReadingRank) -> Source:
    """The stream of a recipe over what the user gave.

    Raises:
        RecipeError: the recipe's stream section does not suit it.
        ShardError: shards that are missing, cut, or empty.
    """
    if recipe.stream.labels and not isinstance(shards, str | Path):
        raise RecipeError(
            f"{recipe.where('stream', 'labels')}: stream.labels = {recipe.stream.labels!r} labels "
            "one packed set by its uids; give that set alone, or leave the labels out"
        )
    if isinstance(shards, Mapping):
        return mixture(recipe, {name: shards[name] for name in sorted(shards)}, reading)
    if recipe.stream.mix:
        names = ", ".join(f"{name}=PATH" for name in recipe.stream.mix)
        raise RecipeError(
            f"{recipe.where('stream', 'mix')}: stream.mix weighs several sets by name, but one "
            f"without a name was given; give {names}, or leave stream.mix out"
        )
    if isinstance(shards, str | Path):
        return single(recipe, open_manifest(shards), reading)
    if isinstance(shards, Manifest):  # a part of a set, which lies nowhere as a file
        return single(recipe, shards, reading)
    return foreign(recipe, shards, reading)


def parse_shards(words: Sequence[str]) -> str | dict[str, str]:
    """`--shards` of the command line: one path, or several NAME=PATH.

    Raises:
        RecipeError: several, not all of them named, or a name twice.
    """
    if len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0]
    named = [word.partition("=") for word in words]
    paths = {name: path for name, _, path in named}
    if len(paths) < len(words) or not all(name and path for name, path in paths.items()):
        raise RecipeError(
            f"--shards {' --shards '.join(words)}: several sets need a name each, all different: "
            "--shards photos=PATH --shards sketches=PATH"
        )
    return paths


def single(recipe: Recipe, manifest: Manifest, reading: ReadingRank) -> Packed:
    """The stream over one packed set."""
    stream = recipe.stream
    lanes = order.lanes_of(stream.lanes, stream.batch_size, recipe.where("stream", "lanes"))
    corpus = corpus_of(recipe, manifest, reading, seed=stream.seed, lanes=lanes)
    say_shared_lanes(recipe, lanes, corpus.store, reading.world_size)
    if reading.layout:
        check_counts(manifest, reading.layout)
        return rows_of(recipe, corpus, reading, reading.layout)
    remainder = remainder_of(recipe)
    check_short(recipe, remainder, corpus.order.samples, reading.world_size)
    if remainder == "wrap":
        check_repeats(recipe, corpus.order.samples, reading.world_size)
    plan = Single(
        corpus.order.samples,
        batch_size=stream.batch_size,
        remainder=remainder,
        epoch_samples=stream.epoch_samples,
    )
    if stream.bucket and reading.buckets:
        return PackedByLength(
            corpus, plan, reading.buckets, reading.slots(stream.batch_size, 1),
            window=stream.bucket.window, seed=stream.seed,
        )  # fmt: skip
    return Packed(
        [corpus],
        plan,
        reading.slots(stream.batch_size, corpus.order.stride),
        identity=corpus.identity,
    )


def rows_of(recipe: Recipe, corpus: Corpus, reading: ReadingRank, layout: RowLayout) -> PackedRows:
    """The stream of rows over one packed set.

    Raises:
        RecipeError: a remainder or a policy that rows do not have, or documents without steps.
    """
    stream, remainder = recipe.stream, remainder_of(recipe)
    # only in order sequential has every epoch as many rows
    ends = ("wrap", "short") if stream.order == "sequential" else ("wrap",)
    if remainder not in ends or stream.on_bad == "exclude":
        wrong = "on_bad" if remainder in ends else "remainder"
        raise RecipeError(
            f"{recipe.where('stream', wrong)}: stream.remainder = {stream.remainder!r} with "
            f"stream.on_bad = {stream.on_bad!r}: rows of one epoch are followed by those of the "
            "next, and a bad document leaves its place empty; use wrap, and mask or raise"
        )
    source = PackedRows(
        corpus,
        layout,
        batch_size=stream.batch_size,
        seed=stream.seed,
        slots=reading.slots(stream.batch_size, 1),
        identity=corpus.fingerprint,
        epoch_rows=stream.epoch_samples,
        remainder=remainder,
        holdout=stream.holdout,
    )
    check_short(recipe, remainder, source.plan.samples, reading.world_size)
    return source


def mixture(recipe: Recipe, paths: Mapping[str, str | Path], reading: ReadingRank) -> Packed:
    """Several packed sets by weight; each has an order, a cursor and epochs of its own.

    Raises:
        RecipeError: the recipe packs rows, which come from one set.
    """
    stream = recipe.stream
    check_mixture(recipe, paths)
    check_bucket(recipe, f"a mixture of {len(paths)} sets")
    if reading.layout:
        raise RecipeError(
            f"{reading.layout.where}: rows are packed from one set, not from a mixture of "
            f"{len(paths)}; pack the sets into one, or leave stream.rows out"
        )
    manifests = {name: open_manifest(path) for name, path in paths.items()}
    sizes = {name: float(kept(manifest)) for name, manifest in manifests.items()}
    turns = turns_of({name: (stream.mix or sizes)[name] for name in paths})
    fits = min(int(sizes[name]) * sum(turns) // n for name, n in zip(paths, turns, strict=True))
    check_repeats(recipe, fits, reading.world_size)
    alike = len({manifest.classes for manifest in manifests.values()}) == 1
    corpora = {
        name: corpus_of(
            recipe,
            manifest,
            reading,
            # by name: adding a set changes no other's order, and equal sets do not walk in step
            seed=sample_id(f"{stream.seed}/{name}") & (2**63 - 1),
            lanes=stream.lanes or lanes_in_mixture(stream.batch_size * turn / sum(turns)),
            labelled=alike,
            corpora=len(paths),
        )
        for (name, manifest), turn in zip(manifests.items(), turns, strict=True)
    }
    say_shared_in_mixture(
        recipe,
        {name: corpus.order.stride for name, corpus in corpora.items()},
        [corpus.store for corpus in corpora.values()],
        reading.world_size,
    )
    plan = Mixture(
        turns,
        batch_size=stream.batch_size,
        seed=stream.seed,
        epoch_samples=stream.epoch_samples or int(sum(sizes.values())),
    )
    return PackedMixture(
        list(corpora.values()), plan, rank=reading.rank, world_size=reading.world_size,
        identity=mixture_identity(corpora, turns),
    )  # fmt: skip


def foreign(recipe: Recipe, samples: Iterable[Any], reading: ReadingRank) -> Foreign:
    """Somebody's iterable: this rank's part of the data, split by its owner."""
    stream = recipe.stream
    check_iterable(recipe)
    length = epoch_length(
        samples, given=stream.epoch_samples, world_size=reading.world_size, where=recipe.path
    )
    return Foreign(
        samples,
        slots=reading.slots(stream.batch_size, 1),
        epoch_samples=length,
        payloads=reading.payloads,
        on_bad=stream.on_bad,
        threads=reading.threads,
    )


def corpus_of(
    recipe: Recipe,
    manifest: Manifest,
    reading: ReadingRank,
    *,
    seed: int,
    lanes: int,
    labelled: bool = True,
    corpora: int = 1,
) -> Corpus:
    """The samples of a manifest that are not excluded, in the recipe's order.

    `corpora` of a mixture share the node's cache.

    Raises:
        RecipeError: the set holds another modality than the recipe's.
        ShardError: all are excluded.
    """
    if manifest.modality != reading.modality:
        raise RecipeError(
            f"{recipe.where('modality')}: modality = {recipe.modality!r} reads sets of "
            f"{reading.modality!r}, but {manifest.root} holds {manifest.modality!r}; give "
            "other shards or another modality"
        )
    if not kept(manifest):
        raise ShardError(f"{manifest.root}: all samples are excluded; give another manifest")
    run = recipe.run
    store = open_store(manifest, cache=run.cache, cache_gb=run.cache_gb, corpora=corpora)
    excluded: list[Sequence[int]] = [manifest.exclude.get(s.file, ()) for s in manifest.shards]
    if recipe.stream.holdout and not reading.layout:  # rows pass over documents by themselves
        excluded = beside(recipe.stream.holdout, store, excluded)
    sizes = [s.samples - len(rows) for s, rows in zip(manifest.shards, excluded, strict=True)]
    return Corpus(
        store,
        order.build_order(
            np.array(sizes, dtype=np.int64),
            kind=recipe.stream.order,
            seed=seed,
            lanes=lanes,
            window=recipe.stream.window,
        ),
        fingerprint=manifest.fingerprint,
        files=[shard.file for shard in manifest.shards],
        excluded={number: rows for number, rows in enumerate(excluded) if rows},
        members=reading.members,
        labelled=labelled,
        relabelled=open_labels(recipe.stream.labels, store) if recipe.stream.labels else None,
    )


def kept(manifest: Manifest) -> int:
    """Samples that are streamed."""
    return manifest.samples - sum(len(rows) for rows in manifest.exclude.values())


def lanes_in_mixture(samples_per_batch: float) -> int:
    """As many lanes as a batch has samples of the corpus; ranks share them out (rank_split.py)."""
    return min(order.MAX_LANES, max(1, round(samples_per_batch)))
