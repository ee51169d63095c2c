"""Features are extracted once: shared by ranks, resumed after a kill, cached by their origin.

Ranks take parts (feature_parts.py): the file is the same to the byte for any number of ranks and
after any kill. Ranks see one file system.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch.distributed as dist

from ..errors import SslpipeError, StateError
from ..process import Ranks, process_ranks
from ..shards.manifest import open_manifest
from ..shards.side_files import held
from .encoding import baseline_of
from .feature_file import FeatureOrigin, read_features, read_origin
from .feature_parts import (
    DEFAULTS,
    ExtractSettings,
    PartsWork,
    is_made_of,
    join_parts,
    open_extraction,
    parts_work,
)
from .features import Features, central
from .subjects import Subject


def cached_features(
    subject: Subject,
    shards: str | Path,
    cache: Path,
    settings: ExtractSettings = DEFAULTS,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """Read features from a folder, or extract and write them there; `features_at` a path.

    The file is named by all that features depend on, so one of other weights is never taken.

    Raises:
        SslpipeError: as `features_at`.
    """
    origin = feature_origin(subject, shards, settings)
    name = hashlib.blake2b(repr(origin).encode(), digest_size=12).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.safetensors"
    return features_at(path, subject, shards, settings, progress=progress)


def features_at(
    path: Path,
    subject: Subject,
    shards: str | Path,
    settings: ExtractSettings = DEFAULTS,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """Give "trained" and, as set, "untrained" and a baseline; of a file that is made if need be.

    A file of other weights, shards or settings is replaced. Parts that are there are not made
    again. Of several ranks each extracts its share; rank 0 writes, and all read. Ranks that are
    given and no process group must have rank 0 called last. `progress` hears how many of this
    rank's samples are done, of how many.

    Raises:
        SslpipeError: the file is there and holds no features, or they are not finite.
        ShardError: what is wrong with the shards.
        StateError: a part of another rank is missing, or other ranks extract the same now.
        ExtraError: safetensors is not installed.
    """
    ranks = process_ranks(rank, world_size)
    origin = feature_origin(subject, shards, settings)
    check_ours(path)
    if not all_say(is_made_of(path, origin)):
        work = parts_work(path, origin, shards, settings)
        with own_parts(work, ranks):
            if not all_say(is_made_of(path, origin)):  # another process may have made it meanwhile
                extract_share(work, subject, shards, settings, ranks, progress)
                wait_for_ranks()
                if ranks.rank == 0:
                    join_parts(path, work)
                wait_for_ranks()
        if ranks.rank and not dist.is_initialized():
            return {}
    return read_features(path)


def feature_origin(
    subject: Subject, shards: str | Path, settings: ExtractSettings
) -> FeatureOrigin:
    """Say what the features will be a function of.

    Raises:
        ShardError: what is wrong with the shards.
    """
    untrained = settings.untrained and subject.untrained is not None
    baseline, _ = baseline_of(subject.encoder, subject.recipe.modality)
    names = {"trained": True, "untrained": untrained, baseline: settings.pixels}
    return FeatureOrigin(
        weights=subject.digest,
        shards=open_manifest(shards).fingerprint,
        transform=central(subject.recipe, batch_size=settings.batch_size).data_fingerprint,
        precision=settings.precision,
        encoders=tuple(name for name, wanted in names.items() if wanted),
        version=version("sslpipe"),
    )


def check_ours(path: Path) -> None:
    """Refuse to replace a file that is none of ours.

    Raises:
        SslpipeError: it holds no features.
    """
    if not path.exists():
        return
    try:
        read_origin(path)
    except StateError as error:
        why = str(error).removeprefix(f"{path}: ")
        raise SslpipeError(
            f"{path}: is there and holds no features of this version ({why}); remove it, or "
            "write elsewhere"
        ) from error


def extract_share(
    work: PartsWork,
    subject: Subject,
    shards: str | Path,
    settings: ExtractSettings,
    ranks: Ranks,
    progress: Callable[[int, int], None],
) -> None:
    """Extract the parts of a rank that are not there."""
    missing = work.missing(work.share(ranks))
    total, done = sum(map(work.size, missing)), 0
    if not missing:
        progress(0, 0)
        return

    def count(samples: int) -> None:
        nonlocal done
        done += samples
        progress(done, total)

    extraction = open_extraction(work, subject, shards, settings)
    with extraction.pipe:
        for number in missing:
            extraction.make(number, count)


@contextmanager
def own_parts(work: PartsWork, ranks: Ranks) -> Iterator[None]:
    """Keep the folder of parts to this process, or to the process group that it is of.

    A process waits until another has left it. A group does not: its other ranks would wait for
    rank 0 longer than a collective may. Ranks without a group share the folder.

    Raises:
        StateError: another process has it; all ranks of the group say so.
    """
    with ExitStack() as stack:
        busy = None
        try:
            if ranks.size == 1:
                stack.enter_context(held(work.folder, "extracts", wait=True))
            elif ranks.rank == 0 and in_group():
                stack.enter_context(held(work.folder, "extracts"))
        except StateError as error:
            busy = error
        if not all_say(busy is None):
            raise busy or StateError(
                f"{work.folder}: rank 0 cannot have it; wait, or write elsewhere"
            )
        yield


def in_group() -> bool:
    """Whether this process is one of a process group."""
    return dist.is_available() and dist.is_initialized()


def all_say(answer: bool) -> bool:
    """Whether all ranks of the process group, if there is one, say yes: they go on alike then."""
    if not in_group():
        return answer
    answers = [answer] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return all(answers)


def wait_for_ranks() -> None:
    """Wait until all ranks of the process group are here, if there is one."""
    if in_group():
        dist.barrier()
