"""Rows of a packed set as a source: which pieces of which documents stand in a batch.

A batch is of rows; what is loaded are their segments, each told to its decoder. The rest is as of
samples (packed.py), but that a bad document has no substitute: one of another length would not fit,
and would move every row behind it. Its place in the row stays empty, and it is reported.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RecipeError, ShardError, StateError
from ..recipe.schema import HoldoutSection
from ..shards.manifest import Manifest
from ..shards.read.store import ShardStore
from .holdout import lets_through
from .mixture import PLANNED
from .packed import Corpus, Packed, Wants
from .packing import PACKERS, SENTENCE_PACKERS, Segments, Sentences
from .plan import RankSlots, Remainder, Single
from .rows import Anchor, Rows

I64 = npt.NDArray[np.int64]
COUNTED = 1_000_000  # documents of an epoch whose rows are counted: about two seconds
ROW = 4  # samples, as which a row counts where steps are planned together
SAMPLED = 64  # windows that tell how long an epoch of more documents is


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of the index that were counted after packing: which, by what, and the command."""

    extent: str  # its name in the manifest
    fingerprint: str  # of what counted them
    command: str  # that counts them; SHARDS stands for the set


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How documents are laid in rows.

    lengths: steps of documents by their extents in the index, (n, 4) -> (n,); 0: it has none.
    buckets: the lengths, ascending, of which a batch has the smallest that holds its rows, which
    are then of similar length; (): a batch is as long as a row may be. sentences: of packings that
    lay whole ones, steps of those of documents, by the store, their shards, their rows in these.
    """

    length: int
    packing: str  # of packing.PACKERS or SENTENCE_PACKERS
    window: int  # documents that are packed together
    lengths: Callable[[npt.NDArray[np.uint32]], I64]
    where: str  # file:line, for messages
    counts: Counts | None = None  # that lengths need; None: packing has counted
    buckets: tuple[int, ...] = ()
    sentences: Callable[[ShardStore, I64, I64], Sentences] | None = None


def check_counts(manifest: Manifest, layout: RowLayout) -> None:
    """Rows are planned from the counts of the recipe's own vocabulary, say.

    Raises:
        RecipeError: there are none, or others.
    """
    counts = layout.counts
    if counts is None or manifest.counted.get(counts.extent) == counts.fingerprint:
        return
    found = manifest.counted.get(counts.extent, "nothing")
    raise RecipeError(
        f"{layout.where}: {counts.extent} of {manifest.root} were counted by {found}, the recipe's "
        f"are those of {counts.fingerprint}; run `"
        f"{counts.command.replace('SHARDS', str(manifest.root))}`"
    )


def those_of(found: Sentences, lengths: I64, store: ShardStore, shards: I64) -> Sentences:
    """The sentences of documents that come: others have no `lengths`, (n,).

    Raises:
        ShardError: the sentences of a document are not as long as it is.
    """
    owners = np.repeat(np.arange(len(lengths)), found.counts)
    sums = np.bincount(owners, weights=found.lengths, minlength=len(lengths)).astype(np.int64)
    wrong = np.flatnonzero((lengths > 0) & (sums != lengths))
    if len(wrong):
        first = int(wrong[0])
        raise ShardError(
            f"{store.place}/{store.name(int(shards[first]))}: a document has {lengths[first]} "
            f"tokens in the index, and sentences of {sums[first]}; run `sslpipe tokenizer count` "
            "with --sentences --rebuild"
        )
    comes = lengths > 0
    return Sentences(np.where(comes, found.counts, 0), found.lengths[comes[owners]])


class PackedRows(Packed):
    """Rows of one corpus. `epoch_rows`: of an epoch; None: as many as its documents make.

    `holdout`: which documents come; the others have no steps here, so nothing is known of a window
    before it is packed.

    Raises:
        RecipeError: the documents make no row.
    """

    def __init__(
        self,
        corpus: Corpus,
        layout: RowLayout,
        *,
        batch_size: int,
        seed: int,
        slots: RankSlots,
        identity: str,
        epoch_rows: int | None = None,
        remainder: Remainder = "wrap",
        holdout: HoldoutSection | None = None,
    ) -> None:
        self._layout, self._lock = layout, threading.Lock()
        self._holdout = holdout
        documents = corpus.order.samples
        self.rows = Rows(
            documents,
            lambda positions: self._packed(corpus, positions),
            window=min(layout.window, documents),
            seed=seed,
            bucket=batch_size if layout.buckets else None,
        )
        count = epoch_rows or self._count(documents, exactly=remainder == "short")
        if not count:
            among = f" of stream.holdout.part = {holdout.part!r}" if holdout else ""
            larger = "hold out another fraction, " if holdout else ""
            raise RecipeError(
                f"{layout.where}: the documents{among} have no steps, or the index does not know "
                f"how many; {larger}count them (`sslpipe tokenizer count`), or give other shards"
            )
        self.plan: Single = Single(
            count, batch_size=batch_size, remainder=remainder, epoch_samples=epoch_rows
        )
        super().__init__([corpus], self.plan, slots, identity=identity)

    def _packed(self, corpus: Corpus, positions: I64) -> Segments:
        """The rows of a window of documents.

        Raises:
            ShardError: sentences are not those of the index, or their file is missing or damaged.
        """
        layout, located = self._layout, corpus.locate(positions)
        samples = corpus.records.at(located.shards, located.rows).samples
        lengths = layout.lengths(samples["extent"])
        if self._holdout is not None:
            lengths = np.where(lets_through(self._holdout, samples["uid"]), lengths, 0)
        if layout.sentences is None:
            return PACKERS[layout.packing](lengths, layout.length)
        found = layout.sentences(corpus.store, located.shards, located.rows)
        come = those_of(found, lengths, corpus.store, located.shards)
        return SENTENCE_PACKERS[layout.packing](come, layout.length)

    def _count(self, documents: int, *, exactly: bool) -> int:
        """Rows of an epoch: counted, or told from the first windows of a large one."""
        few = 0
        if documents > COUNTED and not exactly:
            few = sum(self.rows.window(window).row_count for window in range(SAMPLED))
        # none in the first windows: a small part is held out of a large set
        told = few * documents // (SAMPLED * min(self._layout.window, documents))
        return told or self.rows.epoch_rows(0)

    @property
    def planned_as(self) -> int:
        """How many samples a step counts as; with buckets, as all that are planned in one go."""
        return PLANNED if self._layout.buckets else ROW * self.share

    def planned(self, steps: Sequence[int]) -> list[Wants]:
        """The segments of this rank's rows of some steps of the epoch of the first, in one go.

        Windows of the next epoch are packed when they are needed.
        """
        epoch = len(self.plan)
        steps = [step for step in steps if step // epoch == steps[0] // epoch]
        positions = [self.picks(step).positions for step in steps]
        ends = np.cumsum([0, *map(len, positions)])
        with self._lock:
            found = self.rows.at(np.concatenate(positions))
        wants = self.located(np.zeros_like(found.rows), found.positions, found.rows >= 0)
        first = ends[np.searchsorted(ends, found.rows, side="right") - 1]  # of each step
        columns = found.rows - first, found.columns, found.starts, found.lengths
        wants = replace(wants, segments=np.stack(columns, axis=1))
        cuts = np.searchsorted(found.rows, ends).tolist()
        return self.kept(wants, [wants.at(slice(*pair)) for pair in pairwise(cuts)])

    def row_length(self, step: int) -> int:
        """The smallest bucket that holds all rows of a global batch; the same on every rank."""
        if not self._layout.buckets:
            return self._layout.length
        with self._lock:
            positions = self.plan(step, np.arange(self.plan.size)).positions
            found = self.rows.at(positions)
        longest = np.bincount(found.rows, weights=found.lengths).max()
        return next(length for length in self._layout.buckets if length >= longest)

    def anchor(self, step: int) -> dict[str, Any]:
        """The window that holds the first row of a step, and that window's first row.

        Without it, all windows before would be packed again to count their rows.
        """
        with self._lock:
            return {"anchor": list(self.rows.anchor(step * self.plan.size))}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Count rows from the anchor of a state; a state without one is counted from the start.

        Raises:
            StateError: the anchor is none.
        """
        found = state.get("anchor", [0, 0])
        numbers = isinstance(found, list) and len(found) == 2 and {*map(type, found)} == {int}
        if not numbers or min(found) < 0:
            raise StateError(
                f"stream state: its anchor is {found!r}; pass what state_dict() returned"
            )
        with self._lock:
            self.rows.resume(Anchor(*found))

    def _shards_of(self, corpus: int) -> Callable[[int], I64]:
        def found(step: int) -> I64:
            with self._lock:  # it is asked from the thread that looks ahead
                segments = self.rows.at(self.picks(step).positions)
            return self.corpora[corpus].shards(segments.positions)

        return found

    def substitutes(self, wants: Wants, attempt: int) -> Any:
        """Refuse: no other document fits where a bad one was."""
        raise AssertionError("rows have no substitutes; on_bad is mask or raise")
