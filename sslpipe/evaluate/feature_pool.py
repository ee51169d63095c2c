"""Features by a pool: whoever is free takes the next part, on a device of its own.

Who makes a part does not show in it, so the file is the same to the byte as that of one process;
a part that was lost with its worker is made again. All machines see the shards, the weights and
the folder of the file under the same names.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import SslpipeError, StateError
from ..process import Ranks
from ..shards.make.pools import Pool
from .feature_cache import check_ours, feature_origin
from .feature_file import read_features
from .feature_parts import (
    Extraction,
    ExtractSettings,
    PartsWork,
    is_made_of,
    join_parts,
    open_extraction,
    parts_work,
)
from .features import Features
from .subjects import open_subject

AGAIN = "the parts that are done are kept: run the same command again"


@dataclass(frozen=True, slots=True)
class Extracting:
    """What an extraction is of, as it goes to other machines; equal ones share what is opened."""

    work: PartsWork
    subject: str
    shards: str
    settings: ExtractSettings


@dataclass(frozen=True, slots=True)
class PartJob:
    """A part that a worker is to make."""

    extracting: Extracting
    number: int


@dataclass(frozen=True, slots=True)
class PartDone:
    """Says that part `number` is written and whole: what a worker answers."""

    number: int


def features_in_pool(
    path: Path,
    subject: str,
    shards: str | Path,
    settings: ExtractSettings,
    pool: Pool,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """Do what `feature_cache.features_at` does, by the workers of a pool.

    `subject`: as `open_subject` takes it. The device of `settings` is that of each worker.

    Raises:
        SslpipeError: as `features_at`, or workers were lost again and again.
    """
    origin = feature_origin(open_subject(subject, shards), shards, settings)
    check_ours(path)
    if not is_made_of(path, origin):
        # relative names mean other places on other machines
        work = parts_work(path.resolve(), origin, shards, settings)
        extracting = Extracting(work, absolute(subject), absolute(str(shards)), settings)
        make_parts(extracting, pool, progress)
        join_parts(path, work)
    return read_features(path)


def absolute(name: str) -> str:
    """Return the full path of what lies on this machine; URLs and names of models as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def make_parts(extracting: Extracting, pool: Pool, progress: Callable[[int, int], None]) -> None:
    """Have all parts made that are not there.

    Raises:
        SslpipeError: a part came to nothing, or its worker was lost.
    """
    work = extracting.work
    missing = work.missing(work.share(Ranks()))
    total, done = sum(map(work.size, missing)), 0
    jobs = [PartJob(extracting, number) for number in missing]
    results = pool.imap_unordered(make_part, jobs, 1)
    for result in caught(results):
        if isinstance(result, SslpipeError):
            raise result
        if not isinstance(result, PartDone):  # Ray returns what it should raise
            raise SslpipeError(
                f"{work.folder}: a worker was lost ({result}); if memory ran out, take fewer "
                f"workers; {AGAIN}"
            )
        done += work.size(result.number)
        progress(done, total)


def make_part(job: PartJob) -> PartDone | SslpipeError:
    """Make one part, in a worker; what is wrong is returned, for some pools lose what is raised."""
    try:
        opened(job.extracting).make(job.number)
    except SslpipeError as error:
        return error
    return PartDone(job.number)


def caught(results: Iterator[Any]) -> Iterator[Any]:
    """Yield what a pool returns, and at the end what it raised: each has errors of its own."""
    try:
        yield from results
    except Exception as error:
        yield error


@lru_cache(maxsize=1)
def opened(extracting: Extracting) -> Extraction:
    """Open shards and encoders once for all parts that a worker makes.

    Raises:
        StateError: they are others than where the command was given, or another version is here.
        SslpipeError: they are not here.
    """
    subject, wanted = open_subject(extracting.subject), extracting.work.origin
    origin = feature_origin(subject, extracting.shards, extracting.settings)
    if origin != wanted:
        raise StateError(
            f"{extracting.subject}, {extracting.shards}: a worker finds other weights, shards or "
            f"another sslpipe there ({origin}) than the command did ({wanted}); give all machines "
            "the same files and version"
        )
    return open_extraction(extracting.work, subject, extracting.shards, extracting.settings)
