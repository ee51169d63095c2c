"""How tools/fuzz.py spoils bytes: each case is a function of (seed, number)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEAD = 160  # bytes in which most headers lie
LONGEST = 400  # bytes of a range that is spoiled

Generator = np.random.Generator
Mutation = Callable[[bytes, bytes, Generator], bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """Spoiled bytes, and what they were made of."""

    seed: str  # what the whole bytes were called
    kinds: tuple[str, ...]  # of mutations, in their order
    whole: bytes
    data: bytes


def place(data: bytes, rng: Generator) -> int:
    """A place in the bytes: half of the time in the first ones."""
    end = HEAD if rng.random() < 0.5 else len(data)
    return int(rng.integers(0, max(1, min(end, len(data)))))


def length(rng: Generator) -> int:
    """Mostly few bytes."""
    return int(LONGEST ** rng.random())


def flip(data: bytes, other: bytes, rng: Generator) -> bytes:
    """One to eight bits."""
    spoiled = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if spoiled:
            spoiled[place(data, rng)] ^= 1 << int(rng.integers(0, 8))
    return bytes(spoiled)


def cut(data: bytes, other: bytes, rng: Generator) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(0, len(data) + 1))]


def insert(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Random bytes stand between."""
    at = place(data, rng)
    return data[:at] + rng.bytes(length(rng)) + data[at:]


def remove(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A range is missing."""
    at = place(data, rng)
    return data[:at] + data[at + length(rng) :]


def zero(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A range is zeros, now and then all to the end."""
    at, size = place(data, rng), length(rng)
    size = len(data) - at if rng.random() < 0.2 else min(size, len(data) - at)
    return data[:at] + bytes(size) + data[at + size :]


def repeat(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A range stands there several times."""
    at, size = place(data, rng), length(rng)
    return data[:at] + data[at : at + size] * int(rng.integers(2, 6)) + data[at + size :]


def splice(data: bytes, other: bytes, rng: Generator) -> bytes:
    """The beginning of one and the end of another."""
    return data[: place(data, rng)] + other[place(other, rng) :]


def field(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A number of one, two, four or eight bytes has an extreme value, as lengths and sides may."""
    at, size = place(data, rng), int(rng.choice([1, 2, 4, 8]))
    order = "big" if rng.random() < 0.5 else "little"
    value = int(rng.choice(EXTREMES)) % 256**size
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (flip, cut, insert, remove, zero, repeat, splice, field)
}


def mutated(
    data: bytes, other: bytes, rng: Generator, known: dict[str, Mutation] = MUTATIONS
) -> tuple[tuple[str, ...], bytes]:
    """Bytes spoiled once to three times, and how; `other`: where splices take their ends."""
    times = int(rng.choice([1, 1, 2, 3]))
    kinds = tuple(str(kind) for kind in rng.choice(list(known), times))
    for kind in kinds:
        data = known[kind](data, other, rng)
    return kinds, data


def case_of(
    seeds: Sequence[tuple[str, bytes]],
    seed: int,
    number: int,
    *,
    mend: Callable[[bytes], bytes] | None = None,
    known: dict[str, Mutation] = MUTATIONS,
) -> Case:
    """The case of a number; half of the time `mend` gives it checksums that agree."""
    rng = np.random.default_rng([seed, number])
    name, whole = seeds[int(rng.integers(len(seeds)))]
    kinds, data = mutated(whole, seeds[int(rng.integers(len(seeds)))][1], rng, known)
    if mend and rng.random() < 0.5:
        return Case(name, (*kinds, "mended"), whole, mend(data))
    return Case(name, kinds, whole, data)
