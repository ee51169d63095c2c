"""Rows of tokens as a picture: documents, or two texts, in colours, what a task hides framed.

The signs are those that Pillow's own font has: < and > around a document, a bar for the mask, *
for a sentinel. Of targets that are rows of their own nothing is drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...batch import Batch
from .decider import TextDecider
from .tasks import IGNORED
from .vocabulary import Vocabulary, document_of

CELL = (9, 18)  # pixels of a sign
ACROSS = 128  # signs before a row goes on below
COLOURS = ("#dbeafe", "#fef3c7", "#dcfce7", "#fae8ff", "#ffe4e6", "#e0f2fe")
SPECIAL, HIDDEN = "#9ca3af", "#b91c1c"


class Cell(NamedTuple):
    """A token on the sheet: what is written, where, and how many signs it takes."""

    text: str
    line: int
    column: int
    width: int

    def box(self, top: int) -> tuple[int, int, int, int]:
        """Its pixels, of a row that begins at `top`; the first line holds the key."""
        x, y = 8 + self.column * CELL[0], top + (1 + self.line) * CELL[1]
        return x, y, x + self.width * CELL[0] - 1, y + CELL[1] - 2


def sheet(batch: Batch, decider: TextDecider, *, rows: int) -> Image.Image:
    """The first rows of a batch, each in lines of 128 signs, with its key and class above."""
    tokens_BL = batch.views[decider.group][0][:rows].cpu().numpy()
    segments = batch.segments[decider.group][:, :rows].cpu().numpy()
    documents_BL = segments[0] + (segments[2] if len(segments) > 2 else 0)
    whole = [name for name, spec in decider.targets.items() if not spec.shape]  # of a row
    beside = [name for name in decider.tasks if name not in (*batch.segments, *whole)]
    asked = [batch.targets[name][0][:rows].cpu().numpy() != IGNORED for name in beside]
    hidden_BL = np.any(asked, axis=0) if asked else np.zeros_like(tokens_BL, dtype=bool)
    laid = [cells([signs(t, decider.vocabulary) for t in row]) for row in tokens_BL.tolist()]
    heights = [(row[-1].line + 3) * CELL[1] for row in laid]
    picture = Image.new("RGB", (ACROSS * CELL[0] + 16, sum(heights) + 8), "white")
    pen, font, top = ImageDraw.Draw(picture), ImageFont.load_default(13), 8
    for row, key in zip(range(len(laid)), batch.keys, strict=False):
        classes = (f"{name} {int(batch.targets[name][0, row])}" for name in whole)
        pen.text((8, top), ", ".join([*classes, f"{key} and others"]), "black", font)
        for place, cell in enumerate(laid[row]):
            document, hidden = int(documents_BL[row, place]), bool(hidden_BL[row, place])
            draw_token(pen, cell.box(top), cell.text, document, hidden=hidden)
        top += heights[row]
    return picture


def cells(texts: Sequence[str]) -> list[Cell]:
    """Tokens one after another, a sign at least each, in lines that none stands across."""
    found: list[Cell] = []
    line = column = 0
    for text in texts:
        width = min(max(1, len(text)), ACROSS)
        if column + width > ACROSS:
            line, column = line + 1, 0
        found.append(Cell(text, line, column, width))
        column += width
    return found


def draw_token(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    text: str,
    document: int,
    *,
    hidden: bool,
) -> None:
    """One token on the colour of its document."""
    x, y, right, bottom = box
    ground = COLOURS[document % len(COLOURS)] if document >= 0 else "#f3f4f6"
    pen.rectangle(box, fill=ground, outline=HIDDEN if hidden else None)
    colour = SPECIAL if text in (*SIGNS.values(), "/") else "black"
    if text == SIGNS["mask"]:
        pen.rectangle((x + 2, y + 3, right - 3, bottom - 4), fill=HIDDEN)
    else:
        for place, sign in enumerate(text):
            pen.text((x + 1 + place * CELL[0], y + 1), sign, colour, ImageFont.load_default(13))


SIGNS = {"pad": "", "begin": "<", "end": ">", "mask": "|", "sentinel": "*"}


def signs(token: int, vocabulary: Vocabulary) -> str:
    """What stands for a token: its text, or a sign for what is none."""
    special = {
        vocabulary.pad: "pad", vocabulary.begin: "begin", vocabulary.end: "end",
        vocabulary.mask: "mask",
    }  # fmt: skip
    if token in special:
        return SIGNS[special[token]]
    if token >= vocabulary.size - vocabulary.sentinels:
        return SIGNS["sentinel"]
    text = vocabulary.decode(np.array([token]))
    return text if text.isascii() and text.isprintable() else "/"


def beginnings(items: Sequence[tuple[bytes, Sequence[str]]]) -> Image.Image:
    """The first two lines of documents, with the captions below each."""
    font, height = ImageFont.load_default(13), 5 * CELL[1]
    picture = Image.new("RGB", (ACROSS * CELL[0] + 16, max(1, len(items)) * height), "white")
    pen = ImageDraw.Draw(picture)
    for place, (data, captions) in enumerate(items):
        text = document_of(data)[: 2 * ACROSS].replace("\n", "/")
        lines = [text[:ACROSS], text[ACROSS:], " · ".join(captions)]
        for line, words in enumerate(lines):
            pen.text((8, place * height + line * CELL[1]), words, "black", font)
    return picture
