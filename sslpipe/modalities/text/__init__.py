"""Text: documents become rows of tokens.

A recipe says how long a row is and whose tokens they are; `stream.rows` packs documents in rows,
planned from the lengths in the index, so that a row is a function of its number:

```yaml
modality: text
stream: {batch_size: 16, rows: {packing: best_fit}}
views: {tokens: {ops: [Tokens: {length: 256, vocabulary: bytes}]}}
```

`vocabulary` may be a file that `sslpipe tokenizer train` has made (trained.py); `sslpipe tokenizer
count` then writes the lengths that rows are planned from, and with `--ids` the ids themselves, so
that no run tokenises (stored_tokens.py).

Beside pictures a group of text has captions, a sample each: captions.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import RecipeError
from .. import Modality, Partners
from .codec import TextCodec
from .tokens import TokenDecode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL.Image import Image

    from ...batch import Batch, BatchSpec
    from ...recipe import Recipe
    from ...recipe.schema import ViewSection
    from ...shards.manifest import Manifest, Shard
    from ...shards.verification import Problem
    from ...stream.packed_rows import RowLayout
    from ...stream.source import Column
    from .. import Costs
    from .caption_views import CaptionDecider, CaptionMaker
    from .captions import CaptionDecode
    from .decider import TextDecider
    from .maker import TextMaker
    from .stored_tokens import StoredTokens


READ = 2048  # tokens of a document that are encoded in evaluation, at least a row


class TextModality(Modality):
    """What `modality: text` is."""

    codec = TextCodec()
    unit, steps = "document", "tokens"

    def advice(self, recipe: Recipe, what: Costs, *, cuda: bool) -> str:
        """Ids that are kept; shorter rows."""
        return {
            "decoding": "keep the ids of a vocabulary that is not bytes beside the tars with "
            "`sslpipe tokenizer count --ids`",
            "making": "use shorter rows, fewer tasks or fewer masks",
            "memory": "shorter rows",
        }[what]

    def members(self, recipe: Recipe, groups: Sequence[str]) -> frozenset[str]:
        """Of captions the one that their settings say."""
        if not has_captions(recipe, groups):
            return self.codec.extensions
        from .caption_views import caption_settings

        return frozenset({caption_settings(recipe, groups[0]).member})

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> TextDecider | CaptionDecider:
        """One group of rows, its masks and its tasks; or one of captions.

        Raises:
            RecipeError: the views are text, but the recipe's modality is one with captions.
        """
        from .caption_views import CaptionDecider
        from .decider import TextDecider

        if has_captions(recipe, groups):
            return CaptionDecider(recipe, groups)
        if recipe.modality != self.codec.modality:
            raise RecipeError(
                f"{recipe.where('views', groups[0])}: views.{groups[0]} is text beside modality "
                f"{recipe.modality!r}, which has captions; write ops: [Captions: {{length: 32}}]"
            )
        return TextDecider(recipe, groups)

    def decoder(self, recipe: Recipe) -> TokenDecode | CaptionDecode:
        """Documents or pieces of them to ids, or one of a sample's captions."""
        from .caption_views import CaptionDecider
        from .decider import TextDecider

        groups = [name for name, view in recipe.views.items() if is_text(recipe, view)]
        if has_captions(recipe, groups):
            return CaptionDecider(recipe, groups).decode
        decider = TextDecider(recipe, groups)
        settings = decider.tokens
        return TokenDecode(
            decider.vocabulary,
            length=decider.room,
            begin=settings.begin,
            end=settings.end,
            marked=decider.marked,
            partners=decider.partners > 0,
        )

    def partners(self, recipe: Recipe, decider: TextDecider | CaptionDecider) -> Partners | None:
        """Other documents, for a task that puts them behind what they do not follow."""
        from .decider import TextDecider

        if not isinstance(decider, TextDecider) or not decider.partners:
            return None
        return Partners(decider.partners, decider.partner_instructions)

    def layout(self, recipe: Recipe, decider: TextDecider | CaptionDecider) -> RowLayout | None:
        """As `stream.rows` says."""
        from .caption_views import CaptionDecider
        from .layout import row_layout

        if isinstance(decider, CaptionDecider):
            return decider.layout(recipe)
        return row_layout(recipe, decider)

    def files(self, recipe: Recipe, decider: TextDecider | CaptionDecider) -> str:
        """The vocabulary's."""
        print_of = decider.vocabulary.fingerprint
        return f"vocabulary {print_of}" if print_of else ""

    def stored_reader(
        self, decode: TokenDecode | CaptionDecode, sets: Sequence[Manifest]
    ) -> StoredTokens | None:
        """Of sets whose ids `sslpipe tokenizer count --ids` has kept."""
        from .stored_tokens import stored_tokens

        return stored_tokens(decode, sets)

    def stored_faults(self, manifest: Manifest, shard: Shard) -> Iterator[Problem]:
        """Damaged ids, if a set has some."""
        from .stored_tokens import stored_faults

        return stored_faults(manifest, shard)

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


def has_captions(recipe: Recipe, groups: Sequence[str]) -> bool:
    """Whether groups of text are captions.

    Raises:
        RecipeError: there are captions and something else.
    """
    kinds = [op.name == "Captions" for name in groups for op in recipe.views[name].ops]
    if any(kinds) and len(groups) > 1:
        where = recipe.where("views", *groups[1:2])
        raise RecipeError(f"{where}: {len(groups)} groups of text; a recipe has one")
    return any(kinds)


MODALITY = TextModality()
