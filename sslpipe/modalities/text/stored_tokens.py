"""Documents whose ids lie beside the tars (token_file.py): pieces are read, nothing is encoded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ShardError
from .. import Raw
from .token_file import OPENED, SUFFIX, TokenFileOf, open_tokens, token_faults, token_path
from .tokens import IDS, TokenDecode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...device.buffers import Memory
    from ...shards.manifest import Manifest, Shard
    from ...shards.verification import Problem
    from ...stream.reader import Sample

log = logging.getLogger(__name__)
STORED = SUFFIX.removeprefix(".")  # in `counted` of a manifest, beside the counts
LOOKED_AT = 16  # files at most whose header is read when a set is opened


class StoredTokenDecode(TokenDecode):
    """As TokenDecode, of samples whose payload was not read."""

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """The ids of the piece alone, and as extent how many the whole document has.

        Raises:
            SampleError: its ids are damaged, or not as many as the index says.
            ShardError: the token file is missing or damaged, or of another vocabulary or tar.
        """
        assert sample.tar is not None  # an iterable has no files beside its tars
        of = TokenFileOf(self.vocabulary.fingerprint, sample.tar.sha256)
        tokens = OPENED(sample.tar.path, of)
        count = tokens.count(sample.row)
        total = count + self.begin + self.end
        start, length = self.piece(sample, total, instructions)
        stop = min(start + length, total)
        ids, begin, end = np.empty(max(0, stop - start), IDS), self.begin, self.end
        text = slice(begin and start == 0, len(ids) - (end and stop == total))
        ids[text] = tokens.read(sample.row, max(0, start - begin), min(count, stop - begin))
        ids[: text.start], ids[text.stop :] = self.vocabulary.begin, self.vocabulary.end
        return Raw(ids, (total,))


def stored_decode(decode: TokenDecode, sets: Sequence[Manifest]) -> StoredTokenDecode | None:
    """What reads the ids beside the tars, if all sets have them; None: documents are encoded.

    Raises:
        ShardError: a manifest promises them, and a file is missing, damaged or stale.
    """
    if decode.marked or decode.partners:  # words and sentences are seen in texts alone
        return None
    wanted = decode.vocabulary.fingerprint
    found = [manifest.counted.get(STORED) for manifest in sets]
    if not wanted or not any(found):
        return None
    for manifest, told in zip(sets, found, strict=True):
        if told != wanted or isinstance(manifest.root, str):
            what = "lie elsewhere" if told == wanted else f"are those of {told}, not of {wanted}"
            log.warning(
                "%s: the ids beside its tars %s, so documents are tokenised in every epoch; run "
                "`sslpipe tokenizer count SHARDS --tokenizer FILE --ids` on a copy here",
                manifest.root, what,
            )  # fmt: skip
            return None
        check_few(manifest, wanted)
    return StoredTokenDecode(
        decode.vocabulary, length=decode.length, begin=decode.begin, end=decode.end
    )


def check_few(manifest: Manifest, vocabulary: str) -> None:
    """Look at the token files of a few shards; the rest are looked at when they are opened.

    Raises:
        ShardError: one is missing, damaged or stale.
    """
    count = len(manifest.shards)
    for number in sorted({i * (count - 1) // (LOOKED_AT - 1) for i in range(LOOKED_AT)}):
        shard = manifest.shards[number]
        open_tokens(token_path(manifest.folder / shard.file), TokenFileOf(vocabulary, shard.sha256))


def stored_faults(manifest: Manifest, shard: Shard) -> Iterator[Problem]:
    """What is wrong with the files of tokens and sentences of a shard, if its set has them."""
    from ...shards.verification import Problem  # workers do without it
    from .sentence_file import COUNTED, SentenceFile, sentence_path

    sentences = manifest.counted.get(COUNTED)
    if sentences is not None:
        try:
            SentenceFile(
                sentence_path(manifest.folder / shard.file), TokenFileOf(sentences, shard.sha256)
            )
        except ShardError as error:
            yield Problem(shard.file, "", str(error), None)
    vocabulary = manifest.counted.get(STORED)
    if vocabulary is None:
        return
    of = TokenFileOf(vocabulary, shard.sha256)
    for row, what in token_faults(token_path(manifest.folder / shard.file), of):
        key = "" if row is None else f"sample {row}"
        yield Problem(shard.file, key, what, row)
