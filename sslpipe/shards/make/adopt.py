"""Make anyone's tars a shard set: an index for each and a manifest, nothing rewritten.

    URLs -> tars -> one pass over each (threads) -> X.tar.idx -> report.jsonl -> manifest.json

An index that is as new as its tar is kept, so an interrupted run goes on where it was.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import ShardError
from ..codec import Codec
from ..index import Index, file_sha256, index_path, read_index, write_index
from ..manifest import FILE, Manifest, Shard, write_manifest
from ..read.tars import Tar, find_tars, local_folder, open_tar
from ..scan import Rules, index_stream
from ..verification import Problem
from .indexing import (
    Adopted,
    Indexed,
    ScannedTar,
    current_index,
    old_report,
    worked,
    write_problems,
)
from .journal import REPORT
from .pack import plain_name
from .plan import check_name
from .source import is_local, why
from .upgrade import old_set, read_any_manifest, upgrade


def adopt(
    urls: Iterable[str],
    *,
    rules: Rules,
    out: str | Path | None = None,
    name: str | None = None,
    rebuild: bool = False,
    threads: int | None = None,
    progress: Callable[[Indexed], None] | None = None,
) -> Adopted:
    """Index tars where they lie and write the manifest of all of them.

    `urls`: files, folders, globs, braces (`{000..123}`), anything that fsspec opens. `out`: folder
    of indexes and manifest; None: beside the tars, which then lie in one local folder. `name`: of
    the set, else the folder's. `rebuild`: index again what has an index that is as new as its tar.
    A tar that cannot be read is a problem, and the run goes on. The folder of a set of version 1
    becomes one of version 2, with the same samples, labels and fingerprint, whatever `rules` say.

    Raises:
        ShardError: no tar, a compressed one, or none that holds a sample; `out` is missing, or
            has a manifest of other tars.
    """
    urls = list(urls)
    check_name(name or "")
    if not rebuild and (old := old_set(urls, out)):
        return upgrade(old, rules.codec, name=name, threads=threads, progress=progress)
    tars = find_tars(urls)
    folder = Path(out) if out is not None else local_folder(tars)
    folder.mkdir(parents=True, exist_ok=True)
    known = old_manifest(folder, tars, rules.codec)
    told = {} if rebuild else old_report(folder)
    work = partial(index_one, folder=folder, rules=rules, told=told, rebuild=rebuild)
    found = worked(work, tars, threads, progress)
    shards = tuple(done.shard for done in found if done.shard)
    problems = [*(problem for done in found for problem in done.problems)]
    problems += repeated_keys(folder, shards)
    write_problems(folder, problems)
    if not shards:
        raise ShardError(
            f"{folder}: no tar holds a sample that can be used; all reasons stand in "
            f"{folder / REPORT}, the first: {problems[0].what}"
        )
    manifest = manifest_of(folder, shards, rules.codec, name, known)
    write_manifest(manifest)
    return Adopted(manifest, tuple(problems))


def manifest_of(
    folder: Path, shards: tuple[Shard, ...], codec: Codec, name: str | None, known: Manifest | None
) -> Manifest:
    """The manifest of indexed tars, with what only an earlier one knows."""
    manifest = Manifest(
        name=name or (known.name if known else plain_name(folder)),
        root=folder,
        modality=codec.modality,
        extent=codec.extents,
        flags=codec.flag_bits,
        classes=(),
        shards=shards,
        seed=0,
        resize=None,
    )
    return inherit(manifest, known) if known else manifest


def index_one(
    tar: Tar, *, folder: Path, rules: Rules, told: dict[str, list[Problem]], rebuild: bool
) -> ScannedTar:
    """The index of one tar: the one that is there, or a new one."""
    place = folder / tar.file
    if not rebuild and (index := current_index(place, tar)):
        return ScannedTar(
            tar, describe(tar, place, index), tuple(told.get(tar.file, ())), kept=True
        )
    problems: list[Problem] = []
    try:
        with open_tar(tar.url) as file:
            index = index_stream(
                file, tar.url, rules, lambda key, why: problems.append(Problem(tar.file, key, why))
            )
    except ShardError as error:
        return ScannedTar(tar, None, (Problem(tar.file, "", str(error)),))
    except Exception as error:  # distant stores raise what they like
        if is_local(tar.url) and not isinstance(error, OSError):
            raise
        what = f"{tar.url}: cannot be read ({why(error)}); index it again"
        return ScannedTar(tar, None, (Problem(tar.file, "", what),))
    if not len(index):
        problems.append(Problem(tar.file, "", "holds no sample that can be used; it is left out"))
        return ScannedTar(tar, None, tuple(problems))
    write_index(place, index)
    return ScannedTar(tar, describe(tar, place, index), tuple(problems))


def describe(tar: Tar, place: Path, index: Index) -> Shard:
    """The entry of a tar in the manifest."""
    digest = file_sha256(index_path(place))
    beside = is_local(tar.url) and Path(tar.url).parent.resolve() == place.parent.resolve()
    url = None if beside else tar.url
    return Shard(tar.file, len(index), index.tar_bytes, index.tar_sha256, digest, url)


def repeated_keys(folder: Path, shards: tuple[Shard, ...]) -> Iterator[Problem]:
    """One problem for each shard with keys that a shard before it has too."""
    uids = [read_index(folder / shard.file).samples["uid"] for shard in shards]
    numbers = np.repeat(np.arange(len(shards)), [len(of_shard) for of_shard in uids])
    line = np.concatenate([*uids, np.empty(0, np.int64)])
    order = np.argsort(line, kind="stable")
    later = order[1:][line[order][1:] == line[order][:-1]]
    for number, count in zip(*np.unique(numbers[later], return_counts=True), strict=True):
        shard = shards[number]
        yield Problem(
            shard.file,
            "",
            f"{count:,} of its {shard.samples:,} keys are keys of shards before it too; a sample's "
            "id is that of its key, so they also share their augmentation",
        )


def old_manifest(folder: Path, tars: list[Tar], codec: Codec) -> Manifest | None:
    """The manifest that is there.

    Raises:
        ShardError: it is of other tars.
    """
    if not (folder / FILE).is_file():
        return None
    old = read_any_manifest(folder, codec)
    missing = {shard.file for shard in old.shards} - {tar.file for tar in tars}
    if missing:
        raise ShardError(
            f"{folder / FILE}: lists {min(missing)}, which is not among the tars to index; "
            "give all of them, name another --out, or remove the manifest"
        )
    return old


def inherit(manifest: Manifest, old: Manifest) -> Manifest:
    """What only an earlier manifest knows; excluded rows stay those of unchanged tars."""
    same = {s.file: s.sha256 for s in manifest.shards}
    exclude = {
        shard.file: old.exclude[shard.file]
        for shard in old.shards
        if shard.file in old.exclude and same.get(shard.file) == shard.sha256
    }
    counted = old.counted if manifest.shards == old.shards else {}
    return replace(
        manifest,
        classes=old.classes,
        seed=old.seed,
        resize=old.resize,
        exclude=exclude,
        counted=counted,
    )
