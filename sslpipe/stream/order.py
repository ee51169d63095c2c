"""Which sample stands at which position of the infinite stream: pure functions of (sizes, seed).

Position p belongs to epoch p // N; every epoch is an exact permutation of the N samples (in order
`sequential`, the identity). Nothing is replayed, so resuming at any position costs nothing.

`lanes`: shards are laid end to end in an order of the epoch's own and cut into L lanes; slot
p % L walks along one lane, in windows of a few shards whose samples are permuted. A rank that owns
a range of slots touches its own lanes' shards only. It is no global shuffle: pack shuffled shards.
`global`: a Feistel network permutes all N indices; O(1) memory, random reads (local data).
"""

import math
from copy import copy
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from .. import rng
from ..errors import RecipeError
from .lanes import Lanes, distinct_numbers

I64 = npt.NDArray[np.int64]
Kind = Literal["lanes", "global", "sequential"]
MAX_LANES = 256
FEISTEL_ROUNDS = 6
AHEAD = 1 << 13  # positions located in one go where requests follow each other evenly: 0.5 MB


@dataclass(frozen=True, slots=True)
class Located:
    """Where the samples at some positions lie: three (n,) int64 arrays."""

    epochs: I64
    shards: I64
    rows: I64


class Line(Protocol):
    """The order inside an epoch: q in [0, N) -> place on the line of samples."""

    def shards(self, epoch: int) -> I64:
        """The shards in the order in which they lie on the line."""
        ...

    def __call__(self, epoch: int, q: I64) -> I64:
        """Places on the line, (n,) int64."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """Requests that are expected, each `step` positions after the one before it, answered.

    Arrays are (requests, n) int64.
    """

    positions: I64
    step: int
    located: Located

    def find(self, positions: I64) -> Located | None:
        """Return the answer to a request, if it is one of these."""
        if len(positions) != self.positions.shape[1]:
            return None
        number = (int(positions[0]) - int(self.positions[0, 0])) // self.step
        if not 0 <= number < len(self.positions):
            return None
        same = np.array_equal(self.positions[number], positions)
        return self.located_at(number) if same else None

    def located_at(self, number: int) -> Located:
        """Return the answer to one of the requests."""
        located = self.located
        return Located(located.epochs[number], located.shards[number], located.rows[number])


def distance(before: I64, after: I64) -> int:
    """How far a request of several positions lies behind another one; 0: they differ otherwise."""
    if not 1 < len(after) == len(before):  # one position: the substitute of a bad sample
        return 0
    steps = after - before
    return max(0, int(steps[0])) if (steps == steps[0]).all() else 0


class Order:
    """Locate any position of the stream.

    `stride`: positions p and p + stride lie in the same lane; a bad sample at p is replaced by the
    next good one of p + stride, p + 2 * stride, ... on every topology alike.

    A rank asks for the same slots of one batch after another, and NumPy takes as long for 32
    positions as for 1000: what is evenly spaced is located ahead. One thread may use an order; a
    copy is for another one.
    """

    def __init__(self, sizes: I64, line: Line, stride: int) -> None:
        self.sizes = sizes
        self.samples = int(sizes.sum())
        self.line = line
        self.stride = stride
        self._layout: tuple[int, I64, I64] | None = None  # of the last epoch: shards, their ends
        self._last = np.empty(0, dtype=np.int64)  # the request before
        self._block: Block | None = None

    def __copy__(self) -> Self:
        """Share nothing that changes: a line keeps the tables of where it is."""
        return type(self)(self.sizes, copy(self.line), self.stride)

    def locate(self, positions: I64) -> Located:
        """Epoch, shard and row of each position."""
        last, self._last = self._last, positions
        found = self._block and self._block.find(positions)
        if found:
            return found
        step = distance(last, positions)
        requests = min(AHEAD // len(positions), self.samples // step) if step else 1
        if requests < 2:
            return self._locate(positions)
        self._block = self._ahead(positions, step, requests)
        return self._block.located_at(0)

    def _ahead(self, positions: I64, step: int, requests: int) -> Block:
        """Answer a request and those that are expected to follow it."""
        coming = positions + step * np.arange(requests, dtype=np.int64)[:, None]
        located = self._locate(coming.ravel())
        columns = (located.epochs, located.shards, located.rows)
        return Block(coming, step, Located(*(column.reshape(coming.shape) for column in columns)))

    def _locate(self, positions: I64) -> Located:
        epochs, q = np.divmod(positions, self.samples)
        shards, rows = np.empty_like(q), np.empty_like(q)
        for epoch in distinct_numbers(epochs):
            here = epochs == epoch
            shards[here], rows[here] = self._inside(int(epoch), q[here])
        return Located(epochs, shards, rows)

    def _inside(self, epoch: int, q: I64) -> tuple[I64, I64]:
        """Shard and row of places in one epoch."""
        if self._layout is None or self._layout[0] != epoch:
            shards = self.line.shards(epoch)
            self._layout = epoch, shards, np.cumsum(self.sizes[shards])
        _, shards, ends = self._layout
        place = self.line(epoch, q)
        index = np.searchsorted(ends, place, side="right")
        chosen = shards[index]
        return chosen, place - (ends[index] - self.sizes[chosen])


class Sequential:
    """As packed; for evaluation."""

    def __init__(self, sizes: I64) -> None:
        self._shards = np.arange(len(sizes), dtype=np.int64)

    def shards(self, epoch: int) -> I64:
        """The shards in the order in which they were packed."""
        return self._shards

    def __call__(self, epoch: int, q: I64) -> I64:
        """The identity."""
        return q


class Global(Sequential):
    """A keyed permutation of [0, N) by a Feistel network with cycle walking."""

    def __init__(self, sizes: I64, *, seed: int) -> None:
        super().__init__(sizes)
        self.samples, self.seed = int(sizes.sum()), seed
        self.half_bits = max(1, ((self.samples - 1).bit_length() + 1) // 2)
        self._rounds: tuple[int, I64] | None = None  # of the last epoch

    def __call__(self, epoch: int, q: I64) -> I64:
        """Walk on while the network leads outside of [0, N): fewer than 4 steps on average."""
        rounds = self._tables(epoch)
        out = self._network(rounds, q)
        outside = np.flatnonzero(out >= self.samples)
        while len(outside):
            out[outside] = walked = self._network(rounds, out[outside])
            outside = outside[walked >= self.samples]
        return out

    def _network(self, rounds: I64, values: I64) -> I64:
        """A bijection of [0, 2 ** (2 * half_bits))."""
        left, right = values >> self.half_bits, values & np.int64((1 << self.half_bits) - 1)
        for table in rounds:
            left, right = right, left ^ table.take(right)
        return np.asarray(left << self.half_bits | right)

    def _tables(self, epoch: int) -> I64:
        """(FEISTEL_ROUNDS, 2 ** half_bits): what each round makes of each half of a value.

        About sqrt(N) to 2 sqrt(N) words a round: 100 kB at 1e6 samples, 1.5 MB at 1e9.
        """
        if self._rounds is None or self._rounds[0] != epoch:
            mask = np.uint64((1 << self.half_bits) - 1)
            tables = np.empty((FEISTEL_ROUNDS, 1 << self.half_bits), dtype=np.int64)
            for turn, table in enumerate(tables):
                word = rng.words(
                    1, seed=self.seed, epoch=epoch, stream="order/global",
                    ids=np.arange(len(table)), view=turn,
                )  # fmt: skip
                table[:] = word[:, 0] & mask
            self._rounds = epoch, tables
        return self._rounds[1]


def build_order(sizes: I64, *, kind: Kind, seed: int, lanes: int, window: int) -> Order:
    """The order of a corpus whose shards have the given sizes (samples)."""
    if kind == "sequential":
        return Order(sizes, Sequential(sizes), 1)
    if kind == "global":
        return Order(sizes, Global(sizes, seed=seed), 1)
    return Order(sizes, Lanes(sizes, seed=seed, lanes=lanes, window=window), lanes)


def lanes_of(given: int | None, batch_size: int, where: str) -> int:
    """The number of lanes of a recipe; `where` it is given, for the message.

    Raises:
        RecipeError: it does not divide the batch.
    """
    lanes = given or default_lanes(batch_size)
    if batch_size % lanes:
        raise RecipeError(
            f"{where}: stream.lanes = {lanes} does not divide stream.batch_size = {batch_size}; "
            "choose a divisor, or leave lanes out"
        )
    return lanes


def default_lanes(batch_size: int) -> int:
    """The largest divisor of the global batch up to 256."""
    return next(n for n in range(min(MAX_LANES, batch_size), 0, -1) if batch_size % n == 0)


def slots(*, batch_size: int, lanes: int, rank: int, world_size: int) -> I64:
    """The places of a rank's share inside every global batch, ascending: batch_size / world_size.

    A rank owns a range of lanes where that is possible. Else as few ranks as possible share one,
    those beside each other, so that a node still reads shards that no other reads; at worst, a rank
    owns a slice of the batch. The global batch is the same for every world size.
    """
    groups = math.gcd(lanes, world_size)  # of lanes, and of the ranks that walk them
    group, member = divmod(rank, world_size // groups)
    width = lanes // groups
    places = np.arange(batch_size, dtype=np.int64).reshape(-1, lanes)
    mine = places[:, group * width : (group + 1) * width].reshape(-1)
    return np.split(mine, world_size // groups)[member]
