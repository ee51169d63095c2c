r"""tiktoken as the encoder of a byte-level BPE that `tokenizers` has trained: ten times as fast.

tiktoken joins whatever pair makes a token, `tokenizers` only the pairs that its file lists. Both
give the same ids for every word if each token's own letters are joined to that token by the listed
pairs: pairs are joined in the order of their tokens, so what could become a token in another way
never arises. That is checked for every token. What is left is how a text is split into words, by
the tables of Unicode that each library has: texts of all kinds, and the first documents of a
process, are encoded by both. Where one differs, `tokenizers` encodes, and a log line says so.

GPT-2's `\s+(?!\S)` leaves the last of several blanks to the word behind them. To look ahead costs
tiktoken a third of its time, and the stack where there are a million blanks; so a text is cut
before each such blank, and its parts are split without it. No word reaches over a cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .vocabulary import SPECIALS, byte_sign

if TYPE_CHECKING:
    from tiktoken import Encoding
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)
# GPT-2's words (Radford et al. 2019), as the ByteLevel of `tokenizers` has them, of parts of texts
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
# what \s is in both libraries: Unicode's White_Space, without Python's U+001C to U+001F
BLANK = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
BLANK += "".join(map(chr, range(0x2000, 0x200B)))
BLANKS = np.zeros(0x3002, dtype=np.bool_)  # by code point; the last one stands for all behind
BLANKS[[ord(sign) for sign in BLANK]] = True
SPLITS = [
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim, "use_regex": True}
    for trim in (True, False)
]
CHECKED = 16  # documents of each process that both encode
AWKWARD = (
    " a  b\n\n\tx\r\n \r\n  ",
    "don't DON'T we'll 'sx '",
    "é e\u0301 ß İ ﬁ ½ Ⅷ ² ٣ ०१",
    "漢字かな 한국어",
    "🙂🙂🏽‍🚀 ©®™",
    "<mask><pad></s> <|endoftext|>",
    "\ufeff\u200b\u2028\u2029\x85\xa0\u3000x\0\U0010ffff",
    "ǅ ªº ʰ ͅ ा ់ ௧ 𝟘 𞤀 ᏸ Ↄ ꟲ \ue000 \u0378",
)
I32 = npt.NDArray[np.int32]


class FastBytePairs:
    """Encodes by tiktoken; by `slow` from the first text on of which they think differently."""

    def __init__(self, fast: Encoding, slow: Callable[[str], I32], name: str) -> None:
        self._fast, self._slow, self._name = fast, slow, name
        self.agrees, self._unchecked = True, CHECKED + len(AWKWARD)

    def __call__(self, text: str) -> I32:
        """The ids, (n,)."""
        if not self.agrees:
            return self._slow(text)
        found = self.found(text)
        if not self._unchecked:
            return found
        self._unchecked -= 1
        return self.checked(text, found)

    def found(self, text: str) -> I32:
        """The ids that tiktoken gives."""
        encode = self._fast.encode_to_numpy  # special tokens that are spelt out are text
        ids = [encode(part, disallowed_special=()) for part in parts_of(text)]
        return np.concatenate(ids, dtype=np.int32, casting="unsafe")

    def checked(self, text: str, found: I32) -> I32:
        """The ids that `tokenizers` gives, compared with those that were found."""
        truth = self._slow(text)
        if not np.array_equal(found, truth):
            self.agrees = False
            log.warning(
                "%s: tiktoken gives other ids than tokenizers for %r..., so tokenizers encodes, at "
                "a tenth of the speed; install other versions of either",
                self._name, text[:40],
            )  # fmt: skip
        return truth


def fast_encoder(
    tokenizer: Tokenizer, slow: Callable[[str], I32], name: str
) -> FastBytePairs | None:
    """What encodes by tiktoken; None: it is not installed, or this is no BPE of words."""
    try:
        import tiktoken
    except ImportError:
        return None
    document = json.loads(tokenizer.to_str())
    if document["normalizer"] or document["pre_tokenizer"] not in SPLITS:
        return None
    if not all(token["special"] for token in document["added_tokens"]):
        return None  # they are found in texts, as special ones are not, before words are
    ranks = ranks_of(document["model"])
    if ranks is None or not joins_its_own(tokenizer.model, document["model"]):
        return None
    special = {SPECIALS[0]: 0}  # with none, an empty one is found at every sign: twice the time
    encoding = tiktoken.Encoding(name, pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)
    made = FastBytePairs(encoding, slow, name)
    for text in AWKWARD:
        made(text)
    return made


def parts_of(text: str) -> list[str]:
    """The text, cut before the last of several blanks where something else is behind that."""
    signs = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    blank = BLANKS.take(signs, mode="clip")
    cuts = np.flatnonzero(blank[:-2] & blank[1:-1] & ~blank[2:]) + 1
    return [text[begin:end] for begin, end in pairwise([0, *cuts.tolist(), len(text)])]


def ranks_of(model: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The bytes of each token -> its id; None: its merges are not in the order of their tokens."""
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "byte_fallback": False}  # fmt: skip
    if model["type"] != "BPE" or any(model[key] != value for key, value in plain.items()):
        return None
    signs = {byte_sign(value): value for value in range(256)}
    made = [model["vocab"].get("".join(pair), -1) for pair in model["merges"]]
    letters = [model["vocab"].get(sign, -1) for sign in signs]
    if any(b <= a for a, b in pairwise([max(letters), *made])) or min(letters) < 0:
        return None
    tokens = {token: number for token, number in model["vocab"].items() if number not in range(4)}
    if len(tokens) != len(letters) + len(made):
        return None
    return {bytes(signs[sign] for sign in token): number for token, number in tokens.items()}


def joins_its_own(bpe: Any, model: Mapping[str, Any]) -> bool:
    """Whether the letters of every token are joined to it by the listed pairs."""
    tokens = ("".join(pair) for pair in model["merges"])
    return all(len(bpe.tokenize(token)) == 1 for token in tokens)
