"""Tokens of each sentence of a shard's documents, `X.tar.sent` beside the tar: rows end with them.

    96 bytes        magic, version, documents, sentences, hash of the vocabulary, SHA-256 of the
                    tar, CRC-32 of all this and of all that follows
    4 bytes x       documents, in the order of the tar: how many sentences each has
    4 bytes x       sentences: how many tokens each has

Sentences are those of marks.py, a document's first token begins one. A file is read whole.
"""

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from ...errors import ShardError
from ...process import regular_file
from ...shards.read.store import ShardStore
from ...shards.side_files import other_format, replace_file
from ...stream.packing import Sentences
from .marks import SENTENCE
from .token_file import TokenFileOf

SUFFIX = ".sent"
COUNTED = "sentences"  # in `counted` of a manifest, beside the tokens
MAGIC, VERSION = b"sslsents", 1
HEADER = struct.Struct("<8sHxxIQ16s32sI20x")
AGAIN = "run `sslpipe tokenizer count` with --sentences --rebuild"
OPEN = 1024  # files that a process remembers: 4 bytes a sentence

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


def sentence_path(tar: str | Path) -> Path:
    """The file of sentences that lies beside a tar."""
    return Path(f"{tar}{SUFFIX}")


def sentence_lengths(marked: I32) -> I64:
    """Tokens of each sentence of a document, (s,), of its ids with the bits of marks.py."""
    if not len(marked):
        return np.zeros(0, dtype=np.int64)
    begins = np.union1d(0, np.flatnonzero(marked & SENTENCE))  # the first token begins one
    lengths: I64 = np.diff(begins, append=len(marked))
    return lengths


def write_sentences(path: Path, of: TokenFileOf, documents: Sequence[I64]) -> None:
    """Write the lengths of all documents of a tar, of each those of its sentences.

    Raises:
        OSError: the disk is full or the folder closed; it names the file, and nothing is left.
    """
    counts = np.array([len(lengths) for lengths in documents], dtype="<u4")
    lengths = np.concatenate([np.zeros(0, dtype="<u4"), *documents]).astype("<u4")
    body = counts.tobytes() + lengths.tobytes()
    numbers = len(counts), len(lengths), *of.digests
    crc = crc32(body, crc32(HEADER.pack(MAGIC, VERSION, *numbers, 0)))
    replace_file(path, HEADER.pack(MAGIC, VERSION, *numbers, crc) + body)


class SentenceFile:
    """The file of a tar, read and checked.

    Raises:
        ShardError: it is missing, cut or damaged, or of another vocabulary or tar.
    """

    def __init__(self, path: Path, of: TokenFileOf) -> None:
        try:
            data = regular_file(path).read_bytes()
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise ShardError(f"{path}: is no file of sentences; {AGAIN}")
        _, version, documents, sentences, *digests, crc = HEADER.unpack_from(data)
        if version != VERSION:
            raise ShardError(f"{path}: {other_format(version, VERSION, AGAIN)}")
        for what, found, wanted in zip(("vocabulary", "tar"), digests, of.digests, strict=True):
            if found != wanted:
                raise ShardError(f"{path}: holds the sentences of another {what}; {AGAIN}")
        plain = HEADER.pack(MAGIC, version, documents, sentences, *digests, 0)
        body = data[HEADER.size :]
        if len(body) != 4 * (documents + sentences) or crc32(body, crc32(plain)) != crc:
            raise ShardError(f"{path}: was cut or changed; {AGAIN}")
        numbers = np.frombuffer(body, "<u4")
        self.path, self.counts, self._lengths = path, numbers[:documents], numbers[documents:]

    @cached_property
    def _firsts(self) -> I64:
        """The first sentence of each document, and behind it their number."""
        firsts: I64 = np.r_[0, np.cumsum(self.counts, dtype=np.int64)]
        return firsts

    def of(self, rows: I64) -> Sentences:
        """The sentences of some documents, in their order."""
        counts = self.counts[rows].astype(np.int64)
        begins = self._firsts[rows] - (np.cumsum(counts) - counts)
        places = np.arange(int(counts.sum())) + np.repeat(begins, counts)
        return Sentences(counts, self._lengths[places].astype(np.int64))


class StoredSentences:
    """`(store, shards, rows)` -> the sentences of some documents; safe in threads.

    begin, end: whether a special token stands before a document's first sentence, behind its last.
    """

    def __init__(self, vocabulary: str, *, begin: bool, end: bool) -> None:
        self._vocabulary, self._begin, self._end = vocabulary, begin, end
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], SentenceFile] = OrderedDict()

    def __call__(self, store: ShardStore, shards: I64, rows: I64) -> Sentences:
        """The lengths of sentences, with the tokens around their documents.

        Raises:
            ShardError: as SentenceFile; also the set lies elsewhere.
        """
        counts = np.zeros(len(rows), dtype=np.int64)
        parts: list[tuple[I64, Sentences]] = []
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            found = self._file(store, int(shard)).of(rows[here])
            counts[here] = found.counts
            parts.append((here, found))
        firsts = np.cumsum(counts) - counts
        lengths = np.zeros(int(counts.sum()), dtype=np.int64)
        for here, found in parts:
            begins = firsts[here] - (np.cumsum(found.counts) - found.counts)
            lengths[np.arange(len(found.lengths)) + np.repeat(begins, found.counts)] = found.lengths
        some = counts > 0
        lengths[firsts[some]] += self._begin
        lengths[(firsts + counts - 1)[some]] += self._end
        return Sentences(counts, lengths)

    def _file(self, store: ShardStore, shard: int) -> SentenceFile:
        if isinstance(store.manifest.root, str):
            raise ShardError(
                f"{store.place}: rows of whole sentences are planned from files beside the tars, "
                "which are read here only; copy the set to this machine"
            )
        entry = store.manifest.shards[shard]
        key = store.beside(shard), entry.sha256
        with self._lock:
            found = self._files.get(key)
            if found is None:
                of = TokenFileOf(self._vocabulary, entry.sha256)
                found = self._files[key] = SentenceFile(sentence_path(key[0]), of)
            self._files.move_to_end(key)
            while len(self._files) > OPEN:
                self._files.popitem(last=False)
        return found
