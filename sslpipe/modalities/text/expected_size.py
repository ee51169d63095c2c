"""How large the ids of a set would be, before they are kept: counted, or told from a sample."""

from dataclasses import dataclass

import numpy as np

from ...errors import SampleError
from ...shards.contents import index_of
from ...shards.index import Index
from ...shards.manifest import Manifest, Shard
from .counting import TOKENS, countable
from .token_file import file_bytes, width_of
from .training import keyed_texts, texts_of
from .vocabulary import Vocabulary

SAMPLED = 2_000_000  # bytes of text that tell how many tokens a byte has: a second or two


@dataclass(frozen=True, slots=True)
class ExpectedSize:
    """Of the token files of a set."""

    bytes: int  # but for keys, which are about as long as one that was read in each shard
    tokens: int
    width: int  # bytes of a token
    is_exact: bool  # the set is counted by this vocabulary


def expected_size(manifest: Manifest, tokenizer: str) -> ExpectedSize:
    """What `count --ids` would write.

    Raises:
        RecipeError: there is no such vocabulary, or it is of bytes.
        ShardError: an index or a tar cannot be read.
    """
    vocabulary = countable(tokenizer)
    is_exact = manifest.counted.get("tokens") == vocabulary.fingerprint
    rate = 1.0 if is_exact else tokens_per_byte(manifest, vocabulary)
    size, tokens, width = 0, 0, width_of(vocabulary.size)
    for shard in manifest.shards:
        index = index_of(manifest, shard)
        extents = index.samples["extent"].astype(np.int64)
        each = np.ceil(extents[:, TOKENS if is_exact else 0] * rate).astype(np.int64)
        keys = np.full(len(index), key_bytes(manifest, shard, index), dtype=np.int64)
        size, tokens = size + file_bytes(each, keys, width), tokens + int(each.sum())
    return ExpectedSize(size, tokens, width, is_exact)


def key_bytes(manifest: Manifest, shard: Shard, index: Index) -> int:
    """Bytes of the key of a document in the middle of a shard; the others' are about as long."""
    for _, found in keyed_texts(str(manifest.tar_place(shard)), index, [len(index) // 2]):
        if not isinstance(found, SampleError):
            return len(found[0].encode())
    return 0


def tokens_per_byte(manifest: Manifest, vocabulary: Vocabulary) -> float:
    """Of documents at the beginning of a few shards, that of the text read being SAMPLED bytes."""
    tokens = read = 0
    few = manifest.shards[:: max(1, len(manifest.shards) // 8)]
    for number, shard in enumerate(few, start=1):
        index = index_of(manifest, shard)
        for _, found in texts_of(str(manifest.tar_place(shard)), index, range(len(index))):
            if not isinstance(found, SampleError):
                tokens, read = tokens + len(vocabulary.encode(found)), read + len(found.encode())
            if read >= SAMPLED * number / len(few):
                break
    return tokens / max(1, read)
