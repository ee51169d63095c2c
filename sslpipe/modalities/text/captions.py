"""The caption of a picture to ids of tokens, in a worker: no torch, no draws.

Captions are a group of text beside one of another modality, which owns the sample's payload:

```yaml
views:
  global: {ops: [RandomResizedCrop: {size: [64, 64]}]}
  text: {modality: text, ops: [Captions: {length: 32, field: captions}]}
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from ...shards.side_files import parse_json
from .. import Raw
from .vocabulary import Vocabulary, text_of

if TYPE_CHECKING:
    from ...device.buffers import Memory
    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
WORD = 32  # bits of the keyed number by which one of several captions is chosen
IDS = np.int32


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The one op of a group: a caption of each sample, `length` tokens with those around it.

    vocabulary: `bytes`, or a file of `sslpipe tokenizer train`. field: what the captions are called
    in the sample's `.json`, a text or a list of texts; None: its `.txt` is the caption. lower: in
    lower case. begin, end: whether the vocabulary's tokens of that name stand around it. choice:
    which of several captions, from 0 on, the last one where there are fewer; None: one that is
    chosen by (seed, epoch, uid).
    """

    length: int
    vocabulary: str = "bytes"
    field: str | None = None
    lower: bool = True
    begin: bool = True
    end: bool = True
    choice: int | None = None

    def __post_init__(self) -> None:
        around = self.begin + self.end
        if not around < self.length <= 2**16:
            raise ValueError(f"length = {self.length}; set {around + 1} to {2**16:,} tokens")
        if self.choice is not None and self.choice < 0:
            raise ValueError(
                f"choice = {self.choice}; set 0 for the first caption, or leave it out"
            )

    @property
    def member(self) -> str:
        """The extension of the member that holds them."""
        return "txt" if self.field is None else "json"


class CaptionDecode:
    """`decode(sample, (word,))` -> (n,) int32 ids of one caption, of `settings.length` at most.

    word: a number of 32 bits; as extent come the ids' number, which caption it is, and of how many.
    """

    def __init__(self, settings: Captions, vocabulary: Vocabulary) -> None:
        self.settings, self.vocabulary = settings, vocabulary

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """Not told: the choice does not need it."""
        return (0, 0, 0)

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of the longest ids, (B,)."""
        return np.full(len(sizes), np.dtype(IDS).itemsize * self.settings.length, dtype=np.int64)

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """The ids of the caption that the word chooses: number floor(word / 2^32 * captions).

        Raises:
            SampleError: there is no caption, or it is no text.
        """
        texts, choice = self.texts(sample.data), self.settings.choice
        if choice is None:
            number = instructions[0] * len(texts) >> WORD
        else:
            number = min(choice, len(texts) - 1)
        ids = self.ids(self.cleaned(texts[number]))
        return Raw(ids, (len(ids), number, len(texts)))

    def texts(self, data: bytes) -> list[str]:
        """All captions of a member, as they are written; those of blanks alone do not count.

        Raises:
            SampleError: there is none, or the member is not what the settings say.
        """
        field = self.settings.field
        found = [text_of(data)] if field is None else texts_in(data, field)
        texts = [text for text in found if text and not text.isspace()]
        if not texts:
            where = ".txt" if field is None else f".json under {field!r}"
            raise SampleError(f"has no caption in its {where}; leave it out, or write one")
        return texts

    def cleaned(self, text: str) -> str:
        """Runs of white space are one blank, and upper case is lower if so set.

        Officially ftfy mends broken encodings first; here what is no UTF-8 is a bad sample.
        """
        words = " ".join(text.split())
        return words.lower() if self.settings.lower else words

    def ids(self, text: str) -> npt.NDArray[np.int32]:
        """(n,): what is too long is cut, and the end token is the last one even so."""
        settings, vocabulary = self.settings, self.vocabulary
        kept = vocabulary.encode(text)[: settings.length - settings.begin - settings.end]
        ids = np.empty(len(kept) + settings.begin + settings.end, dtype=IDS)
        ids[settings.begin : settings.begin + len(kept)] = kept
        if settings.begin:
            ids[0] = vocabulary.begin
        if settings.end:
            ids[-1] = vocabulary.end
        return ids


def texts_in(data: bytes, field: str) -> list[str]:
    """The texts that a JSON object has under a name.

    Raises:
        SampleError: it is no object, or has something else there, or what is no Unicode.
    """
    try:
        found: Any = parse_json(text_of(data))
    except ValueError as error:
        raise SampleError(f"its .json does not parse ({error}); write it anew") from error
    value = found.get(field) if isinstance(found, Mapping) else None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        known = (
            f"it has {', '.join(map(str, found))}" if isinstance(found, Mapping) else "no object"
        )
        raise SampleError(
            f"its .json has no {field!r} that is a text or a list of texts ({known}); set field of "
            "Captions to its name"
        )
    try:
        "".join(texts).encode()  # of all: which is chosen does not decide whether a sample is bad
    except UnicodeEncodeError as error:  # half of a pair of UTF-16, as JSON can write it
        raise SampleError(
            f"its .json under {field!r} has the sign {error.object[error.start]!r}, which is no "
            "Unicode; correct it"
        ) from error
    return texts
