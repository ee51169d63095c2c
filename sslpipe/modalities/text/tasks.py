"""Tasks on rows of tokens: which tokens are hidden, and what stands in their place.

A task gives for each step `nothing`, KEEP, or the id to put there; targets are the ids that stood
there, and IGNORED elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ...rng import Keys
from .pieces import Pieces
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
NOTHING, KEEP = -1, -2  # a step that is not asked for; one that is, and stays as it is
IGNORED = -100  # a target that no loss looks at, as in torch.nn.functional.cross_entropy


class TokenTask(Protocol):
    """Decides a task for pieces."""

    nothing: ClassVar[int]

    def draw(self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary) -> I64:
        """What is to stand at each step of all pieces, (steps,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaskedTokens:
    """BERT's masked tokens: an exact share of each piece, chosen by the piece's own key.

    Devlin et al. 2019, section 3.1, and create_pretraining_data.py: of the chosen tokens 80 %
    become the mask, 10 % a random one, 10 % stay. A deviation: BERT counts 15 % of the length with
    special tokens and draws random ones from the whole vocabulary; here the share is of the tokens
    that may be chosen, at least one, and random tokens are never special.
    """

    nothing: ClassVar[int] = NOTHING
    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share = {self.share}; it lies between 0 and 1")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
            raise ValueError(
                f"mask = {self.mask} and random = {self.random} are shares of the hidden tokens; "
                "neither is below 0 nor their sum above 1"
            )

    def draw(self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary) -> I64:
        """Choose the smallest of one uniform number a token; two more say what becomes of it."""
        lengths = pieces.lengths
        keys = Keys(seed, pieces.epochs, pieces.ids, np.zeros(1, dtype=np.int64))
        drawn = keys.uniforms(stream, 3 * int(lengths.max()))[0].reshape(len(lengths), -1, 3)
        steps = np.arange(drawn.shape[1])
        open_mL = steps < lengths[:, None]
        open_mL[:, 0] &= ~pieces.special[:, 0]
        open_mL[np.arange(len(lengths)), lengths - 1] &= ~pieces.special[:, 1]
        order_mL = np.where(open_mL, drawn[..., 0], 2.0).argsort(1, kind="stable").argsort(1)
        chosen_mL = open_mL & (order_mL < self.counts(open_mL.sum(1))[:, None])
        put_mL = self.replacements(drawn[..., 1], drawn[..., 2], vocabulary)
        return np.where(chosen_mL, put_mL, NOTHING)[steps < lengths[:, None]]

    def counts(self, candidates: I64) -> I64:
        """How many of so many tokens are hidden: rounded half to even, at least one."""
        counts: I64 = np.maximum(1, np.rint(self.share * candidates)).astype(np.int64)
        return counts

    def replacements(
        self, what: npt.NDArray[np.float64], which: npt.NDArray[np.float64], vocabulary: Vocabulary
    ) -> I64:
        """The mask, a random token of text, or KEEP, by two uniform numbers."""
        pieces = vocabulary.pieces
        random = pieces.start + np.floor(which * len(pieces)).astype(np.int64)
        kept = np.where(what < self.mask + self.random, random, KEEP)
        return np.where(what < self.mask, vocabulary.mask, kept)


TASKS: Mapping[str, type[TokenTask]] = MappingProxyType({"mlm": MaskedTokens})
