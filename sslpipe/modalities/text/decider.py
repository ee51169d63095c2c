"""DECIDE for text: what a row is, and which of its tokens a task changes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from ...batch import MaskSpec, TargetSpec, ViewSpec
from ...errors import RecipeError
from ...recipe import Entry, Recipe
from ...recipe.names import call, choose
from ...rng import Keys, Place
from ...shards.codec import EXTENTS
from ...stream.lanes import first_of_runs
from ...stream.source import ROW, Drawn
from .. import Tables
from .corruption import SpanCorruption
from .denoisers import DenoiserMixture
from .masked import MaskedTokens
from .masked_words import MaskedWords
from .pairs import BITS, SPECIAL, NextSentence, SentenceOrder, SentencePairs
from .pieces import Pieces, pieces_of, whole_rows
from .spans import MaskedSpans
from .tasks import TokenTask
from .tokens import OWN
from .trained import open_vocabulary
from .vocabulary import Vocabulary
from .word_spans import MaskedWordSpans

I64 = npt.NDArray[np.int64]
EXACT = 2**24  # whole numbers up to which float32 holds, as of tables that are drawn ahead
TASKS: Mapping[str, type[TokenTask]] = MappingProxyType(
    {
        "mlm": MaskedTokens,
        "nsp": NextSentence,
        "sop": SentenceOrder,
        "spans": MaskedSpans,
        "t5": SpanCorruption,
        "ul2": DenoiserMixture,
    }
)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The one op of a group: rows of `length` tokens, documents between `begin` and `end`.

    vocabulary: `bytes`, or a file of `sslpipe tokenizer train`, seen from the working directory.
    """

    length: int
    vocabulary: str = "bytes"
    begin: bool = False
    end: bool = True

    def __post_init__(self) -> None:
        if self.length < 2 or self.length > 2**20:
            raise ValueError(f"length = {self.length}; a row has 2 to {2**20:,} tokens")


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task on the rows."""

    name: str
    task: TokenTask
    spec: TargetSpec


class TextDecider:
    """All that a recipe decides of its group of rows, checked and ready.

    Raises:
        RecipeError: more than one op, group or view, or a task that does not suit.
    """

    masks: Mapping[str, MaskSpec] = {}  # tasks hide tokens

    def __init__(self, recipe: Recipe, groups: Sequence[str]) -> None:
        self.tokens, self.seed = tokens_of(recipe, groups), recipe.stream.seed
        (self.group,) = groups
        self.vocabulary = vocabulary_of(recipe, groups)
        self.views = {
            self.group: ViewSpec(
                self.group, 1, "L", (self.tokens.length,), torch.int64,
                vocabulary=self.vocabulary.size,
            )
        }  # fmt: skip
        self.tasks: dict[str, NamedTask] = {}
        for name, target in recipe.targets.items():
            if target.view == self.group:
                self._add(name, target.task)
        for name, mask in recipe.masks.items():
            if mask.view == self.group:
                raise RecipeError(
                    f"{mask.sampler.where}: masks.{name} covers patches, and views.{self.group} "
                    "has tokens, which tasks hide; write targets: {mlm: {task: mlm}}"
                )

    def _add(self, name: str, entry: Entry) -> None:
        """Put a task behind those that are there; a task that makes other rows is alone.

        Raises:
            RecipeError: unknown task or setting, rows that do not suit it, or another task.
        """
        task: TokenTask = call(choose(entry, TASKS, "task of text"), entry)
        if isinstance(task, MaskedTokens) and (task.words or self.pairs):
            task = MaskedWords(**asdict(task))
        if isinstance(task, MaskedSpans) and task.words:
            task = MaskedWordSpans(**asdict(task))
        view, around = self.views[self.group], self.tokens.begin or self.tokens.end
        try:
            left, spec = task.specs(view, self.vocabulary, around=around)
        except ValueError as error:
            raise RecipeError(entry.told(str(error))) from error
        if self.tasks and (left != view or view.shape != (self.tokens.length,)):
            raise RecipeError(
                f"{entry.where}: targets.{name} and {', '.join(self.tasks)}: one of them makes "
                "other rows, where no task can stand beside it; write one"
            )
        if isinstance(task, SentencePairs) and self.tasks:
            raise RecipeError(
                f"{entry.where}: targets.{name} parts the rows that {', '.join(self.tasks)} would "
                "have changed already; write it first, and only one such task"
            )
        if self.pairs and isinstance(task, MaskedSpans) and not task.words:
            raise RecipeError(
                f"{entry.where}: targets.{name}: spans are laid before rows are parted in two "
                "texts; write spans: {words: true}, which are laid behind that"
            )
        self.views[self.group] = left
        self.tasks[name] = NamedTask(name, task, spec)

    @property
    def pairs(self) -> SentencePairs | None:
        """The task that parts rows in two texts; None: there is none."""
        first = next(iter(self.tasks.values()), None)
        return first.task if first and isinstance(first.task, SentencePairs) else None

    @property
    def marked(self) -> bool:
        """Whether a task must know where words or sentences begin."""
        tasks = [made.task for made in self.tasks.values()]
        return any(
            isinstance(t, SentencePairs) or (isinstance(t, MaskedTokens | MaskedSpans) and t.words)
            for t in tasks
        )

    @property
    def partners(self) -> int:
        """How many other documents each piece needs."""
        return self.pairs.partners if self.pairs else 0

    @property
    def room(self) -> int:
        """How many tokens of documents a row has."""
        return self.tokens.length - (SPECIAL if self.pairs else 0)

    @property
    def targets(self) -> dict[str, TargetSpec]:
        """What each task asks of a batch."""
        return {name: made.spec for name, made in self.tasks.items()}

    @property
    def summaries(self) -> dict[str, str]:
        """How long rows are, and of what."""
        tokens = self.tokens
        return {self.group: f"rows of {tokens.length} tokens, vocabulary {tokens.vocabulary}"}

    def lengths(self, extents: npt.NDArray[np.uint32] | I64) -> I64:
        """Tokens of documents, with those around them; 0 of one whose tokens are not counted."""
        known = extents[:, self.vocabulary.counted].astype(np.int64)
        return np.where(known > 0, known + self.tokens.begin + self.tokens.end, 0)

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """Nothing beside the pieces, which the stream tells; with partners, that it is none."""
        return np.full((len(uids), 1 if self.partners else 0), OWN, dtype=np.int64)

    def partner_instructions(self, *, epochs: I64, uids: I64, extents: I64, turns: I64) -> I64:
        """Which sentence of a partner its tokens begin with, as a number of 24 bits, (B, 1)."""
        keys = Keys(self.seed, epochs, uids, np.zeros(1, dtype=np.int64))
        drawn = keys.uniforms(f"targets/{next(iter(self.tasks))}/partner", 1)[0]
        chosen: I64 = (drawn * 2**BITS).astype(np.int64)
        return chosen

    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """What tasks do, and `extents` (m, 6): the segment of each piece, the steps of its document
        and the length of rows.

        Draws are of the piece, (seed, epoch, uid, start): a piece keeps them in any row.
        """
        pieces = self._pieces(place, extents, epochs=epochs, uids=uids)
        length = self._length(place)
        seen = {n: self._seen(made.task, pieces) for n, made in self.tasks.items()}
        tables = {n: self._table(made, seen[n], length) for n, made in self.tasks.items()}
        return self._decided(pieces, seen, tables, length)

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """Which tokens are hidden in the rows of some steps; None: no task hides such, or no rows.

        extents: (m, 8) of the index and, behind it, the segment of each piece, whose row is counted
        over all steps. The table of a row stands at its first piece, as 2 S numbers.
        """
        if {type(made.task) for made in self.tasks.values()} != {MaskedTokens}:
            return None
        if extents.shape[1] == EXTENTS or self.vocabulary.size > EXACT:
            return None
        totals, segments = self.lengths(extents[:, :EXTENTS])[:, None], extents[:, EXTENTS:]
        first = first_of_runs(segments[:, ROW])
        place = Place(0, np.arange(len(first)), len(first), segments)
        pieces, params = self._pieces(place, totals, epochs=epochs, uids=uids), {}
        for name, made in self.tasks.items():
            table = self._table(made, pieces, self._length(place)).reshape(1, len(first), -1)
            params[name] = np.zeros((1, len(uids), table.shape[2]), dtype=np.float32)
            params[name][:, first] = table
        return Drawn(epochs, uids, totals, params)

    def decide_drawn(
        self, drawn: Drawn, *, epochs: I64, uids: I64, place: Place, extents: I64
    ) -> Tables:
        """As `decide`."""
        pieces = self._pieces(place, extents, epochs=epochs, uids=uids)
        first = first_of_runs(pieces.segments[:, ROW])
        tables = {
            name: drawn.params[name][:, first].astype(np.int64).reshape(1, len(first), 2, -1)
            for name in self.tasks
        }
        return self._decided(pieces, dict.fromkeys(tables, pieces), tables, self._length(place))

    def _pieces(self, place: Place, extents: I64, *, epochs: I64, uids: I64) -> Pieces:
        """The pieces of rows; extents: (B, E), behind those of partners."""
        around = replace(self.tokens, length=self.room)
        return pieces_of(place, extents[: len(uids), 0], epochs=epochs, uids=uids, tokens=around)

    def _length(self, place: Place) -> int:
        """Steps of a row."""
        return self.tokens.length if self.pairs else place.row_length or self.tokens.length

    def _decided(
        self, pieces: Pieces, seen: Mapping[str, Pieces], tables: dict[str, I64], length: int
    ) -> Tables:
        """What is told to the maker; `seen`: the pieces as each task finds them."""
        asked = {n: self.tasks[n].task.counts(t[0], seen[n], length) for n, t in tables.items()}
        shapes = np.stack([pieces.totals, np.full_like(pieces.totals, length)], axis=1)
        return Tables(
            params={},
            masks={},
            targets=tables,
            asked={name: counts[None] for name, counts in asked.items()},
            extents=np.concatenate([pieces.segments, shapes], axis=1),
        )

    def _seen(self, task: TokenTask, pieces: Pieces) -> Pieces:
        """The pieces as a task finds them: of parted rows, each is one piece, whatever is in it."""
        parted = self.pairs is not None and task is not self.pairs
        return whole_rows(pieces, self.tokens.length) if parted else pieces

    def _table(self, made: NamedTask, pieces: Pieces, length: int) -> I64:
        """(1, B, ...) of a task, over the rows."""
        stream = f"targets/{made.name}"
        return made.task.draw(pieces, stream, self.seed, self.vocabulary, length)[None]


def tokens_of(recipe: Recipe, groups: Sequence[str]) -> Tokens:
    """The one op of the one group of text.

    Raises:
        RecipeError: there are more, or it is no `Tokens`.
    """
    if len(groups) != 1:
        where = recipe.where("views", *groups[1:2])
        raise RecipeError(f"{where}: {len(groups)} groups of text; a recipe has one")
    group = recipe.views[groups[0]]
    if len(group.ops) != 1 or group.count != 1:
        raise RecipeError(
            f"{group.ops[0].where}: views.{groups[0]} is of text, which has one view and one op; "
            "write ops: [Tokens: {length: 256}] and leave count out"
        )
    made: Tokens = call(choose(group.ops[0], {"Tokens": Tokens}, "op of text"), group.ops[0])
    return made


def vocabulary_of(recipe: Recipe, groups: Sequence[str]) -> Vocabulary:
    """Whose tokens they are.

    Raises:
        RecipeError: as `tokens_of`; also the vocabulary is no file, or none of ours.
    """
    name = tokens_of(recipe, groups).vocabulary
    return open_vocabulary(name, recipe.views[groups[0]].ops[0].where)
