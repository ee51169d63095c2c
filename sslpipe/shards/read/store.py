"""Shards where they lie: here, in the node's cache, or read in ranges from where they are.

    local tar     opened; its size is compared with the manifest
    distant tar   with a cache: downloaded once per node, checked, leased (cache.py)
                  without: one range request per sample; right, but slow

Every index is compared with the manifest before it is used. What a fault leads to is in the table
of shards/README.md.
"""

import logging
import os
import resource
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, ShardError
from ...process import node_ranks, regular_file, without_tilde
from ..index import Index, parse_index
from ..manifest import MISSING, Manifest, Shard, cut_fault
from ..verification import check_meant
from .cache import Distant, NodeCache
from .download import Patience, is_url, local_path, read_whole
from .open_tars import DistantTar, LocalTar, RangeReader, ShardTar

log = logging.getLogger(__name__)
INDEXES = 1024  # kept in memory at most: 40 bytes per sample, 20 per member
INDEXED = 1 << 21  # samples of them, about: 126 MB
MOST_OPEN = 1024
DOWNLOADS = 4  # at a time: one stream of an object store is slower than a network card
T = TypeVar("T")


class Recent(Generic[T]):
    """The last `size` things that were made, by number; thread-safe.

    What is there is found without a lock: it is looked up for every sample.
    """

    def __init__(self, make: Callable[[int], T], size: int) -> None:
        self._make, self._size = make, size
        self._kept: dict[int, T] = {}
        self._lock = threading.Lock()

    def __call__(self, number: int) -> T:
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        made = self._make(number)  # outside the lock: two threads may make the same, one is kept
        with self._lock:
            kept = self._kept.setdefault(number, made)
            while len(self._kept) > self._size:
                self._kept.pop(next(iter(self._kept)))
        return kept

    def __contains__(self, number: int) -> bool:
        return number in self._kept

    def drop(self, unwanted: Callable[[int], bool]) -> None:
        """Let go of the shards that are `unwanted`; each closes with its last reader."""
        with self._lock:
            for number in [number for number in self._kept if unwanted(number)]:
                del self._kept[number]


class ShardStore:
    """The shards of a manifest, by number. `open` may be called from many threads.

    `room`: bytes of distant tars that this process may hold at a time.
    `fetched`: (n,) bytes that each shard takes of it; 0: none, it is here or read in ranges.
    """

    def __init__(
        self, manifest: Manifest, cache: NodeCache | None, *, room: int, patience: Patience
    ) -> None:
        self.manifest, self._cache, self._patience = manifest, cache, patience
        self.room = room
        self.fetched: npt.NDArray[np.int64] = np.array(
            [s.bytes if cache and is_url(manifest.tar_place(s)) else 0 for s in manifest.shards],
            dtype=np.int64,
        )
        self._indexes = Recent(self._read_index, indexes_kept(manifest))
        self._beside = Recent(self._place_beside, INDEXES)  # a path takes 30 us, a sample 20
        self._opened: Recent[ShardTar] = Recent(self._open, open_files())
        self._queued: set[int] = set()
        self._wanted: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._downloads = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="fetch")

    @property
    def bytes(self) -> int:
        """The size of all tars together."""
        return sum(shard.bytes for shard in self.manifest.shards)

    @property
    def shards(self) -> int:
        """How many shards there are; they are numbered from 0."""
        return len(self.manifest.shards)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of labels 0, 1, ...; empty where the manifest names none."""
        return self.manifest.classes

    @property
    def distant(self) -> bool:
        """Whether its first tar lies elsewhere."""
        return is_url(self.manifest.tar_place(self.manifest.shards[0]))

    @property
    def place(self) -> str:
        """Where the manifest lies, for messages."""
        return str(self.manifest.root)

    def open(self, shard: int) -> ShardTar:
        """The shard, fetched if need be.

        Raises:
            ShardError: it or its index is missing, cut, changed, or cannot be fetched.
        """
        return self._opened(shard)

    def index(self, shard: int) -> Index:
        """The index of a shard, whose tar need not be here.

        Raises:
            ShardError: it is missing, damaged, or another one.
        """
        return self._indexes(shard)

    def holds(self, shard: int) -> bool:
        """Whether the shard may stay open: it is no distant one that was given up."""
        return not self.fetched[shard] or shard in self._opened

    def name(self, shard: int) -> str:
        """The file of a shard, for messages."""
        return self.manifest.shards[shard].file

    def beside(self, shard: int) -> str:
        """Where a tar lies, or would lie, beside the manifest: so do files that are made of it."""
        return self._beside(shard)

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these in this order, in the background; end the leases of all other distant tars.

        More than `room` holds, or more than files may be open, are left to `open`.
        """
        first = [number for number in shards if self.fetched[number]][: open_files() // 2]
        self._wanted = frozenset(first)
        self._opened.drop(lambda number: self.fetched[number] > 0 and number not in self._wanted)
        with self._lock:
            new = [n for n in first if n not in self._opened and n not in self._queued]
            self._queued.update(new)
        for number in new:
            self._downloads.submit(self._fetch_ahead, number)

    def close(self) -> None:
        """Stop the downloads, those in hand at their end, and close the files."""
        self._wanted = frozenset()
        self._downloads.shutdown(cancel_futures=True)
        self._opened.drop(lambda _: True)

    def _fetch_ahead(self, number: int) -> None:
        """One download of the background. The reader meets its error when it comes there."""
        try:
            if number in self._wanted:
                self._opened(number)
        except (ShardError, ExtraError) as error:
            log.warning("not fetched ahead: %s", error)
        finally:
            with self._lock:
                self._queued.discard(number)

    def _open(self, number: int) -> ShardTar:
        shard, index = self.manifest.shards[number], self._indexes(number)
        place = self.manifest.tar_place(shard)
        if not is_url(place):
            return LocalTar(open_local(local_path(place), shard), index)
        if self._cache is None:
            return DistantTar(RangeReader(str(place), self._patience), index)
        tar = Distant(str(place), shard.bytes, shard.sha256)
        return LocalTar(self._cache.fetch(tar), index)

    def _place_beside(self, number: int) -> str:
        index = self.manifest.index_place(self.manifest.shards[number])
        found = str(index.absolute()) if isinstance(index, Path) else index
        return found.removesuffix(".idx")

    def _read_index(self, number: int) -> Index:
        """The index that the manifest means.

        Raises:
            ShardError: it is missing, damaged, or another one.
        """
        shard = self.manifest.shards[number]
        place = self.manifest.index_place(shard)
        try:
            data = read_whole(place, self._patience)
        except OSError as error:
            raise ShardError(f"{place}: cannot be read ({error}); pack or copy it again") from error
        return check_meant(parse_index(data, str(place)), data, shard, str(place))


def open_store(
    manifest: Manifest,
    *,
    cache: str | Path | None = None,
    cache_gb: float | None = None,
    processes: int | None = None,
    corpora: int = 1,
    patience: Patience | None = None,
) -> ShardStore:
    """The store of a manifest.

    cache: a folder on this node's disk for tars that lie elsewhere; None: they are read in ranges.
    cache_gb: 1e9 bytes that the cache may hold; None: nine tenths of what is free.
    processes: of this node that share the cache, in equal parts; None: the launcher's number.
    corpora: of each process, which share its part.

    Raises:
        ShardError: the cache folder cannot be made.
        SslpipeError: it begins with a `~` that is nobody's home.
    """
    patience = patience or Patience()
    places = map(manifest.tar_place, manifest.shards)
    distant = next((place for place in places if is_url(place)), None)
    if distant is None or cache is None:
        if distant is not None:
            log.warning("%s: read in ranges, which is slow; set run.cache to a folder", distant)
        return ShardStore(manifest, None, room=0, patience=patience)
    budget = None if cache_gb is None else int(cache_gb * 1e9)
    folder = without_tilde(cache, where="run.cache", remedy="write the whole path")
    node = NodeCache(folder, budget=budget, patience=patience)
    parts = corpora * (processes or node_ranks())
    share = node.budget // parts
    return ShardStore(manifest, node, room=share, patience=patience)


def open_local(path: Path, shard: Shard) -> int:
    """Open a tar on this machine, whose size must be that of the manifest.

    Raises:
        ShardError: it is missing, or of another size.
    """
    try:
        file = os.open(regular_file(path), os.O_RDONLY)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: {MISSING}") from error
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be opened ({error.strerror}); check its rights"
        ) from error
    fault = cut_fault(os.fstat(file).st_size, shard)
    if fault:
        os.close(file)
        raise ShardError(f"{path}: {fault}")
    return file


def indexes_kept(manifest: Manifest) -> int:
    """Indexes to keep in memory: fewer where shards are large, but those of a batch's lanes."""
    return min(INDEXES, max(64, INDEXED * len(manifest.shards) // manifest.samples))


def open_files() -> int:
    """Tars to keep open: a quarter of what this process may."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if allowed < 0 else max(16, min(MOST_OPEN, allowed // 4))
