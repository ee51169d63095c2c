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

Beside pictures a group of text has captions, a sample each: captions.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import RecipeError
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
    from .caption_views import CaptionDecider, CaptionMaker
    from .captions import CaptionDecode
    from .decider import TextDecider
    from .maker import TextMaker


class TextModality(Modality):
    """What `modality: text` is."""

    codec = TextCodec()

    def members(self, recipe: Recipe, groups: Sequence[str]) -> frozenset[str]:
        """Of captions the one that their settings say."""
        if not has_captions(recipe, groups):
            return self.codec.extensions
        from .caption_views import caption_settings

        return frozenset({caption_settings(recipe, groups[0]).member})

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> TextDecider | CaptionDecider:
        """One group of rows, its masks and its tasks; or one of captions."""
        from .caption_views import CaptionDecider
        from .decider import TextDecider

        if has_captions(recipe, groups):
            return CaptionDecider(recipe, groups)
        if recipe.modality != self.codec.modality:
            raise RecipeError(
                f"{recipe.path}: views.{groups[0]} is text beside modality {recipe.modality!r}, "
                "which has captions; write ops: [Captions: {length: 32}]"
            )
        return TextDecider(recipe, groups)

    def decoder(self, recipe: Recipe) -> TokenDecode | CaptionDecode:
        """Documents or pieces of them to ids, or one of a sample's captions."""
        from .caption_views import CaptionDecider
        from .decider import tokens_of, vocabulary_of

        groups = [name for name, view in recipe.views.items() if is_text(recipe, view)]
        if has_captions(recipe, groups):
            return CaptionDecider(recipe, groups).decode
        settings, vocabulary = tokens_of(recipe, groups), vocabulary_of(recipe, groups)
        return TokenDecode(
            vocabulary, length=settings.length, begin=settings.begin, end=settings.end
        )

    def layout(self, recipe: Recipe, decider: TextDecider | CaptionDecider) -> RowLayout | None:
        """As `stream.rows` says."""
        return decider.layout(recipe)

    def files(self, recipe: Recipe, decider: TextDecider | CaptionDecider) -> str:
        """The vocabulary's."""
        print_of = decider.vocabulary.fingerprint
        return f"vocabulary {print_of}" if print_of else ""

    def maker(
        self,
        recipe: Recipe,
        decider: TextDecider | CaptionDecider,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> TextMaker | CaptionMaker:
        """Lays pieces, or captions, in rows."""
        from .caption_views import CaptionDecider, CaptionMaker
        from .maker import TextMaker

        return CaptionMaker(decider) if isinstance(decider, CaptionDecider) else TextMaker(decider)

    def sheet(
        self,
        batch: Batch,
        spec: BatchSpec,
        decider: TextDecider | CaptionDecider,
        stored: Column,
        *,
        rows: int = 8,
    ) -> Image:
        """Rows as text, documents coloured; or captions."""
        from .caption_views import CaptionDecider, caption_sheet
        from .sheet import sheet

        if isinstance(decider, CaptionDecider):
            return caption_sheet(batch, decider, rows=rows)
        return sheet(batch, decider, rows=rows)

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """The beginnings of documents."""
        from .sheet import beginnings

        return beginnings(items)

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """Documents as they are, cut off or padded: nothing is random in them."""
        (view,) = (view for view in recipe.views.values() if is_text(recipe, view))
        return {"global": view}


def is_text(recipe: Recipe, view: ViewSection) -> bool:
    """Whether a view group is of this modality."""
    return (view.modality or recipe.modality) == TextCodec.modality


def has_captions(recipe: Recipe, groups: Sequence[str]) -> bool:
    """Whether groups of text are captions.

    Raises:
        RecipeError: there are captions and something else.
    """
    kinds = [op.name == "Captions" for name in groups for op in recipe.views[name].ops]
    if any(kinds) and len(groups) > 1:
        raise RecipeError(f"{recipe.path}: {len(groups)} groups of text; a recipe has one")
    return any(kinds)


MODALITY = TextModality()
