"""Canvases of a list of decoded images, made on their device all at once.

Image by image, 256 of them took 30 ms in launches alone. Canvases lie in one buffer, as kernels
read them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from ...device.arena import ALIGN
from ...device.ragged import Ragged
from .executors import triton_shrink
from .executors.triton_tables import plan, upload

TILE = {"TALL": 32, "WIDE": 32}
BYTES = 4096  # of a program's step through an image
SCRATCH = 1 << 28  # bytes at once, unless one image needs more
Size = tuple[int, int]


def canvases(images: Sequence[Tensor], targets: Sequence[Size]) -> Ragged:
    """(H, W, 3) uint8 of these sizes, of (3, H, W) uint8 images; in float32, rounded once.

    Of its own size an image keeps its levels.
    """
    images = [dense(image) for image in images]
    places_BK = table_of(images)
    places_BK[:, 6:8] = targets
    bytes_B = -(-3 * places_BK[:, 6] * places_BK[:, 7] // ALIGN) * ALIGN
    places_BK[:, 8] = np.cumsum(bytes_B) - bytes_B
    places_BK[:, 9], spans = plan(places_BK[:, 4], places_BK[:, 7], 0, 4, SCRATCH)
    device = images[0].device
    there = upload(torch.from_numpy(places_BK), device)
    flat_N = images[0].new_empty(int(bytes_B.sum()))
    wide = triton.cdiv(int(places_BK[:, 7].max()), TILE["WIDE"])
    # kernels start on the current device; -1 leaves it, for the interpreter on the CPU
    with torch.cuda.device(device if device.type == "cuda" else -1):
        for span in spans:
            rows, count = there[span.first : span.last], span.last - span.first
            half = flat_N.new_empty(span.values, dtype=torch.float32)
            grid = (wide, triton.cdiv(span.tallest, TILE["TALL"]), count)
            triton_shrink.shrink_across[grid](rows, half, **TILE)
            tall = int(places_BK[span.first : span.last, 6].max())
            grid = (wide, triton.cdiv(tall, TILE["TALL"]), count)
            triton_shrink.shrink_down[grid](rows, half, flat_N, **TILE)
    shapes_B3 = np.pad(places_BK[:, 6:8], ((0, 0), (0, 1)), constant_values=3)
    return Ragged(flat_N, places_BK[:, 8].copy(), shapes_B3, torch.uint8)


def extremes(images: Sequence[Tensor]) -> list[Size]:
    """The least and the highest level of each image; reads the device once."""
    images = [dense(image) for image in images]
    device = images[0].device
    out_B2 = torch.empty(len(images), 2, dtype=torch.int32, device=device)
    with torch.cuda.device(device if device.type == "cuda" else -1):
        triton_shrink.extremes[(len(images),)](
            upload(torch.from_numpy(table_of(images)), device), out_B2, TILE=BYTES
        )
    return [(low, high) for low, high in out_B2.tolist()]


def dense(image: Tensor) -> Tensor:
    """An image without gaps, planes or pixels behind each other: itself, if it is one."""
    whole = image.is_contiguous() or image.permute(1, 2, 0).is_contiguous()
    return image if whole else image.contiguous()


def table_of(images: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """(B, PLACES) of `triton_shrink`: addresses, strides and sides; what is made of them is 0."""
    rows = [(t.data_ptr(), *t.stride(), t.shape[1], t.shape[2], 0, 0, 0, 0) for t in images]
    return np.array(rows, dtype=np.int64)
