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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .compiled_draws import LOOP, fill_draws
from .philox import MASK, Words, fractions_there, philox, philox_blocks

U64 = npt.NDArray[np.uint64]


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


def key_of(seed: int, epoch: npt.ArrayLike) -> U64:
    """Make the keys of epochs; one for all where they are the same, which saves a sixth."""
    epochs = np.asarray(epoch)
    alike = epochs.ndim == 1 and len(epochs) and (epochs == epochs[:1]).all()
    return key_of_one(seed, int(epochs[0])) if alike else mix(seed, epochs)


@lru_cache(maxsize=1024)
def key_of_one(seed: int, epoch: int) -> U64:
    """Make the key of an epoch, (1,), which nobody may write to: some thirty small calls."""
    key = mix(seed, np.array([epoch]))
    key.flags.writeable = False
    return key


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
    streams = np.full_like(blocks, stream_id(stream))
    drawn = draw_blocks(blocks, streams, seed=seed, epoch=epoch, ids=ids, view=view)
    return np.moveaxis(drawn, 0, -1)[..., :count]


def words_of_blocks(
    blocks: npt.NDArray[np.int64], *, seed: int, epoch: npt.ArrayLike, stream: str
) -> Words:
    """Draw the four words of blocks, each of an epoch of its own: those that `words` has of id 0.

    Arrays are of the shape to which blocks and epochs are broadcast.
    """
    key, mask, zero = mix(seed, epoch), np.uint64(MASK), np.zeros(1, dtype=np.uint64)
    counter = blocks.astype(np.uint64), zero + (stream_id(stream) << 16), zero, zero
    return philox(counter, (key & mask, key >> np.uint64(32)))


def draw_blocks(
    blocks: U64,
    streams: U64,
    *,
    seed: int,
    epoch: npt.ArrayLike,
    ids: npt.ArrayLike,
    view: npt.ArrayLike,
    dtype: type[np.uint64] | type[np.float64] = np.uint64,
) -> npt.NDArray[Any]:
    """Draw the four words of each of n blocks, of the stream beside it: (4 * n, ...).

    Samples lie innermost: NumPy is slow where the last axis is short. dtype: float64 for uniforms.
    """
    key = key_of(seed, epoch)
    uid = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    views = np.asarray(view, dtype=np.uint64)
    shape = np.broadcast_shapes(np.shape(epoch), uid.shape, views.shape)
    if LOOP:
        made = np.empty((4 * len(blocks), *shape), dtype=dtype)
        fill_draws(made, blocks, streams, views, uid, key)
        return made
    blocks, streams = (each.reshape(-1, *[1] * len(shape)) for each in (blocks, streams))
    mask, shift = np.uint64(MASK), np.uint64(32)
    counter = blocks, streams << np.uint64(16) | views, uid & mask, uid >> shift
    drawn = philox_blocks(counter, (key & mask, key >> shift), shape)
    words = drawn.reshape(4 * len(blocks), *shape)
    return fractions_there(words) if dtype is np.float64 else words


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
    blocks = np.arange(first, first + (count + 3) // 4, dtype=np.uint64)
    streams = np.full_like(blocks, stream_id(stream))
    drawn = draw_blocks(
        blocks, streams, seed=seed, epoch=epoch, ids=ids, view=view, dtype=np.float64
    )
    return np.moveaxis(drawn, 0, -1)[..., :count]


def fractions(raw: U64) -> npt.NDArray[np.float64]:
    """Make float64 in [0, 1), multiples of 2**-24, of u32."""
    made: npt.NDArray[np.float64] = np.multiply(raw >> np.uint64(8), 2.0**-24)
    return made


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
        drawn = self.blocks({stream: range((count + 3) // 4) for stream, count in counts.items()})
        return {stream: drawn[stream][..., :count] for stream, count in counts.items()}

    def blocks(self, numbers: Mapping[str, Sequence[int]]) -> dict[str, npt.NDArray[np.float64]]:
        """Draw some blocks of four uniforms of each of many streams: (V, B, 4 n), in one pass."""
        sizes = [len(some) for some in numbers.values()]
        ids = np.array([stream_id(stream) for stream in numbers], dtype=np.uint64)
        found = draw_blocks(
            np.array([block for some in numbers.values() for block in some], dtype=np.uint64),
            np.repeat(ids, sizes),
            seed=self.seed,
            epoch=self.epochs,
            ids=self.uids,
            view=self.views[:, None],
            dtype=np.float64,
        )
        drawn, ends = np.moveaxis(found, 0, -1), list(accumulate(sizes, initial=0))
        return {
            stream: drawn[..., 4 * start : 4 * end]
            for stream, (start, end) in zip(numbers, pairwise(ends), strict=True)
        }

    def at(self, places: slice) -> Keys:
        """Take some samples of the batch."""
        return replace(self, epochs=self.epochs[places], uids=self.uids[places])

    def four_words(self, stream: str, count: int) -> Words:
        """Draw (V, B, count) first words of as many blocks, and the second, third, fourth ones.

        They are those of `words`, which puts the four of a block behind each other.
        """
        uid, mask = self.uids.astype(np.uint64)[:, None], np.uint64(MASK)
        shift, key = np.uint64(32), key_of(self.seed, self.epochs)[:, None]
        of_stream = np.uint64(stream_id(stream) << 16) | self.views.astype(np.uint64)[:, None, None]
        counter = np.arange(count, dtype=np.uint64), of_stream, uid & mask, uid >> shift
        return philox(counter, (key & mask, key >> shift))

    def ragged(self, stream: str, blocks: npt.NDArray[np.int64]) -> U64:
        """Draw the first `blocks` (B,) blocks of each id: (sum of blocks, 4) u32, held in uint64.

        Those of an id are what `words` draws of the first view; ids lie behind each other.
        """
        first, mask, shift = np.cumsum(blocks) - blocks, np.uint64(MASK), np.uint64(32)
        inside = np.arange(int(blocks.sum())) - np.repeat(first, blocks)
        key, uids = key_of(self.seed, self.epochs), self.uids.astype(np.uint64)
        key = np.repeat(key, blocks) if len(key) > 1 else key
        low, high = (np.repeat(half, blocks) for half in (uids & mask, uids >> shift))
        stream_view = np.uint64(stream_id(stream)) << np.uint64(16) | self.views[:1].astype(
            np.uint64
        )
        counter = inside.astype(np.uint64), stream_view, low, high
        return np.stack(philox(counter, (key & mask, key >> shift)), axis=1)

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
    # its slots, or what finds them: few draws ask, and those of a mixture are found from all slots
    own: npt.NDArray[np.int64] | Callable[[], npt.NDArray[np.int64]]
    size: int  # samples of the global batch
    # (m, 4), of packed rows: see stream.source.SEGMENT
    segments: npt.NDArray[np.int64] = field(default_factory=whole_samples)
    row_length: int = 0  # of packed rows; 0: there are none

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """Where in the global batch they stand: (B,) in [0, size)."""
        return self.own() if callable(self.own) else self.own

    def all_slots(self, keys: Keys) -> Keys:
        """Make one key per slot of the global batch: draws are (V, size), a rank keeps its own."""
        steps = np.full(self.size, self.step, dtype=np.int64)
        return replace(keys, epochs=steps, uids=np.arange(self.size, dtype=np.int64))

    def one_for_all(self, keys: Keys) -> Keys:
        """Make one key for all samples and views of the global batch: draws are (1, 1, ...)."""
        zero = np.zeros(1, dtype=np.int64)
        return replace(keys, epochs=zero + self.step, uids=zero, views=zero)
