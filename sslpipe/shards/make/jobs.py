"""The jobs of a packing: run in any pool and kept on record, so that a killed run goes on."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ...errors import ShardError
from ..index import file_sha256, index_path
from ..manifest import Shard
from . import duplicates
from .journal import AGAIN, Journal
from .listing import shuffled
from .plan import KEYED_SAMPLE, PackSettings, ShardJob, cut_into_shards, keyed_sample
from .pools import Pool
from .report import PackProgress
from .source import InputFile, Listing, Note
from .work import (
    Hashed,
    HashJob,
    JobFault,
    ShardDone,
    Sized,
    SizeJob,
    hash_sources,
    pack_shard,
    size_payloads,
)

Tell = Callable[[PackProgress], None]
J = TypeVar("J")
R = TypeVar("R")

SIZE_CHUNK = 8  # of the keyed sample, per job
HASH_CHUNK = 256  # sources per job: what a killed run loses of its hashes, at most, per worker


def find_duplicates(
    listing: Listing, settings: PackSettings, journal: Journal, pool: Pool, tell: Tell
) -> dict[int, int]:
    """Number of each source to drop -> number of the one that it repeats."""
    if settings.dedupe == "none":
        return {}
    sources, chunks = listing.sources, range(0, len(listing.sources), HASH_CHUNK)
    jobs = [
        HashJob(number, sources[at : at + HASH_CHUNK], settings) for number, at in enumerate(chunks)
    ]
    records = {job.number: journal.load("hash", job.number) for job in jobs}
    for record in records.values():
        if record:
            tell(PackProgress("hash", len(record), 0, 0, 0, len(sources)))
    missing = [job for job in jobs if records[job.number] is None]
    for hashed in run(hash_sources, missing, pool, journal, Hashed):
        records[hashed.number] = hashed.hashes
        journal.save("hash", hashed.number, hashed.hashes)
        tell(PackProgress("hash", len(hashed.hashes), hashed.bytes_in, 0, 0, len(sources)))
    hashes = [digest for job in jobs for digest in records[job.number]]
    if settings.dedupe == "exact":
        return duplicates.exact(hashes)
    return duplicates.near(hashes, settings.near_bits)


def make_jobs(
    sources: Sequence[InputFile],
    listing: Listing,
    out: Path,
    settings: PackSettings,
    journal: Journal,
    pool: Pool,
) -> list[ShardJob]:
    """One job per shard, in order."""
    ordered = shuffled(tuple(sources), settings.seed)
    groups = cut_into_shards(ordered, settings, mean_bytes(ordered, settings, journal, pool))
    run, labelled = os.urandom(4).hex(), bool(listing.classes)
    return [
        ShardJob(number, group, str(out), run, labelled, settings)
        for number, group in enumerate(groups)
    ]


def mean_bytes(
    ordered: Sequence[InputFile], settings: PackSettings, journal: Journal, pool: Pool
) -> int:
    """What a payload of unknown size takes, by a keyed sample; on record, for a store may fail."""
    known: int | None = journal.load("mean", 0)
    if known is not None:
        return known
    sample, chunks = keyed_sample(ordered, settings), range(0, KEYED_SAMPLE, SIZE_CHUNK)
    jobs = [SizeJob(part, settings) for at in chunks if (part := sample[at : at + SIZE_CHUNK])]
    sized = list(run(size_payloads, jobs, pool, journal, Sized))
    mean = Sized(tuple(size for part in sized for size in part.sizes)).mean
    journal.save("mean", 0, mean)
    return mean


def do_jobs(
    jobs: Sequence[ShardJob], samples: int, journal: Journal, pool: Pool, tell: Tell
) -> tuple[list[ShardDone], int]:
    """Everything that jobs came to, in order, and the bytes that were read for it now."""
    done = {job.number: recorded(job, journal) for job in jobs}
    missing = [job for job in jobs if done[job.number] is None]
    for old in filter(None, done.values()):
        tell(progress_of(old, samples))
    bytes_in = 0
    for new in run(pack_shard, missing, pool, journal, ShardDone):
        done[new.number] = new
        bytes_in += new.bytes_in
        journal.save("shard", new.number, asdict(new))
        tell(progress_of(new, samples))
    return [one for one in done.values() if one is not None], bytes_in


def recorded(job: ShardJob, journal: Journal) -> ShardDone | None:
    """What a job came to in an earlier run, if that is on record and still there."""
    record = journal.load("shard", job.number)
    if record is None:
        return None
    shard = Shard(**record["shard"]) if record["shard"] else None
    if shard is not None:
        tar = Path(job.folder) / shard.file
        index = index_path(tar)
        if not (tar.is_file() and tar.stat().st_size == shard.bytes and index.is_file()):
            return None
        if file_sha256(index) != shard.index_sha256:
            return None
    failures = tuple(Note(**note) for note in record["failures"])
    return ShardDone(**{**record, "shard": shard, "failures": failures})


def progress_of(done: ShardDone, total: int) -> PackProgress:
    """What to tell of a finished shard."""
    samples, size = (done.shard.samples, done.shard.bytes) if done.shard else (0, 0)
    failed = len(done.failures)
    return PackProgress("pack", samples + failed, done.bytes_in, size, failed, total)


def run(
    work: Callable[[J], R | JobFault],
    jobs: Sequence[J],
    pool: Pool,
    journal: Journal,
    kind: type[R],
) -> Iterator[R]:
    """Results as they come.

    Raises:
        ShardError: a job came to nothing, its worker was lost, or an input went away.
    """
    out = journal.folder.parent
    # a single job is done before a pool has started
    results = pool.imap_unordered(work, jobs, 1) if len(jobs) > 1 else map(work, jobs)
    while True:
        try:
            result = next(results, None)
        except Exception as error:  # each pool has its own
            result = error
        if result is None:
            return
        if isinstance(result, JobFault):
            raise ShardError(
                f"{out / result.what}: {result.reason}; mend that (make room, say), {AGAIN}"
            )
        if not isinstance(result, kind):  # Ray returns what it should raise
            parts = [path.name.partition(".tar")[0] for path in sorted(out.glob("*.part"))]
            raise ShardError(
                f"{out}: a worker was lost ({result}), with {', '.join(parts) or 'no shard'} "
                f"unfinished; if memory ran out, take fewer workers, {AGAIN}"
            )
        journal.check_inputs()
        yield result
