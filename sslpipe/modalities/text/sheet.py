"""Rows of tokens as a picture: documents in colours, what a task hides framed.

The signs are those that Pillow's own font has: < and > around a document, a bar for the mask, *
for a sentinel. Of targets that are rows of their own nothing is drawn.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...batch import Batch
from .decider import TextDecider
from .tasks import IGNORED
from .vocabulary import Vocabulary, document_of

CELL = (9, 18)  # pixels of a token: one sign
ACROSS = 128  # tokens before a row goes on below
COLOURS = ("#dbeafe", "#fef3c7", "#dcfce7", "#fae8ff", "#ffe4e6", "#e0f2fe")
SPECIAL, HIDDEN = "#9ca3af", "#b91c1c"


def sheet(batch: Batch, decider: TextDecider, *, rows: int) -> Image.Image:
    """The first rows of a batch, each in lines of 128 tokens, with its key above."""
    tokens_BL = batch.views[decider.group][0][:rows].cpu().numpy()
    documents_BL = batch.segments[decider.group][0][:rows].cpu().numpy()
    beside = [name for name in decider.tasks if name not in batch.segments]
    asked = [batch.targets[name][0][:rows].cpu().numpy() != IGNORED for name in beside]
    hidden_BL = np.any(asked, axis=0) if asked else np.zeros_like(tokens_BL, dtype=bool)
    lines = -(-tokens_BL.shape[1] // ACROSS)
    height = (lines + 2) * CELL[1]
    picture = Image.new("RGB", (ACROSS * CELL[0] + 16, len(tokens_BL) * height + 8), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for row, key in zip(range(len(tokens_BL)), batch.keys, strict=False):
        top = 8 + row * height
        pen.text((8, top), f"{key} and others", "black", font)
        for place, token in enumerate(tokens_BL[row].tolist()):
            corner = 8 + place % ACROSS * CELL[0], top + (1 + place // ACROSS) * CELL[1]
            document = int(documents_BL[row, place])
            draw_token(pen, corner, signs(token, decider.vocabulary), document,
                       hidden=bool(hidden_BL[row, place]))  # fmt: skip
    return picture


def draw_token(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, document: int, *, hidden: bool
) -> None:
    """One token on the colour of its document."""
    x, y = corner
    box = (x, y, x + CELL[0] - 1, y + CELL[1] - 2)
    ground = COLOURS[document % len(COLOURS)] if document >= 0 else "#f3f4f6"
    pen.rectangle(box, fill=ground, outline=HIDDEN if hidden else None)
    colour = SPECIAL if text in (*SIGNS.values(), "/") else "black"
    if text == SIGNS["mask"]:
        pen.rectangle((x + 2, y + 3, x + CELL[0] - 4, y + CELL[1] - 6), fill=HIDDEN)
    else:
        pen.text((x + 1, y + 1), text, colour, ImageFont.load_default(13))


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
