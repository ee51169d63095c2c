"""Our own decoder of the JPEGs that nearly all photos are, twice as fast as libjpeg-turbo.

    codes      Huffman codes, one or two coefficients a look-up       segments   what comes before
    blocks     the inverse DCT, in vectors                            colours    upsampling and RGB

The pixels are libjpeg's, bit for bit. What is not baseline YCbCr or grey in one scan without restart
markers, and every file that is odd in any way, is left to libjpeg: so it alone says what is wrong.
The loops are compiled once on a machine, by `prepare`; a process without their code uses libjpeg.
"""

import functools
import threading
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import machine_code
from .layout import CHROMA_EDGE, CHROMA_ROWS, DONE, SLACK, WORK

Pixels = npt.NDArray[np.uint8]

ARGUMENTS = (
    c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p
)  # fmt: skip
ROW = 128  # bytes of a plane's row beyond its pixels, and of a step beyond a picture's


class Scratch(threading.local):
    """A thread's memory, which grows to its largest picture: new memory costs a fifth of decoding."""

    def __init__(self) -> None:
        self.work = np.zeros(WORK, np.int64)
        self.coded, self.planes = np.empty(0, np.uint8), np.empty(0, np.uint8)
        self.shorts = np.empty(0, np.int16)

    def grow(self, coded: int, planes: int, shorts: int) -> None:
        if self.coded.size < coded:
            self.coded = np.empty(coded, np.uint8)
        if self.planes.size < planes:
            self.planes = np.empty(planes, np.uint8)
        if self.shorts.size < shorts:
            self.shorts = np.empty(shorts, np.int16)


SCRATCH = Scratch()


@functools.cache
def loaded() -> Callable[..., None]:
    def compiled() -> str:
        from . import pictures  # numba is behind it

        return pictures.compiled()

    here = Path(__file__).parent
    sources = [*here.glob("*.py"), here.parent / "kernels.py"]
    return machine_code.function("sslpipe_jpeg", sources, compiled, ARGUMENTS)


def decode(data: bytes, pixels: Pixels) -> bool:
    """Decode to (H, W, 3) uint8 RGB, C-contiguous; False: libjpeg must do it.

    H, W: of its frame header.
    """
    height, width, _ = pixels.shape
    room = (height + 15) // 16 * 16 * ((width + 15) // 16 * 16)
    scratch = SCRATCH
    scratch.grow(
        len(data) + SLACK, 3 * (room + width + ROW), CHROMA_ROWS + 2 * (width + CHROMA_EDGE)
    )
    source = np.frombuffer(data, np.uint8)
    arrays = source, pixels, scratch.coded, scratch.planes, scratch.shorts, scratch.work
    places = [array.__array_interface__["data"][0] for array in arrays]
    loaded()(
        places[0], len(data), places[1], height, width, places[2], places[3], room, places[4],
        places[5],
    )  # fmt: skip
    return bool(scratch.work[DONE])
