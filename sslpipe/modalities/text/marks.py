"""Where words and sentences begin in a text, for tasks that hide whole words or part sentences.

A **word** is a run of letters and digits, with the marks upon them; every other sign is one of its
own, and so are ideographs and kana, which stand without spaces. A **sentence** begins a line, or
behind `. ! ?` (with closing quotes and brackets) and space, where no small letter follows; lines
that were wrapped to a width are sentences, too: join them before. Both are of the text, whatever
its tokens are: a token with a space before a word (byte-level BPE) begins that word, a piece of a
word (WordPiece's ##) does not. Touching tokens say nothing: in byte-level BPE, all of them touch.

Marks travel from the worker to the device as bits of ids, where `Maker` takes them off.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
WORD, SENTENCE = 1 << 30, 1 << 29  # bits of the first token of each
LAST = 1 << 28  # of the last token of a sentence
MARKS = WORD | SENTENCE | LAST
APART = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
OTHER, LETTER, MARK, ALONE = range(4)
ENDS = re.compile(r"""[.!?…]+["'”’»)\]]*\s+(?=\S)|\n\s*(?=\S)|[。！？]\s*(?=\S)""")


@cache
def kind_of(sign: str) -> int:
    """What a sign is to words."""
    if any(first <= ord(sign) <= last for first, last in APART):
        return ALONE
    category = unicodedata.category(sign)
    return LETTER if category[0] in "LN" else MARK if category[0] == "M" else OTHER


def of_signs(text: str, look: Callable[[str], int]) -> I64:
    """What `look` says of each sign, (signs,); it is asked once for each that occurs."""
    known = {sign: look(sign) for sign in set(text)}
    table = np.zeros(ord(max(known, default="\0")) + 1, dtype=np.int64)
    for sign, value in known.items():
        table[ord(sign)] = value
    found: I64 = table[np.frombuffer(text.encode("utf-32-le"), "<u4")]
    return found


def sign_marks(text: str) -> I32:
    """Bits of each sign of a text, (signs,): whether a word, or a sentence, begins there."""
    kinds = of_signs(text, kind_of)
    bearer = np.maximum.accumulate(np.where(kinds == MARK, 0, np.arange(len(kinds))))
    kinds = kinds[bearer]  # a mark is what it stands on
    before = np.r_[OTHER, kinds[:-1]]
    begins = (bearer == np.arange(len(kinds))) & ~((kinds == LETTER) & (before == LETTER))
    marks = np.where(begins, WORD, 0).astype(np.int32)
    for match in ENDS.finditer(text):
        if "\n" in match.group() or not text[match.end()].islower():
            marks[match.end()] |= SENTENCE
    if len(marks):
        marks[0] |= SENTENCE
    return marks


def byte_marks(text: str) -> I32:
    """Bits of each byte of UTF-8; the bytes of one sign belong together."""
    data = np.frombuffer(text.encode(), np.uint8)
    marks = np.zeros(len(data), dtype=np.int32)
    marks[(data & 0xC0) != 0x80] = sign_marks(text)
    return marks


def token_marks(text: str, spans: I64) -> I32:
    """Bits of tokens, spans (n, 2): their signs, from and to behind; several may share one."""
    marks = sign_marks(text)
    if not len(spans) or not len(marks):
        return np.zeros(len(spans), dtype=np.int32)
    space = of_signs(text, str.isspace) == 1
    places = np.arange(len(text))
    solid = np.minimum.accumulate(np.where(space, len(text), places)[::-1])[::-1]
    starts = np.minimum(spans[:, 0], len(text) - 1)
    first = np.where(solid[starts] < spans[:, 1], solid[starts], starts)
    new = np.r_[True, first[1:] != first[:-1]]  # else a piece of a sign that was begun
    return np.where(new, marks[first], 0).astype(np.int32)


def with_ends(ids: I32) -> I32:
    """Marked ids of a whole document with the bit of each sentence's last token."""
    ends = np.roll(ids, -1) & SENTENCE  # the first token of a document begins a sentence
    return ids | ends >> 1
