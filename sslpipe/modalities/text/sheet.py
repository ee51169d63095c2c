"""Rows of tokens as a picture: documents in colours, what a task asks for framed, the answer below.

A token is as wide as it is written, with a gap behind it if it is more than a byte. The signs of
special tokens are those that Pillow's own font has: < and > around a document, a bar for the mask,
*0, *1 ... for sentinels, / for what cannot be written. Targets that are rows of their own, as T5's,
stand below their row.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ...batch import IGNORED, Batch
from .decider import TextDecider
from .vocabulary import Vocabulary, document_of

LINE = 18  # pixels
ACROSS = 1152  # pixels before a row goes on below
MARGIN = 8
COLOURS = ("#dbeafe", "#fef3c7", "#dcfce7", "#fae8ff", "#ffe4e6", "#e0f2fe")
SPECIAL, HIDDEN, NOTHING = "#6b7280", "#b91c1c", "#f3f4f6"
I64 = npt.NDArray[np.int64]
MASK = "|"


class Cell(NamedTuple):
    """A token on the sheet. answer: what a task asks for there; None: it asks nothing."""

    text: str
    special: bool
    document: int
    answer: str | None
    gap: int = 0  # pixels behind it

    @property
    def width(self) -> int:
        """In pixels, with the gap behind it."""
        least = max(width_of(self.text), width_of(self.answer or ""), 5)
        return min(least + self.gap, ACROSS)


class Strip(NamedTuple):
    """A row of tokens under a title, or a row of targets under it."""

    title: str
    cells: list[Cell]


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(13)


@cache
def width_of(text: str) -> int:
    """How many pixels wide a text is drawn."""
    return round(font().getlength(text))


def sheet(batch: Batch, decider: TextDecider, *, rows: int) -> Image.Image:
    """The first rows of a batch, each in lines, with its key above and its targets below."""
    found = [
        strip for row in range(min(rows, len(batch.keys))) for strip in strips(batch, decider, row)
    ]
    laid = [in_lines(strip.cells) for strip in found]
    heights = [LINE * (len(lines) * 2 if asks(lines) else len(lines)) for lines in laid]
    height = sum(heights) + (LINE + LINE // 2) * len(found) + MARGIN
    ends = [sum(cell.width for cell in line) for lines in laid for line in lines]
    across = max(*ends, *(width_of(strip.title) for strip in found))
    picture = Image.new("RGB", (across + 2 * MARGIN, height), "white")
    pen, top = ImageDraw.Draw(picture), MARGIN
    for strip, lines, tall in zip(found, laid, heights, strict=True):
        pen.text((MARGIN, top), strip.title, "black", font())
        draw_lines(pen, lines, top + LINE)
        top += LINE + tall + LINE // 2
    return picture


def strips(batch: Batch, decider: TextDecider, row: int) -> list[Strip]:
    """A row, and what tasks want to be written of it."""
    vocabulary, segments = decider.vocabulary, batch.segments[decider.group][:, row]
    whole = [name for name, spec in decider.targets.items() if not spec.shape]  # classes of a row
    beside = [name for name in decider.tasks if name not in (*batch.segments, *whole)]
    answers = np.full(segments.shape[1], IGNORED)
    for name in beside:
        asked = batch.targets[name][0][row].cpu().numpy()
        answers = np.where(asked != IGNORED, asked, answers)
    tokens = batch.views[decider.group][0][row].tolist()
    texts = segments[0] + segments[2:].sum(0)  # the second text of a pair has a colour of its own
    classes = [f"{name} {int(batch.targets[name][0, row])}" for name in whole]
    several = np.unique(segments[0][segments[0] >= 0]).size > 1
    title = ", ".join([f"{batch.keys[row]} and others" if several else batch.keys[row], *classes])
    found = [Strip(title, cells(tokens, texts.tolist(), answers, vocabulary))]
    return found + [
        to_be_written(batch, name, row, vocabulary)
        for name in decider.tasks
        if name in batch.segments
    ]


def to_be_written(batch: Batch, name: str, row: int, vocabulary: Vocabulary) -> Strip:
    """The targets of a task that are a row of their own."""
    wanted, of = batch.targets[name][0][row].tolist(), batch.segments[name][0][row].tolist()
    kept = [pair for pair in zip(wanted, of, strict=True) if pair[0] != IGNORED]
    ids, numbers = [list(column) for column in zip(*kept, strict=True)] or ([], [])
    nothing = np.full(len(ids), IGNORED)
    return Strip(f"{name}: to be written", cells(ids, numbers, nothing, vocabulary))


def cells(
    tokens: Sequence[int], documents: Sequence[int], answers: I64, vocabulary: Vocabulary
) -> list[Cell]:
    """A cell of each token; of padding at the end one."""
    found = []
    for token, document, answer in zip(tokens, documents, answers.tolist(), strict=True):
        text, special = signs(token, vocabulary)
        asked = None if answer == IGNORED else signs(answer, vocabulary)[0]
        apart = bool(vocabulary.counted) or len(text) > 1 or asked is not None
        found.append(Cell(text, special, document, asked, 3 if apart else 0))
    while len(found) > 1 and found[-1] == found[-2] and found[-1].document < 0:
        found.pop()
    return found


def in_lines(row: Sequence[Cell]) -> list[list[Cell]]:
    """Cells one after another, in lines that none stands across."""
    lines: list[list[Cell]] = [[]]
    used = 0
    for cell in row:
        if used + cell.width > ACROSS:
            lines.append([])
            used = 0
        lines[-1].append(cell)
        used += cell.width
    return lines


def asks(lines: Iterable[Iterable[Cell]]) -> bool:
    """Whether there is an answer, which stands in a line of its own."""
    return any(cell.answer is not None for line in lines for cell in line)


def draw_lines(pen: ImageDraw.ImageDraw, lines: Sequence[Sequence[Cell]], top: int) -> None:
    """All cells of a strip, and the answers below each line if there are any."""
    step = LINE * 2 if asks(lines) else LINE
    for number, line in enumerate(lines):
        x, y = MARGIN, top + number * step
        for cell in line:
            draw_cell(pen, cell, x, y)
            x += cell.width


def draw_cell(pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    """One token on the colour of its document."""
    gap = min(1, cell.gap)
    right, bottom = x + cell.width - 1 - gap, y + LINE - 2
    ground = COLOURS[cell.document % len(COLOURS)] if cell.document >= 0 else NOTHING
    asked = cell.answer is not None
    pen.rectangle((x, y, right, bottom), fill=ground, outline=HIDDEN if asked else None)
    if asked:
        pen.text((x + 1, y + LINE - 2), str(cell.answer), HIDDEN, font())
    if cell.text == MASK and cell.special:
        pen.rectangle((x + 2, y + 3, right - 2, bottom - 3), fill=HIDDEN)
    else:
        pen.text((x + gap, y + 1), cell.text, SPECIAL if cell.special else "black", font())


def signs(token: int, vocabulary: Vocabulary) -> tuple[str, bool]:
    """What stands for a token, and whether it is no text but a sign."""
    special = {
        vocabulary.pad: "", vocabulary.begin: "<", vocabulary.end: ">", vocabulary.mask: MASK,
    }  # fmt: skip
    if token in special:
        return special[token], True
    if token >= vocabulary.size - vocabulary.sentinels:
        return f"*{vocabulary.size - 1 - token}", True
    text = vocabulary.decode(np.array([token]))
    plain = text.isascii() and text.isprintable()
    return (text, False) if plain else ("/", True)


def beginnings(items: Sequence[tuple[bytes, Sequence[str]]]) -> Image.Image:
    """The first two lines of documents, with the captions below each."""
    height, signs_a_line = 5 * LINE, 128
    picture = Image.new("RGB", (ACROSS + 2 * MARGIN, max(1, len(items)) * height), "white")
    pen = ImageDraw.Draw(picture)
    for place, (data, captions) in enumerate(items):
        text = document_of(data)[: 2 * signs_a_line].replace("\n", "/")
        lines = [text[:signs_a_line], text[signs_a_line:], " · ".join(captions)]
        for line, words in enumerate(lines):
            pen.text((MARGIN, place * height + line * LINE), words, "black", font())
    return picture
