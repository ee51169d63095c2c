"""Text: documents become rows of tokens.

A recipe says how long a row is and whose tokens they are; `stream.rows` packs documents in rows,
planned from the lengths in the index, so that a row is a function of its number:

```yaml
modality: text
stream: {batch_size: 16, rows: {packing: best_fit}}
views: {tokens: {ops: [Tokens: {length: 256, vocabulary: bytes}]}}
```

`vocabulary` may be a file that `sslpipe tokenizer train` has made (trained.py); `sslpipe tokenizer
count` then writes the lengths that rows are planned from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import Modality
from .codec import TextCodec
from .tokens import TokenDecode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL.Image import Image

    from ...batch import Batch, BatchSpec
    from ...recipe import Recipe
    from ...recipe.schema import ViewSection
    from ...stream.packed_rows import RowLayout
    from ...stream.source import Column
    from .decider import TextDecider
    from .maker import TextMaker


READ = 2048  # tokens of a document that are encoded in evaluation, at least a row


class TextModality(Modality):
    """What `modality: text` is."""

    codec = TextCodec()

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> TextDecider:
        """One group of rows, its masks and its tasks."""
        from .decider import TextDecider

        return TextDecider(recipe, groups)

    def decoder(self, recipe: Recipe) -> TokenDecode:
        """Documents or pieces of them to ids."""
        from .decider import tokens_of, vocabulary_of

        groups = [name for name, view in recipe.views.items() if is_text(recipe, view)]
        settings, vocabulary = tokens_of(recipe, groups), vocabulary_of(recipe, groups)
        return TokenDecode(
            vocabulary, length=settings.length, begin=settings.begin, end=settings.end
        )

    def layout(self, recipe: Recipe, decider: TextDecider) -> RowLayout | None:
        """As `stream.rows` says."""
        return decider.layout(recipe)

    def files(self, recipe: Recipe, decider: TextDecider) -> str:
        """The vocabulary's."""
        print_of = decider.vocabulary.fingerprint
        return f"vocabulary {print_of}" if print_of else ""

    def maker(
        self,
        recipe: Recipe,
        decider: TextDecider,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> TextMaker:
        """Lays pieces in rows."""
        from .maker import TextMaker

        return TextMaker(decider)

    def sheet(
        self,
        batch: Batch,
        spec: BatchSpec,
        decider: TextDecider,
        stored: Column,
        *,
        rows: int = 8,
    ) -> Image:
        """Rows as text, documents coloured."""
        from .sheet import sheet

        return sheet(batch, decider, rows=rows)

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """The beginnings of documents."""
        from .sheet import beginnings

        return beginnings(items)

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """The first READ tokens of documents, padded: nothing is random in them.

        Encoders read them in pieces of a row.
        """
        (view,) = (view for view in recipe.views.values() if is_text(recipe, view))
        (op,) = view.ops
        settings = {**op.settings, "length": max(READ, int(op.settings["length"]))}
        return {"global": view.model_copy(update={"ops": (replace(op, settings=settings),)})}


def is_text(recipe: Recipe, view: ViewSection) -> bool:
    """Whether a view group is of this modality."""
    return (view.modality or recipe.modality) == TextCodec.modality


MODALITY = TextModality()
