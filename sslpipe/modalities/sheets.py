"""What `sslpipe show` draws of a batch: the sheets of all modalities, and files beside them."""

from collections.abc import Sequence

from PIL import Image

from ..batch import Batch, BatchSpec
from ..stream.source import Column
from .parts import Part, merged
from .returned import check_kind


def files_beside(
    parts: Sequence[Part], batch: Batch, spec: BatchSpec, columns: Sequence[Column], *, rows: int
) -> dict[str, bytes]:
    """What all modalities write beside a sheet, by the end of its name."""
    return merged(
        part.modality.beside(batch, spec, part.decider, column, rows=rows)
        for part, column in zip(parts, columns, strict=True)
    )


def draw_sheet(
    parts: Sequence[Part], batch: Batch, spec: BatchSpec, columns: Sequence[Column], *, rows: int
) -> Image.Image:
    """The sheets of all modalities; of several, the bands of a sample stand below each other.

    columns: what each part decoded.

    Raises:
        ContractError: a sheet is no picture.
    """
    sheets = [
        part.modality.sheet(batch, spec, part.decider, column, rows=rows)
        for part, column in zip(parts, columns, strict=True)
    ]
    for part, sheet in zip(parts, sheets, strict=True):
        check_kind(part.modality, "sheet() returned", sheet, Image.Image)
    if len(sheets) == 1:
        return sheets[0]
    shown, top = min(rows, len(batch.keys)), 0
    width, height = max(s.width for s in sheets), sum(s.height for s in sheets)
    whole = Image.new("RGB", (width, height), "white")
    for row in range(shown):
        for sheet in sheets:
            band = sheet.height // shown
            whole.paste(sheet.crop((0, row * band, sheet.width, (row + 1) * band)), (0, top))
            top += band
    return whole
