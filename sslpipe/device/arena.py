"""Ragged canvases and their parameter table in one flat buffer, which goes to the device at once.

    | offsets (R,) int64 | table (R, P) float32 | sides (R, 2) int32 | canvas 0 | canvas 1 | ...

One copy of pinned memory instead of one per canvas and per parameter; nothing is padded to the
largest canvas, and a kernel reads a canvas by its offset.

Letters: R = V * B rows, each one view of one sample; N bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGN = 64  # bytes; Inductor copies an input that is not aligned to 16
SMALL = 1 << 20  # bytes that one thread copies sooner than several are woken


@dataclass(frozen=True, slots=True)
class Arena:
    """What a kernel reads; all four are slices of one buffer on the device."""

    # uint8: canvases of (H, W, 3), one after the other, then room that is not read
    pixels_N: Tensor
    offsets_R: Tensor  # int64: where in pixels_N the row's canvas begins
    sides_R2: Tensor  # int32: height, width of the row's canvas
    table_RP: Tensor  # float32: the parameters, columns as in Policy.columns

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four tensors, in the order of the fields."""
        return self.pixels_N, self.offsets_R, self.sides_R2, self.table_RP


def rung(n: int) -> int:
    """Find the least number of a ladder that is >= n: four rungs an octave, at most 25 % above.

    What a graph is compiled for (bytes, taps) takes few values, so it is compiled few times.
    """
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step


def upload(
    canvases: Sequence[Tensor], table_VBP: npt.NDArray[np.float32], *, device: torch.device
) -> Arena:
    """Pack canvases of (H, W, 3) uint8 and their table, and copy them to `device`.

    Canvases that are on a CUDA device already are used where they lie, or brought together there.
    On CUDA the copy is asynchronous and from pinned memory, which torch's host allocator keeps
    until the copy is done.
    """
    views, batch, columns = table_VBP.shape
    rows = views * batch
    there = canvases[0].device.type == "cuda"
    pixels, offsets_B = together(canvases) if there else (None, consecutive(canvases))
    sides_B2 = np.array([canvas.shape[:2] for canvas in canvases], dtype=np.int32)
    parts = [
        torch.from_numpy(np.tile(offsets_B, views)),
        torch.from_numpy(np.ascontiguousarray(table_VBP)).flatten(),
        torch.from_numpy(np.tile(sides_B2, (views, 1))).flatten(),
        *(() if there else (canvas.flatten() for canvas in canvases)),
    ]
    starts = section_starts([part.nbytes for part in parts[:3]])
    flat = to_device(parts, starts, sum(part.nbytes for part in parts[3:]), device)
    offsets, table, sides = (
        flat[start : start + part.nbytes].view(part.dtype)
        for start, part in zip(starts[:3], parts[:3], strict=True)
    )
    pixels_N = flat[starts[3] :] if pixels is None else pixels
    return Arena(pixels_N, offsets, sides.view(rows, 2), table.view(rows, columns))


def consecutive(canvases: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """Find where canvases begin that lie one after the other."""
    bytes_B = np.array([canvas.numel() for canvas in canvases], dtype=np.int64)
    starts_B: npt.NDArray[np.int64] = np.cumsum(bytes_B) - bytes_B
    return starts_B


def together(canvases: Sequence[Tensor]) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Bring canvases of a device into one flat uint8 tensor, and say where each begins.

    Slices of one buffer, as `handoff` sends them, are not copied.
    """
    if len({canvas.untyped_storage().data_ptr() for canvas in canvases}) == 1:
        whole = torch.empty(0, dtype=torch.uint8, device=canvases[0].device)
        offsets = np.array([canvas.storage_offset() for canvas in canvases], dtype=np.int64)
        return whole.set_(canvases[0].untyped_storage()), offsets
    used = sum(canvas.numel() for canvas in canvases)
    flat = canvases[0].new_empty(rung(used))
    torch.cat([canvas.flatten() for canvas in canvases], out=flat[:used])
    return flat, consecutive(canvases)


def pinned(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, flat, in memory from which CUDA copies without the host."""
    flat_N = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
    copy_bytes(flat_N, tensor)
    return flat_N


def copy_bytes(into_N: Tensor, tensor: Tensor) -> None:
    """Copy a tensor of the host into as many bytes of the host.

    For more than 32,768 elements torch wakes a team of threads, which then spins for milliseconds
    on all cores, beside workers and the thread that trains: 15 cores of 16 for 8 of 13 ms a batch,
    once. So little is copied by NumPy, in this thread.
    """
    bytes_N = tensor.contiguous().reshape(-1).view(torch.uint8)
    if len(bytes_N) < SMALL:
        into_N.numpy()[:] = bytes_N.numpy()
    else:
        into_N.copy_(bytes_N)


def section_starts(sizes: Sequence[int]) -> list[int]:
    """Find where aligned sections of these sizes in bytes begin, and where the last one ends."""
    starts = [0]
    for size in sizes:
        starts.append(-(-(starts[-1] + size) // ALIGN) * ALIGN)
    return starts


def to_device(
    parts: Sequence[Tensor], starts: Sequence[int], pixels: int, device: torch.device
) -> Tensor:
    """Fill a flat uint8 buffer on the device: sections at their starts, then the canvases."""
    used = starts[3] + pixels
    staging = torch.empty(used, dtype=torch.uint8, pin_memory=device.type == "cuda")
    at = 0
    for i, part in enumerate(parts):
        at = starts[i] if i <= 3 else at
        copy_bytes(staging[at : at + part.nbytes], part)
        at += part.nbytes
    flat = torch.empty(starts[3] + rung(pixels), dtype=torch.uint8, device=device)
    flat[:used].copy_(staging, non_blocking=True)
    return flat
