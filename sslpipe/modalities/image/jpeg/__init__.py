"""Our own decoder of the JPEGs that nearly all photos are.

    codes      Huffman codes, one or two coefficients a look-up       segments   what comes before
    blocks     the inverse DCT, in vectors                            colours    upsampling and RGB

It takes two thirds of libjpeg-turbo's time at quality 92, and most of it at 75. The pixels are
libjpeg's, bit for bit. What is not baseline YCbCr or grey, in one scan without
restart markers, and every file that is odd in any way, is left to libjpeg: it alone says what is
wrong. The loops are compiled once on a machine, by `prepare`; without their code libjpeg decodes.
"""

import functools
from collections.abc import Callable
from ctypes import c_char_p, c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .memory import DONE, DecodeMemory, plane

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are not in it

ARGUMENTS = (
    c_char_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p,
    *[c_int64] * 4,
)  # fmt: skip
NAME = "sslpipe_jpeg"
MOST = 1 << 23  # pixels; above it three planes of a thread are too much memory
MEMORY = DecodeMemory()


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
    from .. import machine_code

    if machine_code.can_keep():  # else no worker would ever find it
        machine_code.function(NAME, sources(), compiled, ARGUMENTS)
        loaded.cache_clear()


@functools.cache
def loaded() -> Callable[..., None] | None:
    """The compiled loops; None: nobody compiled them."""
    if find_spec("numba") is None:
        return None
    from .. import machine_code

    return machine_code.kept_function(NAME, sources(), ARGUMENTS)


def decode(data: bytes, pixels: Pixels, box: Box | None = None) -> bool:
    """Decode to (H, W, 3) uint8 RGB, C-contiguous; False: libjpeg must do it.

    H, W: of its frame header. box: of the pixels that are wanted, not empty; the others are
    arbitrary then. Whether a file is good never depends on it: all of it is read.
    """
    make = loaded()
    if make is None:
        return False
    height, width, _ = pixels.shape
    if height * width > MOST:
        return False
    coded, planes, shorts, work = MEMORY.fit(len(data), height, width)
    out, room = pixels.__array_interface__["data"][0], plane(height, width)
    wanted = box or (0, 0, height, width)
    make(data, len(data), out, height, width, coded, planes, room, shorts, work, *wanted)
    return bool(MEMORY.work[DONE])
