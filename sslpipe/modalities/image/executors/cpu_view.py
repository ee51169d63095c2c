"""Views by their program (see `cpu_program`): the function that the `cpu` executor compiles.

Needs numba. Only a process that compiles imports this file and those that it imports.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import carray, types

from ..kernels import kernel
from .cpu_colour import brightness, contrast, hue, normalize, saturation, solarize
from .cpu_filters import blur, cut, resize
from .cpu_program import (
    BLUR,
    CROP,
    GRAYSCALE,
    JITTER,
    LINE,
    MIRROR,
    NORMALIZE,
    SOLARIZE,
    UPSIDE_DOWN,
)  # fmt: skip
from .cpu_weights import Image

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
f32 = np.float32
Pointer = Any  # of numba's kind
pointer, number = types.CPointer, types.int64
NAME = "sslpipe_views"
SIGNATURE = types.void(
    pointer(types.float64), number, pointer(pointer(types.uint8)), pointer(number),
    pointer(types.float32), number, pointer(types.float32), number, number, number, number, number,
    number,
)  # fmt: skip


@kernel
def crop(canvas: U8, row: Image, line: F64, upside_down: bool, mirror: bool, image: Image) -> None:
    """The box (x, y, w, h) that the op drew, resized; one of the view's size is cut."""
    at = int(line[1])
    x, y, w, h = int(row[at]), int(row[at + 1]), int(row[at + 2]), int(row[at + 3])
    if h == image.shape[1] and w == image.shape[2]:
        cut(canvas, x, y, upside_down, mirror, image)
    else:
        resize(canvas, x, y, w, h, upside_down, mirror, line[3] != 0, line[4] != 0, image)


@kernel
def jitter(image: Image, row: Image) -> None:
    """The four adjustments in this view's order; a neutral factor is left out, as in `kornia`."""
    for place in range(5, 9):
        which = int(row[place])
        factor = row[1 + which]
        if which == 0 and factor != 1:
            brightness(image, factor)
        elif which == 1 and factor != 1:
            contrast(image, factor)
        elif which == 2 and factor != 1:
            saturation(image, factor)
        elif which == 3 and factor != 0:
            hue(image, factor)


@kernel
def recolour(code: int, line: F64, row: Image, image: Image) -> None:
    """One op that leaves pixels where they are; row: from its draws on."""
    if code == JITTER:
        jitter(image, row)
    elif code == GRAYSCALE:
        saturation(image, f32(0))
    elif code == BLUR:
        blur(image, row[1], int(line[3]), int(line[4]))
    elif code == SOLARIZE:
        solarize(image, row[1])
    elif code == NORMALIZE:
        normalize(image, int(line[3]), line[4], line[5])


@kernel
def view(program: F64, canvas: U8, row: Image, image: Image) -> None:
    """One view, (3, h, w), of one canvas, (H, W, 3); row: what its ops drew."""
    # not False, or numba would compile the crop for this constant, too
    upside_down = mirror = len(program) < 0
    for line in program:
        code, at = int(line[0]), int(line[1])
        if line[2] and row[at] == 0:  # its gate is off
            continue
        if code == UPSIDE_DOWN:
            upside_down = not upside_down
        elif code == MIRROR:
            mirror = not mirror
        elif code == CROP:
            crop(canvas, row, line, upside_down, mirror, image)
        else:
            recolour(code, line, row[at:], image)


def views(
    program: Pointer, lines: int, canvases: Pointer, sizes: Pointer, table: Pointer, columns: int,
    out: Pointer, count: int, batch: int, height: int, width: int, start: int, stop: int,
) -> None:  # fmt: skip
    """The views of the samples from start to stop.

    canvases, sizes: of each of the batch's samples, where its bytes are, and (H, W). table:
    (count, batch, columns) of float32. out: (count, batch, 3, height, width) of float32.
    """
    program_LF = carray(program, (lines, LINE))
    sizes_B2 = carray(sizes, (batch, 2))
    table_VBP = carray(table, (count, batch, columns))
    out_VBCHW = carray(out, (count, batch, 3, height, width))
    for b in range(start, stop):
        canvas = carray(canvases[b], (sizes_B2[b, 0], sizes_B2[b, 1], 3))
        for v in range(count):
            view(program_LF, canvas, table_VBP[v, b], out_VBCHW[v, b])


def compiled() -> str:
    """The LLVM code of `views` for this machine, under the name NAME."""
    made = numba.cfunc(SIGNATURE, nogil=True, fastmath=True, error_model="numpy")(views)
    return str(made.inspect_llvm()).replace(made.native_name, NAME)
