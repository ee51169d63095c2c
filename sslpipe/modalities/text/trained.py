"""Vocabularies that were trained: one JSON file of the library `tokenizers`, as a Vocabulary.

The file is that of `sslpipe tokenizer train`, or one that is built alike: `<pad>`, `<s>`, `</s>`
and `<mask>` are ids 0 to 3, `<unk>` is 4 where there is one, `<extra_id_0>` and on (T5's
sentinels, if any) go down from the last id. Its path is seen from the working directory, as those
of shards are: a recipe that a checkpoint keeps has no folder of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, RecipeError, SampleError
from ...process import regular_file
from .fast_bpe import fast_encoder
from .marks import token_marks
from .vocabulary import SPECIALS, UNKNOWN, VOCABULARIES, Vocabulary, sentinel

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FILE = "tokenizer.json"  # beside the shards


@dataclass(frozen=True)
class TrainedVocabulary:
    """A vocabulary read from a file.

    A text is encoded whole, and special tokens that are spelt out in it are text.
    `where`: the file, for messages. data: its bytes, which workers get, so that none of them reads
    a file that was changed meanwhile.
    """

    where: str
    data: bytes = field(repr=False)
    pad: int = 0
    begin: int = 1
    end: int = 2
    mask: int = 3
    counted: int = 1  # tokens

    def __reduce__(self) -> tuple[Any, ...]:  # without the tokenizer, which each process makes
        return TrainedVocabulary, (self.where, self.data)

    @cached_property
    def fingerprint(self) -> str:
        """Of the bytes of the file."""
        return "b2:" + hashlib.blake2b(self.data, digest_size=16).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What encodes; safe in threads.

        Raises:
            ExtraError: `tokenizers` is missing.
            RecipeError: the bytes are no tokenizer.
        """
        made = library(self.where)
        try:
            tokenizer: Tokenizer = made.Tokenizer.from_buffer(self.data)
        except Exception as error:  # the library raises Exception itself
            if "Unknown tokenizer version" in str(error):
                raise RecipeError(
                    f"{self.where}: written by a newer library tokenizers ({error}); upgrade it"
                ) from error
            raise RecipeError(
                f"{self.where}: is no file of the library tokenizers ({error}); make one with "
                "`sslpipe tokenizer train`"
            ) from error
        tokenizer.encode_special_tokens = True  # spelt out in a text, they are text
        tokenizer.no_truncation()  # all three may stand in a file
        tokenizer.no_padding()
        if isinstance(tokenizer.model, made.models.BPE):
            tokenizer.model.dropout = None  # else a text had other ids each time
        return tokenizer

    @cached_property
    def size(self) -> int:
        """Special tokens and sentinels included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def sentinels(self) -> int:
        """How many sentinels the vocabulary has."""
        names = self.tokenizer.get_vocab(with_added_tokens=True)
        return sum(sentinel(number) in names for number in range(self.size))

    @cached_property
    def pieces(self) -> npt.NDArray[np.int64]:
        """From behind the special tokens to before the sentinels, without special ones of a user's.

        These mean something to whoever added them, and no text becomes one.
        """
        unknown = self.tokenizer.token_to_id(UNKNOWN) is not None
        added = self.tokenizer.get_added_tokens_decoder()
        own = [number for number, token in added.items() if token.special]
        return np.setdiff1d(np.arange(len(SPECIALS) + unknown, self.size - self.sentinels), own)

    @cached_property
    def encoder(self) -> Callable[[str], npt.NDArray[np.int32]]:
        """What encodes: tiktoken where it gives the same ids."""
        return fast_encoder(self.tokenizer, self.encode_slowly, self.where) or self.encode_slowly

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Give the ids of a text, (n,) int32."""
        return self.encoder(text)

    def encode_slowly(self, text: str) -> npt.NDArray[np.int32]:
        """By `tokenizers`, (n,) int32."""
        return np.array(self.encoding(text).ids, dtype=np.int32)

    def encoding(self, text: str) -> Encoding:
        """What `tokenizers` makes of a text: ids, and from where to where each is.

        Raises:
            SampleError: it has no token for some of it, and none for what it does not know.
        """
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises Exception itself
            raise SampleError(
                f"has what its vocabulary has no token for ({error}); give that one {UNKNOWN}, or "
                "make one with `sslpipe tokenizer train`"
            ) from error

    def encode_marked(self, text: str) -> npt.NDArray[np.int32]:
        """Give the ids of a text, (n,) int32."""
        found = self.encoding(text)
        spans = np.array(found.offsets, dtype=np.int64).reshape(-1, 2)
        return np.array(found.ids, dtype=np.int32) | token_marks(text, spans)

    def decode(self, ids: npt.NDArray[np.integer[Any]]) -> str:
        """The text; byte-level pieces that are no UTF-8 at the ends become U+FFFD."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def open_vocabulary(name: str, where: str) -> Vocabulary:
    """A vocabulary of the package, or that of a file, checked.

    Raises:
        RecipeError: there is no such file, or its special tokens are not those above.
        ExtraError: `tokenizers` is missing.
    """
    if name in VOCABULARIES:
        return VOCABULARIES[name]
    try:
        data = regular_file(name).read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{where}: vocabulary = {name!r}: is none of {', '.join(VOCABULARIES)}, and no file "
            f"seen from {Path.cwd()} ({error.strerror}); make one with `sslpipe tokenizer train "
            "SHARDS`"
        ) from error
    found = TrainedVocabulary(f"{where}: {name}", data)
    check_specials(found)
    return found


def check_specials(vocabulary: TrainedVocabulary) -> None:
    """Special tokens have the ids that they must have, no text becomes one, and no id is left out.

    Raises:
        RecipeError: not so.
    """
    tokenizer, size = vocabulary.tokenizer, vocabulary.size
    ids = {*tokenizer.get_vocab(with_added_tokens=True).values()}
    if ids != {*range(size)}:  # an embedding has a row for each; two bytes might not hold one
        raise RecipeError(
            f"{vocabulary.where}: its {size:,} tokens have {len(ids):,} ids up to "
            f"{max(ids, default=-1):,}; they must be those from 0 to {size - 1:,}; make a "
            "vocabulary with `sslpipe tokenizer train`"
        )
    wanted = dict(enumerate(SPECIALS))
    if tokenizer.token_to_id(UNKNOWN) is not None:
        wanted[len(SPECIALS)] = UNKNOWN
    wanted |= {size - 1 - number: sentinel(number) for number in range(vocabulary.sentinels)}
    for place, name in wanted.items():
        if tokenizer.id_to_token(place) != name:
            raise RecipeError(
                f"{vocabulary.where}: id {place} is {tokenizer.id_to_token(place)!r}, which must "
                f"be {name!r}; make a vocabulary with `sslpipe tokenizer train`"
            )
        if name != UNKNOWN and place in of_text(vocabulary, name):
            raise RecipeError(
                f"{vocabulary.where}: {name!r} in a text becomes the special token {place}; split "
                "signs from letters before pieces are sought (a Punctuation pre-tokenizer)"
            )
    if not len(vocabulary.pieces):
        raise RecipeError(
            f"{vocabulary.where}: all of its {size:,} tokens are special, so no text can be told "
            "from another; make a vocabulary with `sslpipe tokenizer train`"
        )


def of_text(vocabulary: TrainedVocabulary, text: str) -> list[int]:
    """The ids of a text.

    Raises:
        RecipeError: the vocabulary cannot encode it.
    """
    try:
        ids: list[int] = vocabulary.encode_slowly(text).tolist()
    except SampleError as error:
        raise RecipeError(f"{vocabulary.where}: the text {text!r}: {error}") from error
    return ids


def library(where: str) -> Any:
    """The module `tokenizers`.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ExtraError(
            f"{where}: needs the library tokenizers; pip install sslpipe[text]"
        ) from error
    return tokenizers
