"""Pack files into tar shards with indexes and a manifest: decide, then do.

    list -> drop duplicates -> shuffle, cut into jobs -> do the jobs in any pool -> manifest

All that is decided follows from inputs and settings, and finished jobs are on record, so a run
that was cut short is gone on with by the same command and ends in the same bytes. The manifest is
written last.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from ...errors import ShardError
from ...process import cores
from ..labels_file import read_labels
from ..manifest import FILE, Manifest, write_manifest
from ..side_files import held
from .frames import FPS
from .jobs import Tell, do_jobs, find_duplicates, make_jobs
from .journal import FOLDER, REPORT, Journal, open_journal, writing
from .listing import list_inputs, shuffled
from .plan import KEYED_SAMPLE, PackSettings, cut_into_shards, pack_facts, tar_bytes
from .pools import Pool, open_threads
from .report import Duplicate, Estimate, PackReport, write_pack_report
from .source import CLOSED, Listing
from .work import JobFault, ShardDone, SizeJob, size_payloads

Inputs = str | Path | Sequence[str | Path]

PATTERN = re.compile(r"[{*?\[]")  # where braces and globs begin


def pack(
    inputs: Inputs,
    out: str | Path,
    settings: PackSettings,
    *,
    overwrite: bool = False,
    pool: Pool | None = None,
    progress: Tell | None = None,
) -> PackReport:
    """Pack `inputs` into `out`; the same files and settings give the same bytes, in any pool.

    Files that do not decode are listed in `out/report.jsonl`. The same call goes on with a run that
    was killed. First-level folders are the classes, sorted; files at the root get label -1.

    `overwrite`: replace another packing in `out`. `pool`: default: threads.

    Raises:
        ShardError: nothing to pack or to keep, `out` is taken or full, a worker was lost, or an
            input went away.
    """
    start, out, tell = time.perf_counter(), Path(out), progress or (lambda packed: None)
    settings = named(settings, inputs)
    listing = find_sources(inputs, out, settings)
    with writing(out), own_folder(out), borrowed(pool) as workers:
        journal = open_journal(out, pack_facts(listing, settings), overwrite=overwrite)
        journal = replace(journal, inputs=here(inputs))
        twins = find_duplicates(listing, settings, journal, workers, tell)
        sources = [s for item, s in enumerate(listing.sources) if item not in twins]
        jobs = make_jobs(sources, listing, out, settings, journal, workers)
        done, bytes_in = do_jobs(jobs, len(sources), journal, workers, tell)
        seconds = time.perf_counter() - start
        return finish(listing, settings, journal, done, twins, bytes_in, seconds)


def estimate(
    inputs: Inputs, out: str | Path, settings: PackSettings, *, workers: int | None = None
) -> Estimate:
    """What `pack` would make, and how long it would take, by a keyed sample; nothing is written.

    Duplicates and failures count as samples.

    Raises:
        ShardError: as `pack`, for inputs and settings.
    """
    settings = named(settings, inputs)
    listing = find_sources(inputs, Path(out), settings)
    ordered = shuffled(listing.sources, settings.seed)
    sample = ordered[:KEYED_SAMPLE]
    size_payloads(SizeJob(sample[:1], settings))  # imports decoders and opens archives, once
    start = time.perf_counter()
    sized = size_payloads(SizeJob(sample, settings))
    each_takes = (time.perf_counter() - start) / len(sample)
    if isinstance(sized, JobFault):
        raise ShardError(f"{sized.what}: {sized.reason}")
    return Estimate(
        samples=len(ordered),
        shards=len(cut_into_shards(ordered, settings, sized.mean)),
        bytes_out=sum(tar_bytes(source, settings, sized.mean) for source in ordered),
        sampled=len(sample),
        seconds=each_takes * len(ordered) / (workers or cores()),
        labels=listing.labels,
        frame_rate=listing.frame_rate,
    )


@contextmanager
def own_folder(out: Path) -> Iterator[None]:
    """Keep the folder of a packing, which is made if need be, to this process.

    Raises:
        StateError: another process packs there now.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out, "packs"):
        yield


def borrowed(pool: Pool | None) -> AbstractContextManager[Pool]:
    """The caller's pool, left open; else threads of our own."""
    return open_threads() if pool is None else nullcontext(pool)


def find_sources(inputs: Inputs, out: Path, settings: PackSettings) -> Listing:
    """The listing of the inputs, after a look at the places.

    Raises:
        ShardError: `out` is a URL, no folder, one of the inputs, or lies in one beside files of
            others; or the inputs cannot be listed.
    """
    if ":/" in str(out):
        raise ShardError(f"{out}: is a URL; pack into a folder, then copy it there")
    if os.path.lexists(out) and not out.is_dir():
        what = "a file" if out.exists() else "a link that leads nowhere"
        raise ShardError(f"{out}: is {what}; name a new folder for the shards")
    if any(os.path.realpath(out) == os.path.realpath(place) for place in each(inputs)):
        raise ShardError(f"{out}: is the folder to pack; name another one for the shards")
    real = Path(os.path.realpath(out))  # unlike `resolve`, it takes a loop of links as it is
    inside = any(real.is_relative_to(os.path.realpath(place)) for place in each(inputs))
    if inside and holds_others(out):  # the listing leaves `out` out, and so them
        raise ShardError(f"{out}: is one of the folders to pack; name a new one for the shards")
    return list_inputs(
        each(inputs),
        out=out,
        extensions=settings.codec.extensions,
        columns=settings.columns,
        labels=read_labels(settings.labels) if settings.labels else None,
        fps=settings.fps or FPS,
    )


def holds_others(out: Path) -> bool:
    """Whether a folder has files in it and no packing, finished or not."""
    begun = (out / FILE).exists() or (out / FOLDER).exists()
    return not begun and out.is_dir() and any(out.iterdir())


def each(inputs: Inputs) -> list[str | Path]:
    """The inputs as a list, where one was named alone."""
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


def here(inputs: Inputs) -> tuple[Path, ...]:
    """The inputs that are folders or files of this machine; neither URLs nor patterns."""
    return tuple(Path(place) for place in each(inputs) if Path(place).exists())


def named(settings: PackSettings, inputs: Inputs) -> PackSettings:
    """The settings with a name: the one given, or that of the first input."""
    return settings if settings.name else replace(settings, name=plain_name(inputs))


def plain_name(inputs: Inputs) -> str:
    """The name of the first input with everything unusual replaced."""
    first = Path(next(iter(each(inputs)), ""))
    stem = first.stem.removesuffix(".jsonl")  # of .jsonl.gz
    plain = first.resolve().name if first.is_dir() else PATTERN.split(stem)[0].rstrip("-_.")
    return re.sub(r"[^\w.-]", "_", plain).lstrip(".-") or "shards"


def finish(
    listing: Listing,
    settings: PackSettings,
    journal: Journal,
    done: Sequence[ShardDone],
    twins: Mapping[int, int],
    bytes_in: int,
    seconds: float,
) -> PackReport:
    """Write report and manifest, and remove what was kept in order to go on.

    Raises:
        ShardError: no file decodes, so there is no shard.
    """
    out = journal.folder.parent
    closed = [note for note in listing.skipped if note.reason.startswith(CLOSED)]
    skipped = tuple(note for note in listing.skipped if note not in closed)
    failures = tuple(sorted([*closed, *(note for one in done for note in one.failures)]))
    files = [source.file for source in listing.sources]
    reason = "same bytes" if settings.dedupe == "exact" else "looks the same"
    repeated = tuple(
        sorted(Duplicate(files[item], files[first], reason) for item, first in twins.items())
    )
    write_pack_report(out, failures, skipped, repeated)
    shards = tuple(one.shard for one in done if one.shard)
    if not shards:
        raise ShardError(f"{out}: none of {len(failures):,} files decodes; see {out / REPORT}")
    codec = settings.codec
    manifest = Manifest(
        name=settings.name,
        root=out,
        modality=codec.modality,
        extent=codec.extents,
        flags=codec.flag_bits,
        classes=listing.classes,
        shards=shards,
        seed=settings.seed,
        resize=settings.resize,
    )
    write_manifest(manifest)
    journal.remove()
    kinds, told = (codec.measure, codec.bins), (listing.labels, listing.frame_rate)
    left_out = failures, skipped, repeated
    return PackReport(manifest, *left_out, tuple(done), *kinds, bytes_in, seconds, *told)
