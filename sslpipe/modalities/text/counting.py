"""How many tokens each document has, counted once for a vocabulary and kept in the indexes.

Rows are planned from these counts, so a recipe names the vocabulary that a set was counted by. On
demand the ids themselves are kept, too, in a file beside each tar (token_file.py), and the lengths
of sentences, from which rows of whole ones are planned (sentence_file.py).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import RecipeError, SampleError, ShardError
from ...shards.make.pools import Pool
from ...shards.make.reindex import (
    finish_reindexing,
    is_staged,
    publish_indexes,
    reindexed,
    staged,
)
from ...shards.manifest import Manifest, Shard, read_manifest
from ...shards.side_files import held
from ...shards.verification import Problem, load_index
from .codec import TextCodec
from .marks import MARKS
from .sentence_file import COUNTED, SentenceFile, sentence_lengths, sentence_path, write_sentences
from .stored_tokens import STORED
from .token_file import (
    TokenFileOf,
    TokenWriter,
    open_tokens,
    token_path,
    token_writer,
    width_of,
)
from .trained import open_vocabulary
from .training import keyed_texts
from .vocabulary import Vocabulary

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
TOKENS = TextCodec.extents.index("tokens")


@dataclass(frozen=True, slots=True)
class CountJob:
    """One shard to count, in any process."""

    manifest: Manifest
    shard: Shard
    vocabulary: Vocabulary
    folder: Path  # for the new index
    ids: bool  # whether the ids are kept
    sentences: bool  # and the lengths of sentences

    @property
    def of(self) -> TokenFileOf:
        """What the token file is of."""
        return TokenFileOf(self.vocabulary.fingerprint, self.shard.sha256)

    @property
    def is_done(self) -> bool:
        """Whether a run that was cut short has done it."""
        if not is_staged(self.folder, self.shard):
            return False
        tar = self.folder / self.shard.file
        with suppress(ShardError):
            if self.ids and not open_tokens(token_path(tar), self.of).has_keys:
                return False  # of an older version
            if self.sentences:
                SentenceFile(sentence_path(tar), self.of)
            return True
        return False


@dataclass(frozen=True, slots=True)
class ShardCounted:
    """What came of a shard: its documents, and those that cannot be read, whose count is 0."""

    documents: int
    problems: tuple[Problem, ...]
    fault: str = ""  # why it came to nothing


@dataclass(frozen=True, slots=True)
class CountedSet:
    """A set that was counted; numbers are of what is not excluded.

    empty: documents without a token, which no row has; problems say why, of those read just now.
    """

    manifest: Manifest
    documents: int
    tokens: int
    text_bytes: int
    empty: int
    problems: tuple[Problem, ...]


def count_tokens(
    shards: str | Path,
    tokenizer: str,
    *,
    pool: Pool,
    ids: bool = False,
    sentences: bool = False,
    rebuild: bool = False,
    progress: Callable[[int], None] | None = None,
) -> CountedSet:
    """Write the tokens of every document into the indexes, and by what into the manifest.

    ids, sentences: also keep the ids, and the lengths of sentences, in files beside each tar; a set
    that has them keeps them. A set that was counted by the same vocabulary stays as it is, unless
    `rebuild`. A run that was cut short is gone on with. `progress`: of a shard's documents.

    Raises:
        RecipeError: there is no such vocabulary, or it is of bytes, which packing counts.
        ShardError: the set is of another modality or lies elsewhere, or a tar cannot be read.
    """
    vocabulary = countable(tokenizer)
    manifest = text_set(shards)
    with held(manifest.folder, "counts tokens"):
        return counted_set(shards, vocabulary, pool, ids, sentences, rebuild, progress)


def counted_set(
    shards: str | Path,
    vocabulary: Vocabulary,
    pool: Pool,
    ids: bool,
    sentences: bool,
    rebuild: bool,
    progress: Callable[[int], None] | None,
) -> CountedSet:
    """What `count_tokens` does, in a folder that nobody else counts in."""
    finish_reindexing(Path(read_manifest(shards).folder))
    manifest = read_manifest(shards)
    asked = ["tokens", *([STORED] if ids else []), *([COUNTED] if sentences else [])]
    had = [name for name, by in manifest.counted.items() if by == vocabulary.fingerprint]
    problems: list[Problem] = []
    if rebuild or {*asked} - {*had}:
        done = recounted(manifest, vocabulary, pool, {*asked, *had}, rebuild=rebuild)
        for found in done:
            problems += found.problems
            if progress:
                progress(found.documents)
        manifest = read_manifest(shards)
    return told(manifest, problems)


def countable(tokenizer: str) -> Vocabulary:
    """A vocabulary whose tokens can be counted.

    Raises:
        RecipeError: there is no such vocabulary, or it is of bytes, which packing counts.
    """
    vocabulary = open_vocabulary(tokenizer, "--tokenizer")
    if not vocabulary.fingerprint:
        raise RecipeError(f"--tokenizer {tokenizer}: bytes are counted by packing; use it at once")
    return vocabulary


def recounted(
    manifest: Manifest, vocabulary: Vocabulary, pool: Pool, asked: Collection[str], *, rebuild: bool
) -> Iterator["ShardCounted"]:
    """Count all shards and publish them at the end; `asked`: as in `counted` of the manifest.

    Raises:
        ShardError: a tar cannot be read, or the disk is full.
    """
    name = vocabulary.fingerprint.removeprefix("b2:")[:16]
    ids, sentences = STORED in asked, COUNTED in asked
    folder = staged(manifest, "-".join([name, *sorted({*asked} - {"tokens"})]))
    jobs = [
        CountJob(manifest, shard, vocabulary, folder, ids, sentences) for shard in manifest.shards
    ]
    jobs = [job for job in jobs if rebuild or not job.is_done]
    for done in pool.imap_unordered(count_shard, jobs, 1):
        if done.fault:
            raise ShardError(done.fault)
        yield done
    publish_indexes(
        replace(manifest, counted=dict.fromkeys(sorted(asked), vocabulary.fingerprint)), folder
    )
    for shard in manifest.shards:  # files of another vocabulary go
        for kept, place in ((ids, token_path), (sentences, sentence_path)):
            if not kept:
                place(manifest.folder / shard.file).unlink(missing_ok=True)


def text_set(shards: str | Path) -> Manifest:
    """The manifest of a set of text.

    Raises:
        ShardError: it is of another modality.
    """
    manifest = read_manifest(shards)
    if manifest.modality != TextCodec.modality:
        raise ShardError(f"{shards}: holds {manifest.modality}, not text; give another set")
    return manifest


def count_shard(job: CountJob) -> ShardCounted:
    """Count one shard; faults are told, since what is raised in a worker loses its place."""
    try:
        return write_counts(job)
    except ShardError as error:
        return ShardCounted(0, (), str(error))
    except OSError as error:
        tar = str(job.manifest.tar_place(job.shard))
        where = error.filename or tar
        remedy = (
            "copy it again"
            if str(where) == tar
            else "make room and see that it can be written, and the same command goes on"
        )
        return ShardCounted(0, (), f"{where}: {error.strerror or error}; {remedy}")


def write_counts(job: CountJob) -> ShardCounted:
    """What `count_shard` does, with errors raised."""
    index = load_index(job.manifest, job.shard)
    counts, problems = np.zeros(len(index), dtype=np.uint32), []
    skip = set(job.manifest.exclude.get(job.shard.file, ()))
    tar = str(job.manifest.tar_place(job.shard))
    sentences = [np.zeros(0, dtype=np.int64)] * len(index)
    with kept_ids(job, len(index)) as writer:
        for row, found in keyed_texts(tar, index, range(len(index))):
            if not isinstance(found, SampleError):
                key, text = found
                ids, sentences[row] = encoded(job, text)
                counts[row] = len(ids)
                if writer:
                    writer.add(row, key, ids)
            elif row not in skip:
                problems.append(Problem(job.shard.file, f"sample {row}", str(found), row))
    if job.sentences:
        write_sentences(sentence_path(job.folder / job.shard.file), job.of, sentences)
    reindexed(job.manifest, job.shard, job.folder, TOKENS, counts)
    return ShardCounted(len(index), tuple(problems))


def encoded(job: CountJob, text: str) -> tuple[I32, I64]:
    """The ids of a text, and the lengths of its sentences, if they are asked for."""
    if not job.sentences:
        return job.vocabulary.encode(text), np.zeros(0, dtype=np.int64)
    marked = job.vocabulary.encode_marked(text)
    return marked & np.int32(~MARKS), sentence_lengths(marked)


@contextmanager
def kept_ids(job: CountJob, documents: int) -> Iterator[TokenWriter | None]:
    """What takes the ids of a job; None: they are not kept."""
    if not job.ids:
        yield None
        return
    path, width = token_path(job.folder / job.shard.file), width_of(job.vocabulary.size)
    with token_writer(path, job.of, documents=documents, width=width) as writer:
        yield writer


def told(manifest: Manifest, problems: list[Problem]) -> CountedSet:
    """The sums of what the indexes say."""
    extents = [
        np.delete(
            load_index(manifest, shard).samples["extent"].astype(np.int64),
            manifest.exclude.get(shard.file, ()),
            axis=0,
        )
        for shard in manifest.shards
    ]
    kept = np.concatenate(extents)
    sums, empty = kept.sum(0), int((kept[:, TOKENS] == 0).sum())
    return CountedSet(manifest, len(kept), int(sums[TOKENS]), int(sums[0]), empty, tuple(problems))
