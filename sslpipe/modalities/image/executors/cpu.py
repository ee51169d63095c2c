"""The fast executor for CPUs: sample by sample, each view finished while it is in the cache.

Whole-batch operations are bound by page faults on fresh temporaries. Here a view is made where it
will stay, in its slice of the output, in the sample's own order of operations; gates are branches.
Threads take whole samples: the loops release the GIL. Pixels depend on neither.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....device.buffers import Buffers
from .. import ops
from ..draws import Crop, Policy, Step, draw, keys_of
from . import cpu_colour, cpu_filters, cpu_weights

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Row = list[float]  # the values that one op drew for one view
TASKS, LARGEST = 64, 4  # tasks of a batch, samples of a task: a task costs 30 us, a view from 20

CROPS = (
    ops.RandomResizedCrop, ops.MultiScaleCrop, ops.RandomCrop, ops.CenterCrop, ops.Resize
)  # fmt: skip
ADJUST = (  # and the neutral factor
    (cpu_colour.brightness, 1), (cpu_colour.contrast, 1), (cpu_colour.saturation, 1),
    (cpu_colour.hue, 0),
)  # fmt: skip


def jitter(op: ops.ColorJitter, image: F32, row: Row) -> None:
    """The four adjustments in this view's order; a neutral factor is left out, as in `kornia`."""
    for place in row[5:9]:
        adjust, neutral = ADJUST[int(place)]
        factor = row[1 + int(place)]
        if factor != neutral:
            adjust(image, factor)


def blur(op: ops.RandomGaussianBlur, image: F32, row: Row) -> None:
    down, along = (cpu_weights.gaussian(row[1], size) for size in op.kernel_size)
    cpu_filters.blur(image, down, along)


def normalize(op: ops.Normalize, image: F32, row: Row) -> None:
    for channel, (mean, std) in enumerate(zip(op.mean, op.std, strict=True)):
        cpu_colour.normalize(image, channel, mean, std)


def flip(image: F32, axis: int) -> None:
    image[...] = np.flip(image, axis).copy()


# Each changes (3, h, w) in place, given its settings and what it drew; its gate is on. A new op is
# its kernel and a line here.
APPLY: Mapping[type, Callable[[Any, F32, Row], None]] = MappingProxyType({
    ops.ColorJitter: jitter,
    ops.Normalize: normalize,
    ops.RandomGaussianBlur: blur,
    ops.RandomGrayscale: lambda op, image, row: cpu_colour.saturation(image, 0.0),
    ops.RandomHorizontalFlip: lambda op, image, row: flip(image, 2),
    ops.RandomSolarize: lambda op, image, row: cpu_colour.solarize(image, row[1]),
    ops.RandomVerticalFlip: lambda op, image, row: flip(image, 1),
})  # fmt: skip

# A flip permutes pixels. It commutes with ops that treat every pixel alike by its value and by sums
# over all pixels, and with a blur whose kernel and border are symmetric: flip(op(x)) = op(flip(x)).
# Where only such ops stand before it, the crop reads the canvas mirrored, which costs nothing.
COMMUTE = frozenset({
    ops.ColorJitter, ops.Normalize, ops.RandomGaussianBlur, ops.RandomGrayscale,
    ops.RandomHorizontalFlip, ops.RandomSolarize, ops.RandomVerticalFlip,
})  # fmt: skip
FLIPS = (ops.RandomVerticalFlip, ops.RandomHorizontalFlip)


def unsupported(policy: Policy) -> list[str]:
    """Names of the ops of a policy that this executor cannot do."""
    known = (CROPS, *(APPLY for _ in policy.steps[1:]))
    pairs = zip(policy.steps, known, strict=True)
    return [type(step.op).__name__ for step, these in pairs if type(step.op) not in these]


def rehearse(policy: Policy) -> None:
    """Make the views of one black picture with all gates on, so that every loop is loaded.

    Loading them from disk takes 0.4 s, compiling them 6 s; a pipeline has it done while its workers
    start.
    """
    height, width = (side + 1 for side in policy.crop.size)  # larger than a view: it is resized
    one = np.zeros(1, np.int64)
    keys = keys_of(policy, seed=0, epochs=one, uids=one)
    table_VBP = draw(policy, keys, np.array([[height, width]]))
    table_VBP[..., [step.start for step in policy.steps if is_gated(step)]] = 1
    canvas = torch.zeros((height, width, 3), dtype=torch.uint8)
    execute(policy, [canvas], table_VBP, device=canvas.device)


def execute(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    threads: ThreadPoolExecutor | None = None,
    buffers: Buffers | None = None,
) -> Tensor:
    """Make the views of one group.

    canvases: B of (H, W, 3) uint8, RGB, each of its own size, on the CPU.
    threads: who shares the work; None: the caller alone. It must not be a task of theirs.
    buffers: where views go; None: new memory.
    Returns: (V, B, 3, h, w) on `device`, computed in float32 and rounded once, to `dtype`; in
    [0, 1] before Normalize.
    """
    views, batch, _ = table_VBP.shape
    # new memory costs 0.1 ms per 224 px view, from torch 0.2: it does not ask for huge pages
    out_VBCHW = (buffers or Buffers()).empty((views, batch, 3, *policy.crop.size), np.float32)
    mirrors, steps = fold_flips(policy.steps[1:])
    task = min(LARGEST, max(1, batch // TASKS))

    def work(start: int) -> None:
        for b in range(start, min(start + task, batch)):
            canvas = np.ascontiguousarray(canvases[b].numpy())
            for v in range(views):
                row, image = table_VBP[v, b].tolist(), out_VBCHW[v, b]
                crop(policy.crop, canvas, row, (on(mirrors[0], row), on(mirrors[1], row)), image)
                for step in steps:
                    apply(step, image, row[step.columns])

    starts = range(0, batch, task)
    for _ in map(work, starts) if threads is None else threads.map(work, starts):
        pass
    return torch.from_numpy(out_VBCHW).to(device, dtype)


def fold_flips(steps: Sequence[Step]) -> tuple[tuple[list[Step], list[Step]], list[Step]]:
    """(vertical and horizontal flips that the crop can do, all other steps)."""
    free = 0
    while free < len(steps) and type(steps[free].op) in COMMUTE:
        free += 1
    folded = [step for step in steps[:free] if isinstance(step.op, FLIPS)]
    vertical, horizontal = ([s for s in folded if isinstance(s.op, kind)] for kind in FLIPS)
    return (vertical, horizontal), [step for step in steps if step not in folded]


def on(flips: Sequence[Step], row: Row) -> bool:
    """Whether an odd number of these flips is switched on."""
    return sum(row[step.start] for step in flips) % 2 == 1


def crop(op: Crop, canvas: U8, row: Row, mirror: tuple[bool, bool], image: F32) -> None:
    """The box (x, y, w, h) at the head of the row, resized; padded with zeros by RandomCrop."""
    x, y, w, h = (int(side) for side in row[:4])
    if (h, w) == tuple(op.size):
        cpu_filters.cut(canvas, x, y, mirror, image)
        return
    assert not isinstance(op, ops.RandomCrop)
    assert 0 <= x <= canvas.shape[1] - w, "the box leaves the canvas"
    assert 0 <= y <= canvas.shape[0] - h, "the box leaves the canvas"
    cubic = op.resample == "bicubic"
    down = cpu_weights.axis(h, op.size[0], cubic, op.antialias, False)
    along = cpu_weights.axis(w, op.size[1], cubic, op.antialias, mirror[1])
    cpu_filters.resample(canvas, x, y, mirror[0], down, along, image)


def apply(step: Step, image: F32, row: Row) -> None:
    """One op, if it has no gate or its gate is on."""
    if row[:1] != [0] or not is_gated(step):
        APPLY[type(step.op)](step.op, image, row)


def is_gated(step: Step) -> bool:
    """Whether its first column says if the op is on."""
    return step.op.columns[:1] == ("on",)
