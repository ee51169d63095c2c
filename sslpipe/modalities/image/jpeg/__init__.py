"""Our own decoder of the JPEGs that nearly all photos are.

    segments   what comes before the scan         blocks     the inverse DCT, in vectors
    codes      Huffman codes, one or two          colours    upsampling and RGB
               coefficients a look-up             pictures   all of it, of a box of pixels

It takes two thirds of libjpeg-turbo's time at quality 92, and most of it at 75. The pixels are
libjpeg's, bit for bit. What is not baseline YCbCr or grey, in one scan without
restart markers, and every file that is odd in any way, is left to libjpeg: it alone says what is
wrong. The loops are compiled once on a machine, by `prepare`; without their code libjpeg decodes.
"""

import functools
from collections.abc import Callable
from ctypes import addressof, c_char, c_char_p, c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .memory import DONE, HEIGHT, PLAIN, TURNED, WIDTH, DecodeMemory

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int]  # its first pixel, and the one behind its last: row << 16 | column

ARGUMENTS = c_char_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64
NAME = "sslpipe_jpeg"
MOST = 1 << 23  # pixels; above it three planes of a thread are too much memory
MEMORY = DecodeMemory()
WHOLE = 0, 0  # the box of a whole picture


def sources() -> list[Path]:
    """The files that the code depends on."""
    here = Path(__file__).parent
    return [*here.glob("*.py"), here.parent / "kernels.py"]


def prepare() -> None:
    """Compile the loops unless that was done on this machine: 6 s of CPU.

    Where numba is not installed, libjpeg decodes.
    """

    def compiled() -> str:
        from . import pictures  # numba is behind it

        return pictures.compiled()

    if find_spec("numba") is None or loaded():
        return
    from .... import machine_code

    if machine_code.can_keep():  # else no worker would ever find it
        machine_code.function(NAME, sources(), compiled, ARGUMENTS)
        loaded.cache_clear()


@functools.cache
def loaded() -> Callable[..., None] | None:
    """The compiled loops; None: nobody compiled them."""
    if find_spec("numba") is None:
        return None
    from .... import machine_code

    return machine_code.kept_function(NAME, sources(), ARGUMENTS)


def look(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG whose header is one that `decode` takes; None: for libjpeg."""
    make, memory = loaded(), MEMORY
    if make is None:
        return None
    make(data, len(data), None, 0, 0, memory.place, *WHOLE)
    work = memory.work
    return (work[HEIGHT], work[WIDTH]) if work[PLAIN] else None


def decode(data: bytes, pixels: Pixels, box: Box = WHOLE) -> bool:
    """Decode to (H, W, 3) uint8 RGB, C-contiguous; False: it has other sides, or is for libjpeg.

    H * W: MOST at most. box: of the pixels that are wanted; the others are arbitrary then. Whether
    a file is refused never depends on it: all of its codes are read.
    """
    make, memory = loaded(), MEMORY
    if make is None:
        return False
    height, width, _ = pixels.shape
    memory.fit(len(data), height, width)
    # NumPy takes four times as long to say where an array is
    out = addressof(c_char.from_buffer(pixels))  # type: ignore[arg-type]
    make(data, len(data), out, height, width, memory.place, *box)
    return memory.work[DONE] == 1


def may_turn() -> bool:
    """Whether a segment may turn the picture that this thread has looked at or decoded last."""
    return MEMORY.work[TURNED] == 1
