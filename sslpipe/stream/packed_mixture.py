"""Several packed sets as one source, by weight: which slots a rank has changes with the step."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from .lanes import distinct_numbers
from .mixture import Mixture, StepsInARow
from .packed import Corpus, Packed
from .plan import I64, Picks
from .rank_split import RankSplit


class PackedMixture(Packed):
    """Corpora that are mixed; of the lanes of each, a rank walks along as few as it can."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        plan: Mixture,
        *,
        rank: int,
        world_size: int,
        identity: str,
    ) -> None:
        self._split = RankSplit(
            plan,
            samples=np.array([corpus.order.samples for corpus in corpora], dtype=np.int64),
            lanes=np.array([corpus.order.stride for corpus in corpora], dtype=np.int64),
            rank=rank,
            world_size=world_size,
        )
        super().__init__(corpora, plan, self._split, identity=identity)

    def picks(self, step: int) -> Picks:
        """Which samples this rank's are, found without those of the other ranks."""
        return self._split.picks([step])

    def picked(self, steps: Sequence[int]) -> tuple[Picks, list[int]]:
        """Those of some steps behind each other, in one go, and where each step ends."""
        return self._split.picks(steps), [*accumulate([self.share] * len(steps))]

    def _shards_of(self, corpus: int) -> Callable[[int], I64]:
        """Say which shards of a corpus this rank needs for a step; for a thread of its own."""

        def found(steps: Sequence[int]) -> list[I64]:
            positions = self._split.positions(steps, corpus)
            shards = self.corpora[corpus].ahead(np.concatenate(positions))
            ends = np.cumsum([len(some) for some in positions])[:-1]
            return [distinct_numbers(some) for some in np.split(shards, ends)]

        return StepsInARow(found, samples=self.share)


def mixture_identity(corpora: Mapping[str, Corpus], turns: Sequence[int]) -> str:
    """One fingerprint of all corpora, their names and their weights."""
    digest = hashlib.blake2b(digest_size=16)
    for (name, corpus), turn in zip(corpora.items(), turns, strict=True):
        digest.update(f"{name} {corpus.fingerprint} {turn}\n".encode())
    return "b2:" + digest.hexdigest()
