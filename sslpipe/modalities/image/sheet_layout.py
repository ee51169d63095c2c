"""Where the tiles of a contact sheet lie: blocks of equal tiles, wrapped to a page.

The first block, the stored picture, has the left column for itself; the others flow in lines to the
right of it. All samples of a sheet are laid out alike, so this is done once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAGE = 1400  # pixels: what most screens show
GAP = 18  # between blocks


@dataclass(frozen=True, slots=True)
class Cells:
    """`count` equal cells of a block, margins included, in pixels; `head` pixels lie above them."""

    count: int
    width: int
    height: int
    head: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Upper left corners (x, y) of each block's head and of each of its cells, and the extent."""

    heads: list[tuple[int, int]]
    cells: list[list[tuple[int, int]]]
    width: int
    height: int


def arrange(blocks: Sequence[Cells], *, page: int = PAGE) -> Layout:
    """Lay out blocks of one sample, at most `page` wide unless a single cell is wider."""
    first = blocks[0]
    left = first.width + GAP
    line = max(block.height for block in blocks)  # small tiles are stacked up to this height
    layout = Layout([(0, 0)], [[(0, first.head)]], first.width, first.head + first.height)
    x, y, below = left, 0, 0
    for block in blocks[1:]:
        columns = columns_of_block(block, width=page - left, height=line)
        width = columns * block.width
        if x > left and x + width > page:
            x, y = left, below
        rows = -(-block.count // columns)
        places = [divmod(number, columns) for number in range(block.count)]
        corners = [(x + c * block.width, y + block.head + r * block.height) for r, c in places]
        layout.heads.append((x, y))
        layout.cells.append(corners)
        below = max(below, y + block.head + rows * block.height)
        layout = Layout(
            layout.heads, layout.cells, max(layout.width, x + width), max(layout.height, below)
        )
        x += width + GAP
    return layout


def columns_of_block(block: Cells, *, width: int, height: int) -> int:
    """So few columns that the block is about `height` high, more rows where it would be too wide.

    Rows are filled evenly: nine tiles of which eight fit are five and four.
    """
    stacked = max(1, height // block.height)
    fit = max(1, width // block.width)
    rows = max(min(stacked, block.count), -(-block.count // fit))
    return -(-block.count // rows)
