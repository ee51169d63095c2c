"""Somebody's iterable of samples as a source: a webdataset pipeline, a list of dicts.

Order, split among ranks and reading are the iterable's own, so a share is no function of the step:
a resumed run takes up the count of steps, not the place in the data. Views stay keyed by
(seed, epoch, uid, view), uid being the hash of the key. An epoch, as far as they are concerned,
ends where the iterable ends, and where as many samples were taken as an epoch has: so a resampled
pipeline, which never ends, has new views of a sample in every epoch. A key that comes twice within
one epoch gets the same views twice: telling them apart would need a memory of all keys.

It is iterated in one thread, ahead of what is needed unless `run.prefetch` is 0; workers decode
what it gave (foreign_loader.py).

An iterable of your own: save this as `mine.py`, then `load(recipe, shards=mine.Photos("photos"))`.

```python
from pathlib import Path


class Photos:  # the JPEGs of a folder; a run on several ranks gives each rank its own ones
    def __init__(self, folder):
        self.paths = sorted(Path(folder).rglob("*.jpg"))

    def __len__(self):  # or set stream.epoch_samples
        return len(self.paths)

    def __iter__(self):  # the samples of an epoch: a unique key, and one field of raw bytes
        for path in self.paths:
            yield {"__key__": path.stem, "jpg": path.read_bytes()}
```
"""

import logging
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ..errors import RecipeError, SampleError, ShardError, StateError
from ..rng import sample_id
from ..shards.scan import class_id
from ..shards.tar_headers import escaped
from .order import I64
from .plan import FixedSlots

log = logging.getLogger(__name__)

PHOTO = 100_000  # bytes of a usual payload: an iterable does not tell those of its own


class ForeignSample(NamedTuple):
    """A sample as an iterable gave it."""

    uid: int
    key: str
    label: int  # -1: none
    epoch: int
    url: str  # where it is from, for messages
    members: Sequence[tuple[str, bytes]]  # extension and bytes; the payload first


class Foreign:
    """An iterable of dicts with `__key__` and raw bytes, a sample for each of `slots` in a batch.

    payloads: extensions, lower case; the one field of a sample with such a name is its payload.
    members: those of what else is wanted of it. epoch_samples: per rank; the length of an epoch.
    """

    exact = False
    identity = "foreign"

    def __init__(
        self,
        samples: Iterable[Any],
        *,
        slots: FixedSlots,
        epoch_samples: int,
        payloads: Collection[str],
        members: Collection[str],
    ) -> None:
        self._samples, self._slots, self._epoch_samples = samples, slots, epoch_samples
        self._payloads, self._members, self.share = payloads, members, slots.share
        self._stream = numbered(samples, 0, epoch_samples)

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self._epoch_samples // self._slots.share)

    @property
    def rank_epoch(self) -> tuple[int, int]:
        """About how many samples and bytes this rank reads in an epoch."""
        return self._epoch_samples, PHOTO * self._epoch_samples

    def begin(self, step: int) -> None:
        """Iterate anew; what comes first is of the epoch of a step."""
        self._stream.close()
        self._stream = numbered(self._samples, step // len(self), self._epoch_samples)

    def take(self, count: int) -> tuple[list[ForeignSample], Exception | None]:
        """The next samples; fewer with the error at which the iterable ended, for ever."""
        taken: list[ForeignSample] = []
        try:
            for epoch, fields in islice(self._stream, count):
                taken.append(foreign_sample(fields, epoch, self._payloads, self._members))
        except Exception as error:
            self._stream.close()
            return taken, error
        return taken, StateError("iterable: was closed") if len(taken) < count else None

    def slots_at(self, step: int) -> I64:
        """The places that this rank's samples would have in a batch of a packed set."""
        return self._slots.at(step)

    def row_length(self, step: int) -> int:
        """None: samples are samples."""
        return 0

    def anchor(self, step: int) -> dict[str, Any]:
        """Nothing: where an iterable stands is not known."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Say that the data starts anew."""
        log.warning("stream state: the iterable starts anew; steps go on at %d", state["step"])

    def close(self) -> None:
        """Close the iterator; the iterable itself is the user's."""
        self._stream.close()


def check_keys(keys: Collection[str]) -> None:
    """Whether samples have keys of their own: an iterable that counts wrongly gives all the same.

    Raises:
        ShardError: all samples of a batch have one key.
    """
    if len(keys) > 1 and len(set(keys)) == 1:
        raise ShardError(
            f"iterable: gave {len(keys)} samples with the one key {next(iter(keys))!r}; give each "
            "its own '__key__', by which its crops and masks are drawn"
        )


def numbered(samples: Iterable[Any], epoch: int, epoch_samples: int) -> Generator[tuple[int, Any]]:
    """The samples of pass after pass with the number of their epoch.

    Raises:
        ShardError: a pass is empty.
    """
    while True:
        count = 0
        for sample in samples:
            yield epoch + count // epoch_samples, sample
            count += 1
        if count == 0:
            raise ShardError(
                "iterable: gives no samples; if it did before, it can be iterated only once: give "
                "a list or a webdataset pipeline, or set stream.epoch_samples to what it holds"
            )
        epoch += -(-count // epoch_samples)


def epoch_length(samples: Iterable[Any], *, given: int | None, world_size: int, where: str) -> int:
    """Samples per epoch and rank: `given` is over all ranks, the iterable's length is this one's.

    Raises:
        RecipeError: nobody says it, or on several ranks only the iterable, of its own part; or it
            is none.
    """
    if not isinstance(samples, Iterable):
        raise RecipeError(
            f"{where}: shards={samples!r} is no folder, manifest or iterable of samples; give one"
        )
    if given is not None:
        return max(1, given // world_size)
    try:
        length = len(samples)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # none, or one that Python refuses
        raise RecipeError(
            f"{where}: the iterable has no length; set stream.epoch_samples (over all ranks), or "
            "give the iterable one: dataset.with_length(samples)"
        ) from None
    if not length:
        raise RecipeError(f"{where}: the iterable says 0 samples; give one that holds some")
    if world_size > 1:
        raise RecipeError(
            f"{where}: the iterable says {length} samples, of this rank only; set "
            "stream.epoch_samples (over all ranks), so that epochs are equal on every rank"
        )
    return length


def foreign_sample(
    fields: Any, epoch: int, payloads: Collection[str], members: Collection[str]
) -> ForeignSample:
    """Key, label and raw bytes of a dict in webdataset's form.

    Raises:
        ShardError: no dict, no key, or not exactly one payload of raw bytes.
    """
    if not isinstance(fields, Mapping) or "__key__" not in fields:
        raise ShardError(
            f"iterable: gave {type(fields).__name__} without '__key__'; give dicts as "
            "wds.WebDataset does, without .to_tuple() or .batched()"
        )
    key = escaped(str(fields["__key__"]))
    found = [name for name in fields if str(name).lower() in payloads]
    if len(found) != 1:
        raise ShardError(
            f"iterable: sample {key} has the fields {sorted(map(str, fields))}, of which "
            f"{len(found)} can be decoded; keep one of {', '.join(sorted(payloads))}"
        )
    data = fields[found[0]]
    if not isinstance(data, bytes):
        raise ShardError(
            f"iterable: sample {key}.{found[0]} is {type(data).__name__}, not raw bytes; "
            "leave .decode() out, sslpipe decodes"
        )
    blocks = [(str(found[0]), data)]
    if members:
        blocks += [
            (str(name), value)
            for name, value in fields.items()
            if isinstance(value, bytes) and str(name).rpartition(".")[2] in members
        ]
    url = str(fields.get("__url__", "iterable"))
    return ForeignSample(sample_id(key), key, label_of(fields.get("cls"), key), epoch, url, blocks)


def label_of(value: Any, key: str) -> int:
    """The class id that a sample's `cls` is, in any form that `class_id` knows; -1: it has none.

    Raises:
        ShardError: it is something else.
    """
    try:
        return class_id(value)
    except SampleError as error:
        raise ShardError(
            f"iterable: sample {key}: {error}; number the classes, or leave the field 'cls' out"
        ) from None
