"""Somebody's iterable of samples as a source: a webdataset pipeline, a list of dicts.

Order, split among ranks and reading are the iterable's own, so a share is no function of the step:
a resumed run takes up the count of steps, not the place in the data. Views stay keyed by
(seed, epoch, uid, view), uid being the hash of the key. An epoch, as far as they are concerned,
ends where the iterable ends, and where as many samples were taken as an epoch has: so a resampled
pipeline, which never ends, has new views of a sample in every epoch. A key that comes twice within
one epoch gets the same views twice: telling them apart would need a memory of all keys.

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
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

from ..errors import RecipeError, SampleError, ShardError
from ..rng import sample_id
from ..shards.scan import class_id
from ..shards.tar_headers import escaped
from .order import I64
from .plan import FixedSlots
from .reader import Sample
from .source import SUBSTITUTES, Fault, OnBad

log = logging.getLogger(__name__)

T = TypeVar("T")
Decode = Callable[[Sample, int], T]  # of a sample and its epoch; SampleError if it is bad
Numbered = tuple[int, Any]  # epoch, what the iterable gave


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """One sample, without its bytes; `faults` tell of the bad ones that it stands in for."""

    sample: Sample
    decoded: T | None  # None: it is bad, and policy `mask` leaves its place empty
    epoch: int
    faults: tuple[Fault, ...] = ()
    bad: bool = False


class Foreign:
    """Batches, a sample for each of `slots`, of an iterable of dicts with `__key__` and raw bytes.

    payloads: extensions, lower case; the one field of a sample with such a name is decoded.
    epoch_samples: per rank; decides the length of an epoch.
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
        on_bad: OnBad,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._samples, self._slots, self._epoch_samples = samples, slots, epoch_samples
        self._payloads, self._on_bad, self._threads = payloads, on_bad, threads
        self._lock = threading.Lock()
        self._next = 0  # the step that the iterator stands at
        self._stream = numbered(samples, 0, epoch_samples)

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self._epoch_samples // self._slots.share)

    def load(self, step: int, decode: Decode[T]) -> list[Loaded[T]]:
        """The next samples; asking for another than the next step iterates anew."""
        with self._lock:
            if step != self._next:
                self._stream = numbered(self._samples, step // len(self), self._epoch_samples)
            self._next = -1  # an iterator that raises is done for: after an error, begin anew
            loaded = self._decoded(decode, self._slots.share)
            check_keys(loaded)
            self._next = step + 1
            return loaded

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

    def _decoded(self, decode: Decode[T], count: int) -> list[Loaded[T]]:
        """`count` samples; in place of those that are replaced come the next ones."""
        taken = list(islice(self._stream, count))
        found = list(self._threads.map(lambda item: self._try(decode, item), taken))
        good: list[Loaded[T]] = []
        faults: list[Fault] = []
        while len(good) < count:
            for loaded in found:
                if loaded.bad and self._on_bad == "replace":
                    faults.extend(loaded.faults)
                else:
                    good.append(stands_in(loaded, faults))
                    faults = []
            if len(faults) >= SUBSTITUTES:
                raise ShardError(
                    f"iterable: {SUBSTITUTES} bad samples in a row, the last: {faults[-1].reason}"
                )
            found = [self._try(decode, x) for x in islice(self._stream, count - len(good))]
        return good

    def _try(self, decode: Decode[T], item: Numbered) -> Loaded[T]:
        """A sample with its pixels, or without them and with its fault.

        Raises:
            SampleError: it does not decode, and the policy is `raise`.
            ShardError: it is no dict of raw bytes.
        """
        epoch, fields = item
        sample = sample_of(fields, self._payloads)
        try:
            return Loaded(without_bytes(sample, sample.label), decode(sample, epoch), epoch)
        except SampleError as error:
            url = str(fields.get("__url__", "iterable"))
            reason = f"{url} {sample.key}: {error}"
            if self._on_bad == "raise":
                raise SampleError(reason) from error
            fault = Fault(url, None, sample.uid, sample.key, reason, epoch)
            return Loaded(without_bytes(sample, -1), None, epoch, (fault,), bad=True)


def check_keys(loaded: Sequence[Loaded[Any]]) -> None:
    """Whether samples have keys of their own: an iterable that counts wrongly gives all the same.

    Raises:
        ShardError: all samples of a batch have one key.
    """
    keys = {each.sample.key for each in loaded}
    if len(loaded) > 1 and len(keys) == 1:
        raise ShardError(
            f"iterable: gave {len(loaded)} samples with the one key {keys.pop()!r}; give each its "
            "own '__key__', by which its crops and masks are drawn"
        )


def stands_in(loaded: Loaded[T], faults: list[Fault]) -> Loaded[T]:
    """The sample, told which ones it stands in for."""
    return replace(loaded, faults=(*faults, *loaded.faults))


def numbered(samples: Iterable[Any], epoch: int, epoch_samples: int) -> Generator[Numbered]:
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


def sample_of(fields: Any, payloads: Collection[str]) -> Sample:
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
    members = {str(name): value for name, value in fields.items() if isinstance(value, bytes)}
    return Sample(sample_id(key), key, label_of(fields.get("cls"), key), data, members=members)


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


def without_bytes(sample: Sample, label: int) -> Sample:
    """The identity of a sample: its memory is taken by the next one, still in the CPU's cache."""
    return Sample(sample.uid, sample.key, label, b"")
