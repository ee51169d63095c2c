"""Other samples of the set that a part of the recipe asks for beside each of its own.

A sound to be mixed into another, a document that does not follow: a partner is drawn by the key of
the sample that it is for, (seed, epoch, uid, start of the piece), so it is the same whatever else
stands in the batch, on any number of ranks and after any resume. Partners are loaded as samples
are, behind them; a bad one is replaced by the next draw of the same key.

It is another sample of the same shard, which is open, or on its way, already: one of the whole set
would make a rank fetch a shard a sample where the shards lie elsewhere. Sets are packed shuffled.
Where a shard has one sample, it is any other of the set; where the set has one, that itself.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from ..rng import piece_ids, words
from .lanes import distinct_numbers
from .packed import Packed, Wants
from .source import I64, START


@dataclass(frozen=True, slots=True)
class PartnerDraw:
    """Draws `count` partners of each sample of a source; 0: samples are alone."""

    source: Packed
    count: int
    seed: int

    def beside(self, wants: Wants) -> Wants:
        """Samples, and behind them the first partner of each, the second of each, and so on."""
        if not self.count:
            return wants
        places = np.tile(np.arange(len(wants)), self.count)
        turns = np.repeat(np.arange(1, 1 + self.count), len(wants))
        return Wants.joined([wants, self.drawn(wants.at(places), turns)])

    def drawn(self, wants: Wants, turns: I64, attempt: int = 0) -> Wants:
        """The partner of each sample, `turns` (n,) saying which from 1; the `attempt`-th draw."""
        owners = self._keys(wants)
        found = self._words(owners, wants.epochs, turns, attempt)
        shards, rows = wants.shards.copy(), wants.rows.copy()
        for corpus in distinct_numbers(wants.corpora):
            here = wants.corpora == corpus
            shards[here], rows[here] = self.source.corpora[corpus].another(
                wants.shards[here], wants.rows[here], found[here]
            )
        return replace(wants, shards=shards, rows=rows, turns=turns, owners=owners)

    def _keys(self, wants: Wants) -> I64:
        """What draws for samples are keyed by, beside their epoch."""
        uids = self.source.records(wants).samples["uid"].astype(np.int64)
        return piece_ids(uids, wants.segments[:, START]) if wants.segments.shape[1] else uids

    def _words(self, owners: I64, epochs: I64, turns: I64, attempt: int) -> I64:
        """(n,) numbers below 2**63; a remainder of one is even to a part in 2**63 / samples."""
        drawn = words(
            2, seed=self.seed, epoch=epochs, stream="partners", ids=owners, view=turns,
            first=attempt,
        )  # fmt: skip
        whole = drawn[..., 0] << np.uint64(31) ^ drawn[..., 1]
        return (whole & np.uint64(2**63 - 1)).astype(np.int64)


def put_wants(wants: Wants, places: I64, other: Wants) -> Wants:
    """Samples with others in some places."""
    found = {f.name: getattr(wants, f.name).copy() for f in fields(Wants)}
    for name, values in found.items():
        values[places] = getattr(other, name)
    return Wants(**found)
