"""Randomness as a function: Philox 4x32-10, keyed by the place of use. Nothing is ever consumed.

The generator is in philox.py. The layout:

    key     = (low, high) word of mix(seed, epoch)
    counter = (block, stream << 16 | view, low, high word of the sample id)

A `stream` is the 16-bit hash of the name of what is drawn ("ColorJitter", "masks/random"), so
inserting or removing one draw never changes another. Uniforms are multiples of 2**-24: exact in
float32 and equal on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .philox import HALF, LOW, philox

U64 = npt.NDArray[np.uint64]
SIXTEEN, EIGHT = (np.array(count, dtype=np.uint64) for count in (16, 8))


def splitmix64(x: U64) -> U64:
    """Mix 64-bit words, one to one (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def mix(seed: int, epoch: npt.ArrayLike) -> U64:
    """Make 64-bit keys of a seed and an array of epochs."""
    epochs = np.asarray(epoch, dtype=np.uint64)
    return splitmix64(splitmix64(np.asarray(seed, dtype=np.uint64)) ^ epochs)


@lru_cache(maxsize=1024)
def mixed(seed: int, epoch: int) -> tuple[U64, U64]:
    """Make the two words of the key of one epoch."""
    key = mix(seed, epoch)
    return key & LOW, key >> HALF


def key_of(seed: int, epoch: npt.ArrayLike) -> tuple[U64, U64]:
    """Make the two words of the key of each epoch; of one for all, as a batch has, one pair."""
    epochs = np.asarray(epoch, dtype=np.int64)
    first = epochs.item(0) if epochs.size else 0
    if (epochs == first).all():
        return mixed(seed, first)
    key = mix(seed, epochs)
    return key & LOW, key >> HALF


@lru_cache(maxsize=1024)
def stream_id(name: str) -> int:
    """Hash the name of a draw to 16 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2).digest(), "little")


def sample_id(name: str) -> int:
    """Hash the name of a sample in its data set to its stable 64-bit id, as int64."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def piece_ids(uids: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Make ids of pieces of samples, of (uid, start), (n,): the uid where start is 0."""
    mixed = splitmix64(uids.view(np.uint64) ^ splitmix64(starts.astype(np.uint64)))
    return np.where(starts == 0, uids, mixed.view(np.int64))


def words(
    count: int,
    *,
    seed: int,
    epoch: npt.ArrayLike,
    stream: str,
    ids: npt.ArrayLike,
    view: npt.ArrayLike = 0,
    first: int = 0,
) -> U64:
    """Draw `count` u32 per element of the broadcast epoch, ids and view: (..., count) uint64.

    `first`: the block of four words to begin with, for draws that are taken bit by bit.
    """
    blocks = np.arange(first, first + (count + 3) // 4, dtype=np.uint64)
    streams = np.array([stream_id(stream)], dtype=np.uint64)
    drawn = draw_blocks(blocks, streams, seed=seed, epoch=epoch, ids=ids, view=view)
    return words_last(drawn)[..., :count]


def draw_blocks(
    blocks: U64,
    streams: U64,
    *,
    seed: int,
    epoch: npt.ArrayLike,
    ids: npt.ArrayLike,
    view: npt.ArrayLike,
) -> U64:
    """Draw the four words of each of n blocks, of the stream beside it: (4 * n, ...) uint64.

    Of one stream, (1,), are all. Samples lie innermost: NumPy is slow where the last axis is short.
    """
    uid = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    views = np.asarray(view, dtype=np.uint64)
    shape = np.broadcast(np.asarray(epoch), uid, views).shape
    blocks, streams = (each.reshape(-1, *[1] * len(shape)) for each in (blocks, streams))
    counter = (blocks, streams << SIXTEEN | views, uid & LOW, uid >> HALF)
    drawn = np.empty((len(blocks), 4, *shape), dtype=np.uint64)
    for word, out in enumerate(philox(counter, key_of(seed, epoch))):
        drawn[:, word] = out
    return drawn.reshape(4 * len(blocks), *shape)


def words_last(drawn: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Move the first axis behind the others; a tenth of the time of np.moveaxis."""
    return drawn.transpose(*range(1, drawn.ndim), 0)


def uniforms(
    count: int,
    *,
    seed: int,
    epoch: npt.ArrayLike,
    stream: str,
    ids: npt.ArrayLike,
    view: npt.ArrayLike = 0,
    first: int = 0,
) -> npt.NDArray[np.float64]:
    """Draw as `words` does, and make float64 in [0, 1) of it, multiples of 2**-24."""
    raw = words(count, seed=seed, epoch=epoch, stream=stream, ids=ids, view=view, first=first)
    return fractions(raw)


def fractions(raw: U64) -> npt.NDArray[np.float64]:
    """Make float64 in [0, 1), multiples of 2**-24, of u32."""
    return (raw >> EIGHT).astype(np.float64) * 2.0**-24


def words64(ids: npt.ArrayLike, *, seed: int, stream: str, epoch: npt.ArrayLike = 0) -> U64:
    """Draw one 64-bit word per id: what samples are chosen or put in order by, each on its own."""
    drawn = words(2, seed=seed, epoch=epoch, stream=stream, ids=ids)
    return drawn[..., 0] << np.uint64(32) | drawn[..., 1]


@dataclass(frozen=True, slots=True)
class Keys:
    """The identity of a batch for drawing: who (uids), when (seed, epochs) and which views.

    epochs, uids: (B,) int64; views: (V,) int64. Draws have the leading shape (V, B).
    """

    seed: int
    epochs: npt.NDArray[np.int64]
    uids: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]

    def at(self, places: slice) -> Keys:
        """Take some samples of the batch."""
        return replace(self, epochs=self.epochs[places], uids=self.uids[places])

    def uniforms(self, stream: str, count: int, *, first: int = 0) -> npt.NDArray[np.float64]:
        """Draw (V, B, count) float64 in [0, 1), beginning with block `first` of four words."""
        return uniforms(
            count,
            seed=self.seed,
            epoch=self.epochs,
            stream=stream,
            ids=self.uids,
            view=self.views[:, None],
            first=first,
        )

    def together(self, counts: Mapping[str, int]) -> dict[str, npt.NDArray[np.float64]]:
        """Draw as `uniforms` does for many streams, stream -> (V, B, count), in one pass."""
        if not counts:
            return {}
        sizes = [(count + 3) // 4 for count in counts.values()]
        ids = np.array([stream_id(stream) for stream in counts], dtype=np.uint64)
        blocks = [np.arange(size, dtype=np.uint64) for size in sizes]
        raw = draw_blocks(
            np.concatenate([np.empty(0, np.uint64), *blocks]),
            np.repeat(ids, sizes),
            seed=self.seed,
            epoch=self.epochs,
            ids=self.uids,
            view=self.views[:, None],
        )
        drawn = words_last(fractions(raw))
        starts = 4 * np.cumsum([0, *sizes])
        return {
            stream: drawn[..., start : start + count]
            for (stream, count), start in zip(counts.items(), starts[:-1].tolist(), strict=True)
        }

    def ragged(self, stream: str, blocks: npt.NDArray[np.int64]) -> U64:
        """Draw the first `blocks` (B,) blocks of each id: (sum of blocks, 4) u32, held in uint64.

        Those of an id are what `words` draws of the first view; ids lie behind each other.
        """
        owners = np.repeat(np.arange(len(blocks)), blocks)
        inside = np.arange(len(owners)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        key = [word[owners] if word.ndim else word for word in key_of(self.seed, self.epochs)]
        uid = self.uids.astype(np.uint64)[owners]
        stream_view = np.uint64(stream_id(stream)) << np.uint64(16) | self.views[:1].astype(
            np.uint64
        )
        counter = inside.astype(np.uint64), stream_view, uid & LOW, uid >> HALF
        return np.stack(philox(counter, (key[0], key[1])), axis=1)

    def blocks(self, stream: str, count: int) -> tuple[U64, U64, U64, U64]:
        """Draw (V, B, count) first words of as many blocks, and the second, third, fourth ones.

        They are those of `words`, which puts them behind each other.
        """
        uid = self.uids.astype(np.uint64)[:, None]
        of_stream = np.uint64(stream_id(stream) << 16) | self.views.astype(np.uint64)[:, None, None]
        key = key_of(self.seed, self.epochs)
        low, high = (word[:, None] if word.ndim else word for word in key)
        places = np.arange(count, dtype=np.uint64)
        return philox((places, of_stream, uid & LOW, uid >> HALF), (low, high))

    def words(self, stream: str, count: int) -> U64:
        """Draw (V, B, count) u32, held in uint64."""
        return words(
            count,
            seed=self.seed,
            epoch=self.epochs,
            stream=stream,
            ids=self.uids,
            view=self.views[:, None],
        )


def whole_samples() -> npt.NDArray[np.int64]:
    """Make the table of segments of a batch whose samples are whole: none."""
    return np.empty((0, 4), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank's samples stand in a global batch: for draws that couple its samples.

    Whoever knows the step knows the draws of all `size` slots, so coupling needs no communication.
    """

    step: int
    slots: npt.NDArray[np.int64]  # (B,) in [0, size)
    size: int  # samples of the global batch
    # (m, 4), of packed rows: see stream.source.SEGMENT
    segments: npt.NDArray[np.int64] = field(default_factory=whole_samples)
    row_length: int = 0  # of packed rows; 0: there are none

    def all_slots(self, keys: Keys) -> Keys:
        """Make one key per slot of the global batch: draws are (V, size), a rank keeps its own."""
        steps = np.full(self.size, self.step, dtype=np.int64)
        return replace(keys, epochs=steps, uids=np.arange(self.size, dtype=np.int64))

    def one_for_all(self, keys: Keys) -> Keys:
        """Make one key for all samples and views of the global batch: draws are (1, 1, ...)."""
        zero = np.zeros(1, dtype=np.int64)
        return replace(keys, epochs=zero + self.step, uids=zero, views=zero)
