"""How documents are laid in rows, as `stream.rows` says: checked, and what is planned from."""

from ...errors import RecipeError
from ...recipe import Recipe
from ...stream.packed_rows import Counts, RowLayout
from ...stream.packing import SENTENCE_PACKERS
from .codec import TextCodec
from .decider import TextDecider
from .sentence_file import COUNTED, StoredSentences


def row_layout(recipe: Recipe, decider: TextDecider) -> RowLayout | None:
    """How documents are laid in rows; None: each document is a row, cut off or padded.

    Raises:
        RecipeError: a task wants other rows, or nothing counts what these are planned from.
    """
    rows = recipe.stream.rows
    if rows is None:
        return None
    where = f"{recipe.where('stream', 'rows')}: stream.rows"
    packing = (
        f"{recipe.where('stream', 'rows', 'packing')}: stream.rows: packing = {rows.packing!r}"
    )
    length, names = decider.tokens.length, [*decider.tasks]
    if decider.pairs and rows.packing not in ("one", "split"):
        raise RecipeError(
            f"{packing} lays several documents in a row, which is to be "
            f"one of two texts ({names[0]}); write packing: split"
        )
    if rows.bucket and (decider.pairs or decider.views[decider.group].shape != (length,)):
        raise RecipeError(
            f"{recipe.where('stream', 'rows', 'bucket')}: stream.rows.bucket: {', '.join(names)} "
            "makes rows of one length of whatever comes, so batches cannot have another; leave "
            "bucket out"
        )
    whole = rows.packing in SENTENCE_PACKERS
    return RowLayout(
        decider.room, rows.packing, rows.window, decider.lengths, where,
        counts_of(decider, sentences=whole),
        bucket_lengths(length) if rows.bucket else (),
        sentences_of(decider, packing) if whole else None,
    )  # fmt: skip


def counts_of(decider: TextDecider, *, sentences: bool) -> Counts | None:
    """Which counts rows need; None: they are of bytes, which packing counts."""
    name, vocabulary = decider.tokens.vocabulary, decider.vocabulary
    if not vocabulary.fingerprint:
        return None
    command = f"sslpipe tokenizer count SHARDS --tokenizer {name}"
    if sentences:
        return Counts(COUNTED, vocabulary.fingerprint, f"{command} --sentences")
    return Counts(TextCodec.extents[vocabulary.counted], vocabulary.fingerprint, command)


def sentences_of(decider: TextDecider, where: str) -> StoredSentences:
    """What tells how long sentences are.

    Raises:
        RecipeError: nothing counts those of this vocabulary.
    """
    tokens, wanted = decider.tokens, decider.vocabulary.fingerprint
    if not wanted:
        raise RecipeError(
            f"{where} needs sentences that are counted, which those of vocabulary "
            f"{tokens.vocabulary} are not; write one of bytes by `sslpipe tokenizer train --kind "
            "bytes`, and count with --sentences"
        )
    return StoredSentences(wanted, begin=tokens.begin, end=tokens.end)


def bucket_lengths(length: int) -> tuple[int, ...]:
    """The lengths that batches of similar rows may have: eight at most, so as many shapes.

    Each is a half or a third more than the one before it, so less than a third of a batch is
    padding but where all are short; multiples of 8, as matrix units want them.
    """
    shares = (3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
    return (
        *sorted({b for s in shares if (b := -(-int(length * s) // 8) * 8 or 8) < length}),
        length,
    )
