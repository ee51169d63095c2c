"""DECIDE and DO for captions: which of a sample's captions, and its ids in a row of its own."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...batch import IGNORED, Batch, MaskSpec, TargetSpec, ViewSpec
from ...device.ragged import Ragged
from ...errors import RecipeError
from ...recipe import Recipe
from ...recipe.names import call
from ...rng import Keys, Place
from ...stream.packed_rows import RowLayout
from .. import Made, Raw, Tables
from .captions import CaptionDecode, Captions
from .maker import padded_rows
from .sheet import LINE, MARGIN, cells, draw_lines, font, in_lines
from .trained import open_vocabulary

I64 = npt.NDArray[np.int64]
STREAM = "captions"  # of the draws
HEAD = 320  # pixels, about, that the first line of a band takes


class CaptionDecider:
    """All that a recipe decides of its group of captions, checked and ready.

    Raises:
        RecipeError: captions are no payload, and masks and tasks do not suit them.
    """

    masks: Mapping[str, MaskSpec] = {}
    targets: Mapping[str, TargetSpec] = {}

    def __init__(self, recipe: Recipe, groups: Sequence[str]) -> None:
        (self.group,) = groups
        self.settings, self.seed = caption_settings(recipe, self.group), recipe.stream.seed
        entry = recipe.views[self.group].ops[0]
        self.vocabulary = open_vocabulary(self.settings.vocabulary, entry.where)
        self.decode = CaptionDecode(self.settings, self.vocabulary)
        self.views = {
            self.group: ViewSpec(
                self.group, 1, "L", (self.settings.length,), torch.int64,
                columns=("caption", "captions"), vocabulary=self.vocabulary.size,
            )
        }  # fmt: skip
        for section in (recipe.masks, recipe.targets):
            for name, item in section.items():
                if item.view == self.group:
                    kind = "masks" if section is recipe.masks else "targets"
                    raise RecipeError(
                        f"{recipe.where(kind, name, 'view')}: {kind}.{name} is of views."
                        f"{self.group}, captions, which no mask or task changes; name another view"
                    )

    @property
    def summaries(self) -> dict[str, str]:
        """How long captions are, and of what."""
        settings = self.settings
        where = f".{settings.member}" + (f" {settings.field!r}" if settings.field else "")
        said = f"captions of {settings.length} tokens, vocabulary {settings.vocabulary}, in {where}"
        return {self.group: said}

    def layout(self, recipe: Recipe) -> RowLayout | None:
        """Captions are no rows of documents.

        Raises:
            RecipeError: they are the payload.
        """
        raise RecipeError(
            f"{recipe.views[self.group].ops[0].where}: Captions stand beside a picture, and here "
            "the modality is text; write modality: image, or ops: [Tokens: {length: 256}]"
        )

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """(B, 1): the number of 32 bits by which a worker chooses among a sample's captions."""
        keys = Keys(self.seed, epochs, uids, np.zeros(1, dtype=np.int64))
        words: I64 = keys.words(STREAM, 1)[0].astype(np.int64)
        return words

    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """Nothing more; `params` tells which caption each sample has, and of how many."""
        chosen = extents[None, :, 1:3].astype(np.float32)
        return Tables(params={self.group: chosen}, masks={}, targets={}, extents=extents)


def caption_settings(recipe: Recipe, group: str) -> Captions:
    """The settings of a group's op, which is `Captions`.

    Raises:
        RecipeError: a setting is wrong, or there is another op or view.
    """
    view = recipe.views[group]
    if len(view.ops) != 1 or view.count != 1:
        raise RecipeError(
            f"{view.ops[0].where}: views.{group} is of captions, which has one view and one op; "
            "write ops: [Captions: {length: 32}] and leave count out"
        )
    made: Captions = call(Captions, view.ops[0])
    return made


class CaptionMaker:
    """Lays each caption in a row, padded."""

    def __init__(self, decider: CaptionDecider) -> None:
        self._decider = decider
        self.blank = Raw(np.zeros(0, dtype=np.int32), (0, 0, 0))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Rows (1, B, L) int64, their lengths and segments."""
        pieces = arrays if isinstance(arrays, Ragged) else Ragged.of(arrays)
        length, device = self._decider.settings.length, pieces.flat_N.device
        real_BL = np.arange(length) < pieces.shapes_BD[:, :1]
        real = torch.from_numpy(real_BL).to(device, non_blocking=True).long()
        group, positions = self._decider.group, torch.arange(length, device=device)
        return Made(
            views={group: padded_rows(pieces, length, self._decider.vocabulary.pad)[None]},
            targets={},
            lengths={group: real.sum(1)[None]},
            segments={group: torch.stack([real - 1, positions * real])},
        )


def caption_sheet(batch: Batch, decider: CaptionDecider, *, rows: int) -> Image.Image:
    """A band for each sample, all equally high: key, which caption of how many, its tokens."""
    tokens_BL = batch.views[decider.group][0][:rows].tolist()
    lengths = batch.lengths[decider.group][0][:rows].tolist()
    laid = [
        in_lines(cells(row[:n], [0] * n, np.full(n, IGNORED), decider.vocabulary))
        for row, n in zip(tokens_BL, lengths, strict=True)
    ]
    band = LINE * (max(map(len, laid)) + 2)
    right = max(sum(cell.width for cell in line) for lines in laid for line in lines)
    picture = Image.new("RGB", (max(right, HEAD) + 2 * MARGIN, len(laid) * band), "white")
    pen, chosen = ImageDraw.Draw(picture), batch.params[decider.group][0].int().tolist()
    for row, (lines, key) in enumerate(zip(laid, batch.keys, strict=False)):
        number, count = chosen[row]
        which = f", caption {number + 1} of {count}" if count > 1 else ""
        title = f"{key}{which}: {lengths[row]} tokens"
        pen.text((MARGIN, row * band), title, "dimgray", font())
        draw_lines(pen, lines, row * band + LINE)
    return picture
