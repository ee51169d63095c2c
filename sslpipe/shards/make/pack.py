"""Pack images into tar shards with indexes and a manifest: decide, then do.

    list -> drop duplicates -> shuffle, cut into jobs -> do the jobs in any pool -> manifest

All that is decided follows from inputs and settings, and finished jobs are on record, so a run
that was cut short is gone on with by the same command and ends in the same bytes. The manifest is
written last.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ...errors import ShardError
from ..index import file_sha256, index_path
from ..manifest import Manifest, Shard, write_manifest
from . import duplicates
from .inputs.found import Columns
from .journal import AGAIN, REPORT, Journal, open_journal, writing
from .listing import list_inputs, shuffled
from .plan import KEYED_SAMPLE, Check, Codec, Dedupe, Job, Settings, cut, facts, keyed_sample
from .pools import Pool, open_threads
from .report import Duplicate, Packed, PackReport, write_report
from .source import Listing, Note, Source
from .work import (
    Done,
    Fault,
    Hashed,
    HashJob,
    Sized,
    SizeJob,
    hash_sources,
    pack_shard,
    size_payloads,
)

Inputs = str | Path | Sequence[str | Path]
Tell = Callable[[Packed], None]
J = TypeVar("J")
R = TypeVar("R")

SIZE_CHUNK = 8  # of the keyed sample, per job
HASH_CHUNK = 256  # sources per job: what a killed run loses of its hashes, at most, per worker
PATTERN = re.compile(r"[{*?\[]")  # where braces and globs begin


def pack(
    inputs: Inputs,
    out: str | Path,
    *,
    codec: Codec,
    resize: int | None = None,
    quality: int = 90,
    check: Check = "decode",
    shard_bytes: int = 64 * 2**20,
    shard_samples: int | None = None,
    seed: int = 0,
    name: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    dedupe: Dedupe = "none",
    near_bits: int = 4,
    keep_names: bool = False,
    overwrite: bool = False,
    pool: Pool | None = None,
    progress: Tell | None = None,
) -> PackReport:
    """Pack `inputs` into `out`; the same files and settings give the same bytes, in any pool.

    Files that do not decode are listed in `out/report.jsonl`. The same call goes on with a run that
    was killed. First-level folders are the classes, sorted; files at the root get label -1.

    `resize`: shorter side in pixels, never up, re-encoded as JPEG of `quality`; None keeps the
    original bytes. `check` of original bytes: "decode" everything, or look at the "header" alone.
    `shard_bytes`: upper limit of a tar with more than one sample where sizes are known, else about
    that. `shard_samples` takes its place. `name`: prefix of the shards, else the first input's.
    `columns`: of tables. `dedupe`: drop all but the first by key of "exact"ly equal files, or of
    "near" ones: perceptual hashes within `near_bits`. `keep_names`: original names in `.name.json`
    members. `overwrite`: replace another packing in `out`. `pool`: default: threads.

    Raises:
        ShardError: nothing to pack or to keep, `out` is taken or full, or a worker was lost.
    """
    start, out, tell = time.perf_counter(), Path(out), progress or (lambda packed: None)
    settings = Settings(
        codec, shard_prefix(name, inputs), resize, quality, check, shard_bytes, shard_samples,
        seed, dedupe, near_bits, keep_names,
    )  # fmt: skip
    listing = find_sources(inputs, out, codec, columns)
    with writing(out), borrowed(pool) as workers:
        journal = open_journal(out, facts(listing, settings), overwrite=overwrite)
        twins = find_duplicates(listing, settings, journal, workers, tell)
        sources = [s for item, s in enumerate(listing.sources) if item not in twins]
        jobs = make_jobs(sources, listing, out, settings, journal, workers)
        done, bytes_in = do_jobs(jobs, len(sources), journal, workers, tell)
        seconds = time.perf_counter() - start
        return finish(listing, settings, journal, done, twins, bytes_in, seconds)


def borrowed(pool: Pool | None) -> AbstractContextManager[Pool]:
    """The caller's pool, left open; else threads of our own."""
    return open_threads() if pool is None else nullcontext(pool)


def find_sources(inputs: Inputs, out: Path, codec: Codec, columns: Columns) -> Listing:
    """The listing of the inputs, after a look at the places."""
    if ":/" in str(out):
        raise ShardError(f"{out}: is a URL; pack into a folder, then copy it there")
    if out.exists() and not out.is_dir():
        raise ShardError(f"{out}: is a file; name a new folder for the shards")
    if any(out.resolve() == Path(place).resolve() for place in each(inputs)):
        raise ShardError(f"{out}: is the folder to pack; name another one for the shards")
    return list_inputs(each(inputs), out=out, extensions=codec.extensions, columns=columns)


def each(inputs: Inputs) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


def shard_prefix(name: str | None, inputs: Inputs) -> str:
    """The given name; else the first input's with everything unusual replaced."""
    if name is not None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ShardError(f"name {name!r}: use letters, digits, dots and dashes only")
        return name
    first = Path(next(iter(each(inputs)), ""))
    plain = first.resolve().name if first.is_dir() else PATTERN.split(first.stem)[0].rstrip("-_.")
    return re.sub(r"[^\w.-]", "_", plain).lstrip(".-") or "shards"


def find_duplicates(
    listing: Listing, settings: Settings, journal: Journal, pool: Pool, tell: Tell
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
            tell(Packed("hash", len(record), 0, 0, 0, len(sources)))
    missing = [job for job in jobs if records[job.number] is None]
    for hashed in run(hash_sources, missing, pool, journal, Hashed):
        records[hashed.number] = hashed.hashes
        journal.save("hash", hashed.number, hashed.hashes)
        tell(Packed("hash", len(hashed.hashes), hashed.bytes_in, 0, 0, len(sources)))
    hashes = [digest for job in jobs for digest in records[job.number]]
    if settings.dedupe == "exact":
        return duplicates.exact(hashes)
    return duplicates.near(hashes, settings.near_bits)


def make_jobs(
    sources: Sequence[Source],
    listing: Listing,
    out: Path,
    settings: Settings,
    journal: Journal,
    pool: Pool,
) -> list[Job]:
    """One job per shard, in order."""
    ordered = shuffled(tuple(sources), settings.seed)
    groups = cut(ordered, settings, mean_bytes(ordered, settings, journal, pool))
    run, labelled = os.urandom(4).hex(), bool(listing.classes)
    return [
        Job(number, group, str(out), run, labelled, settings) for number, group in enumerate(groups)
    ]


def mean_bytes(ordered: Sequence[Source], settings: Settings, journal: Journal, pool: Pool) -> int:
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
    jobs: Sequence[Job], images: int, journal: Journal, pool: Pool, tell: Tell
) -> tuple[list[Done], int]:
    """Everything that jobs came to, in order, and the bytes that were read for it now."""
    done = {job.number: recorded(job, journal) for job in jobs}
    missing = [job for job in jobs if done[job.number] is None]
    for old in filter(None, done.values()):
        tell(progress_of(old, images))
    bytes_in = 0
    for new in run(pack_shard, missing, pool, journal, Done):
        done[new.number] = new
        bytes_in += new.bytes_in
        journal.save("shard", new.number, asdict(new))
        tell(progress_of(new, images))
    return [one for one in done.values() if one is not None], bytes_in


def recorded(job: Job, journal: Journal) -> Done | None:
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
    return Done(**{**record, "shard": shard, "failures": failures})


def progress_of(done: Done, total: int) -> Packed:
    samples, size = (done.shard.samples, done.shard.bytes) if done.shard else (0, 0)
    failed = len(done.failures)
    return Packed("pack", samples + failed, done.bytes_in, size, failed, total)


def run(
    work: Callable[[J], R | Fault], jobs: Sequence[J], pool: Pool, journal: Journal, kind: type[R]
) -> Iterator[R]:
    """Results as they come.

    Raises:
        ShardError: a job came to nothing, or its worker was lost.
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
        if isinstance(result, Fault):
            raise ShardError(
                f"{out / result.what}: {result.reason}; mend that (make room, say), {AGAIN}"
            )
        if not isinstance(result, kind):  # Ray returns what it should raise
            parts = [path.name.partition(".tar")[0] for path in sorted(out.glob("*.part"))]
            raise ShardError(
                f"{out}: a worker was lost ({result}), with {', '.join(parts) or 'no shard'} "
                f"unfinished; if memory ran out, take fewer workers, {AGAIN}"
            )
        yield result


def finish(
    listing: Listing,
    settings: Settings,
    journal: Journal,
    done: Sequence[Done],
    twins: Mapping[int, int],
    bytes_in: int,
    seconds: float,
) -> PackReport:
    """Write report and manifest, and remove what was kept in order to go on."""
    out = journal.folder.parent
    failures = tuple(sorted(note for one in done for note in one.failures))
    files = [source.file for source in listing.sources]
    reason = "same bytes" if settings.dedupe == "exact" else "looks the same"
    repeated = tuple(
        sorted(Duplicate(files[item], files[first], reason) for item, first in twins.items())
    )
    write_report(out, failures, listing.skipped, repeated)
    shards = tuple(one.shard for one in done if one.shard)
    if not shards:
        raise ShardError(f"{out}: none of {len(failures):,} files decodes; see {out / REPORT}")
    manifest = Manifest(settings.name, out, listing.classes, shards, settings.seed, settings.resize)
    write_manifest(manifest)
    journal.remove()
    return PackReport(manifest, failures, listing.skipped, repeated, tuple(done), bytes_in, seconds)
