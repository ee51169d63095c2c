"""A vocabulary from the documents of a packed set, by the library `tokenizers`.

Special tokens come first, T5's sentinels last. BPE is of bytes with the whole alphabet of bytes, so
that decode(encode(text)) == text; WordPiece (lower case, no accents) and unigram (blanks at the
ends) lose some of a text. The same documents give the same file, in any order and on any number of
threads: of unigram up to ties within rounding, since the library adds its scores in random order.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from ...errors import SampleError, SslpipeError
from ...rng import uniforms
from ...shards.contents import index_of
from ...shards.index import Index
from ...shards.manifest import Manifest
from ...shards.read.tars import open_tar
from ...shards.stopping import left_behind
from ...shards.verification import Problem, check_bytes
from ...stream.holdout import held_out
from ...stream.reader import key_in
from .trained import library
from .vocabulary import SPECIALS, UNKNOWN, byte_sign, document_of, sentinel

Kind = Literal["bpe", "wordpiece", "unigram", "bytes"]
SMALLEST = {"bpe": len(SPECIALS) + 256, "bytes": len(SPECIALS) + 256}  # others: by their alphabet
ROUNDED = 6  # digits of a unigram score that are kept; the library's differ in the 14th
STEP = 1e-4  # between the scores of letters that it adds at last
INNER = "##"  # before a WordPiece inside a word


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What is trained, and on how much.

    size: of the vocabulary, special tokens included; `sentinels` come on top. megabytes: of text at
    most, about; of more, the documents are a sample keyed by their uids. holdout: documents that
    recipes with this `stream.holdout.fraction` hold out are left out.

    Raises:
        SslpipeError: a value that makes no sense.
    """

    kind: Kind
    size: int
    sentinels: int = 0
    megabytes: float = 100.0
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SslpipeError(f"--kind {self.kind!r}: use {', '.join(get_args(Kind))}")
        least = SMALLEST.get(self.kind, 2 + len(SPECIALS))
        if self.kind == "bytes" and self.size != least:
            raise SslpipeError(f"--size {self.size}: bytes are always {least}; leave it out")
        if not least <= self.size <= 2**20:
            raise SslpipeError(f"--size {self.size}: of {self.kind} it is {least} to {2**20:,}")
        if not 0 <= self.sentinels <= 1000:
            raise SslpipeError(f"--sentinels {self.sentinels}: is 0 to 1,000; T5 has 100")
        if self.megabytes <= 0:
            raise SslpipeError(f"--megabytes {self.megabytes}: must be more than 0")
        if not 0 <= self.holdout < 1:
            raise SslpipeError(f"--holdout {self.holdout}: is a share from 0 to 1, as in recipes")


@dataclass(frozen=True, slots=True)
class TrainedFile:
    """The bytes of a vocabulary's file, what it was trained on, and what could not be read."""

    data: bytes
    documents: int
    text_bytes: int
    problems: tuple[Problem, ...]


def train_vocabulary(
    manifest: Manifest, settings: TrainSettings, progress: Callable[[int], None] | None = None
) -> TrainedFile:
    """Train on the documents of a set that are not excluded; `progress` gets each one's bytes.

    Raises:
        SslpipeError: the documents have more signs than `size` ids, or too few words for it.
        ExtraError: `tokenizers` is missing.
        ShardError: an index or a tar cannot be read.
    """
    library("sslpipe tokenizer")  # before the documents are read
    problems: list[Problem] = []
    texts = (
        [] if settings.kind == "bytes" else [*chosen_texts(manifest, settings, problems, progress)]
    )
    # the library takes minutes, and no Ctrl-C
    tokenizer = left_behind(lambda: TRAINERS[settings.kind](texts, settings.size))
    found = tokenizer.get_vocab_size()
    if found != settings.size:
        more = (
            "the signs alone are more; name a larger one"
            if found > settings.size
            else (
                "there are no more pieces in the documents; name a smaller one, or give more text"
            )
        )
        raise SslpipeError(f"--size {settings.size}: {settings.kind} makes {found} ids: {more}")
    names = [sentinel(number) for number in reversed(range(settings.sentinels))]
    tokenizer.add_special_tokens(names)
    data = json.dumps(tidied(json.loads(tokenizer.to_str())), ensure_ascii=False, indent=1)
    sizes = [len(text.encode()) for text in texts]
    return TrainedFile((data + "\n").encode(), len(texts), sum(sizes), tuple(problems))


def chosen_texts(
    manifest: Manifest,
    settings: TrainSettings,
    problems: list[Problem],
    progress: Callable[[int], None] | None,
) -> Iterator[str]:
    """The texts to train on; those that cannot be read become problems."""
    indexes = [index_of(manifest, shard) for shard in manifest.shards]
    total = sum(int(index.samples["extent"][:, 0].sum(dtype="int64")) for index in indexes)
    share = settings.megabytes * 1e6 / max(1, total)
    for shard, index in zip(manifest.shards, indexes, strict=True):
        drawn = uniforms(1, seed=0, epoch=0, stream="tokenizer/sample", ids=index.samples["uid"])[
            :, 0
        ]
        comes = (drawn < share) & ~held_out(index.samples["uid"], settings.holdout)
        comes[list(manifest.exclude.get(shard.file, ()))] = False
        rows = np.flatnonzero(comes).tolist()
        for row, found in texts_of(str(manifest.tar_place(shard)), index, rows):
            if progress:
                progress(int(index.samples["extent"][row, 0]))
            if isinstance(found, SampleError):
                problems.append(Problem(shard.file, f"sample {row}", str(found), row))
            else:
                yield found


def texts_of(
    tar: str, index: Index, rows: Iterable[int]
) -> Iterator[tuple[int, str | SampleError]]:
    """The documents of some rows of a tar, checked, or why one is none.

    Raises:
        OSError: the tar cannot be read.
    """
    for row, found in keyed_texts(tar, index, rows):
        yield row, found if isinstance(found, SampleError) else found[1]


def keyed_texts(
    tar: str, index: Index, rows: Iterable[int]
) -> Iterator[tuple[int, tuple[str, str] | SampleError]]:
    """The same with their keys, as (key, text).

    Raises:
        OSError: the tar cannot be read.
    """
    with open_tar(tar) as file:
        for row in rows:
            member = index.payload(row)
            try:
                file.seek(member.start)
                key = key_in(file.read(member.header), index.sample(row).uid)
                data = check_bytes(file, index.extensions[member.ext], member)
                yield row, (key, document_of(data))
            except SampleError as error:
                yield row, error


def byte_pairs(texts: list[str], size: int) -> Any:
    """GPT-2's BPE of bytes (Radford et al. 2019): words with the blank before them, no rules."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def single_bytes(texts: list[str], size: int) -> Any:
    """BPE without a merge: the ids are those of `vocabulary.Bytes`, and may have sentinels."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [*SPECIALS, *map(byte_sign, range(256))]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIALS])
    return tokenizer


def word_pieces(texts: list[str], size: int) -> Any:
    """BERT's WordPiece, uncased: lower case, no accents, signs are words (Devlin et al. 2019).

    The letters inside words are named beforehand: the library numbers them as its hashes fall.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    normalizer, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, split
    tokenizer.decoder = decoders.WordPiece(prefix=INNER)
    inner: set[str] = set()
    for text in texts:
        words = split.pre_tokenize_str(normalizer.normalize_str(text))
        inner.update(*(word[1:] for word, _ in words))
    letters = [INNER + letter for letter in sorted(inner)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIALS, UNKNOWN, *letters],
        continuing_subword_prefix=INNER,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unigrams(texts: list[str], size: int) -> Any:
    """Unigram pieces (Kudo 2018), words with the blank before them, signs apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    # signs apart: else `<pad>` in a text would be the special token
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=[*SPECIALS, UNKNOWN],
        unk_token=UNKNOWN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TRAINERS: Mapping[Kind, Callable[[list[str], int], Any]] = MappingProxyType(
    {"bpe": byte_pairs, "wordpiece": word_pieces, "unigram": unigrams, "bytes": single_bytes}
)


def tidied(document: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a tokenizer without what our training left in it, and in one order."""
    document["added_tokens"] = [
        token for token in document["added_tokens"] if not token["content"].startswith(INNER)
    ]
    model = document["model"]
    if model["type"] == "Unigram":
        pieces = [(piece, round(score, ROUNDED)) for piece, score in model["vocab"]]
        first = len(SPECIALS) + 1
        model["vocab"] = [*pieces[:first], *settled(pieces[first:])]
    return document


def settled(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Unigrams with the letters that the library appends in the order of letters, best first.

    Letters that it pruned come back in the order of its hashes: the first with the lowest score of
    all, each further one STEP above the one before.
    """
    lowest = min(score for _, score in pieces)
    steps = {score: (score - lowest) / STEP for _, score in pieces}
    near = {score: round(step) for score, step in steps.items() if abs(step - round(step)) < 0.1}
    found = [(piece, score) for piece, score in pieces if len(piece) == 1 and score in near]
    taken = {near[score] for _, score in found}
    least = next(step for step in range(len(pieces) + 1) if step not in taken)
    moved = [(piece, score) for piece, score in found if near[score] < least]
    letters = sorted(piece for piece, _ in moved)
    scores = dict(pieces) | dict(zip(letters, sorted(score for _, score in moved), strict=True))
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
