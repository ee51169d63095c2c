"""From the bytes of a member to its text, and from text to ids of tokens. Light: for workers.

Rules for bytes: a byte-order mark is dropped, CR LF and CR are LF, NUL stays; what is no UTF-8 is
no text. A `.json` member is an object whose "text" is the document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from ...shards.side_files import parse_json
from .marks import byte_marks

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
FIELD = "text"  # of a JSON object
# in a file of the library `tokenizers`
SPECIALS = ("<pad>", "<s>", "</s>", "<mask>")  # ids 0 to 3, as of Bytes
UNKNOWN = "<unk>"  # of vocabularies that do not know every sign


class Vocabulary(Protocol):
    """Text to ids. Ids of special tokens never come from text. It is picklable, for workers."""

    @property
    def size(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def mask(self) -> int: ...
    @property
    def pieces(self) -> I64:
        """The ids that text becomes, ascending, but for that of what is unknown."""
        ...

    @property
    def sentinels(self) -> int:
        """How many ids at the end stand for hidden spans; the first is the last id (T5)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what it was read from; "": it is part of the package."""
        ...

    @property
    def counted(self) -> int:
        """Which number of a document's extent says how many ids its text has."""
        ...

    def encode(self, text: str) -> I32:
        """The ids of a text, (n,), without begin and end."""
        ...

    def encode_marked(self, text: str) -> I32:
        """The same with the bits of marks.py, where words and sentences begin."""
        ...

    def decode(self, ids: npt.NDArray[np.integer[Any]]) -> str:
        """The text of ids; special tokens are left out."""
        ...


def sentinel(number: int) -> str:
    """The name that T5's sentinels have."""
    return f"<extra_id_{number}>"


def byte_sign(value: int) -> str:
    """The letter that stands for a byte: itself if it can be seen, else the next from U+0100 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(value if value in seen else 256 + sum(v not in seen for v in range(value)))


@dataclass(frozen=True)
class Bytes:
    """A token is a byte of UTF-8; it needs no training, no file and no dependency."""

    pad: int = 0
    begin: int = 1
    end: int = 2
    mask: int = 3
    first: int = 4  # the id of byte 0
    sentinels: int = 0
    fingerprint: str = ""
    counted: int = 0  # bytes

    @property
    def size(self) -> int:
        """All ids: special ones, bytes, sentinels."""
        return self.first + 256 + self.sentinels

    @cached_property
    def pieces(self) -> I64:
        """The ids that stand for pieces of text: those of the 256 bytes."""
        return np.arange(self.first, self.first + 256)

    def encode(self, text: str) -> I32:
        """(n,) int32, n = bytes of the text."""
        found: I32 = np.frombuffer(text.encode(), np.uint8) + np.int32(self.first)
        return found

    def encode_marked(self, text: str) -> I32:
        """(n,) int32, n = bytes of the text."""
        return self.encode(text) | byte_marks(text)

    def decode(self, ids: npt.NDArray[np.integer[Any]]) -> str:
        """The text; bytes that are no UTF-8, as at the ends of a cut document, become U+FFFD."""
        plain = ids[(ids >= self.first) & (ids < self.first + 256)] - self.first
        return plain.astype(np.uint8).tobytes().decode(errors="replace")


VOCABULARIES: Mapping[str, Vocabulary] = MappingProxyType(
    {"bytes": Bytes(), "bytes_t5": Bytes(sentinels=100)}  # as many as T5 has
)


def text_of(data: bytes) -> str:
    """The text of a payload, by the rules above.

    Raises:
        SampleError: it is no UTF-8, or a JSON object without text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(
            f"byte {error.start} is not UTF-8 ({error.reason}); convert the document"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def document_of(data: bytes) -> str:
    """The text of a member: of a JSON object where it is one, else all of it.

    Raises:
        SampleError: as `text_of`; or an object without a text, or one that cannot be read.
    """
    text = text_of(data)
    found = object_in(text)
    return text if found is None else text_in(found)


def is_object(data: bytes) -> bool:
    """Whether a member is a JSON object, and no document that begins with a brace.

    Raises:
        SampleError: as `text_of` and `object_in`.
    """
    return object_in(text_of(data)) is not None


def object_in(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None: it is a document.

    It is read as the text that it is: of bytes, `json` guesses the encoding, and finds UTF-16.

    Raises:
        SampleError: it may be one, but has too many digits in a row or braces in each other.
    """
    if not text.lstrip(" \t\n").startswith("{"):
        return None
    try:
        found: dict[str, Any] = parse_json(text)
    except json.JSONDecodeError:
        return None
    except ValueError as error:
        raise SampleError(
            f"begins as a JSON object that cannot be read ({error}); leave out what is not its text"
        ) from error
    return found


def text_in(document: Mapping[str, Any]) -> str:
    """The text of a JSON object.

    Raises:
        SampleError: it has none.
    """
    found = document.get(FIELD)
    if not isinstance(found, str):
        raise SampleError(f"its JSON object has no {FIELD!r} that is a text; name the field so")
    try:
        return text_of(found.encode())
    except UnicodeEncodeError as error:  # half of a pair of UTF-16
        raise SampleError(f"sign {error.start} of its text is no Unicode; correct it") from error
