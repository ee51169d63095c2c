"""DO for videos, on the device: the frames of clips are canvases of the executors of images.

All frames of a clip read the same row of the table, so that they are cropped, flipped and coloured
alike; ops that a sampling names in `per_frame` have a row for each. Sums over a picture, such as
the mean that contrast turns about, are each frame's own: CVRL, which makes one tall picture of a
clip, takes one mean for all of its frames.

Letters: V views, B samples, T frames of a clip, U frames that were decoded, Q columns.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from ..image import executors
from .decider import ClipPolicy, VideoDecider, union
from .decode import ALL

I64 = npt.NDArray[np.int64]


class VideoMaker:
    """The clips of a decider, by the executor of a name.

    threads: for executors that work on the CPU; None: the caller's alone.

    Raises:
        RecipeError: the executor does not suit the device, or does not know an op.
    """

    def __init__(
        self,
        decider: VideoDecider,
        *,
        device: torch.device,
        executor: executors.Name = "auto",
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.decider, self.device = decider, device
        self.executors = {
            name: executors.choose(executor, group.images, device, threads=threads)
            for name, group in decider.policies.items()
        }

    @property
    def blank(self) -> Raw:
        """A video of one black frame, so large that no view of it needs padding."""
        side = max(max(view.shape[2:]) for view in self.decider.views.values())
        return Raw(np.zeros((1, side, side, 3), dtype=np.uint8), (1, side, side, 0))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Make the clips: (V, B, 3, T, h, w), whose memory has the frames outermost.

        arrays: (U, H, W, 3) uint8: the frames that any view of a sample shows, or all there are.
        """
        groups = self.decider.policies
        numbers = {name: group.frames_of(tables.params[name]) for name, group in groups.items()}
        places = placed(numbers, np.array([len(array) for array in arrays]))
        views = {
            name: self.clips(name, group, arrays, tables, places[name])
            for name, group in groups.items()
        }
        return Made(views, {}, {}, {})

    def clips(
        self,
        name: str,
        group: ClipPolicy,
        arrays: Sequence[Tensor],
        tables: Tables,
        places_VBT: I64,
    ) -> Tensor:
        """The views of one group: all their frames are a batch of canvases, a view of each."""
        rows_VBTQ = group.rows_of(tables.params[name])
        frames = self.executors[name](
            group.images,
            canvases(arrays, places_VBT),
            rows_VBTQ.reshape(1, -1, rows_VBTQ.shape[-1]),
            device=self.device,
            dtype=group.images.dtype,
        )
        return frames.reshape(*places_VBT.shape, *frames.shape[2:]).transpose(2, 3)


def placed(numbers: Mapping[str, I64], decoded_B: I64) -> dict[str, I64]:
    """Where the frames of clips, (V, B, T) numbers, lie in the arrays of their samples.

    decoded_B: frames in each array; as many as views show, or all of the video.
    """
    shown_BU = union(list(numbers.values()))
    chosen_B1 = ((shown_BU != ALL).sum(1) == decoded_B)[:, None]
    return {
        name: np.where(
            chosen_B1, (numbers_VBT[..., None] == shown_BU[:, None]).argmax(-1), numbers_VBT
        )
        for name, numbers_VBT in numbers.items()
    }


def canvases(arrays: Sequence[Tensor], places_VBT: I64) -> Sequence[Tensor]:
    """Frames of videos, (H, W, 3) each, in the order of `places_VBT`; no pixel is copied."""
    if not isinstance(arrays, Ragged):
        _, batch, _ = places_VBT.shape
        return [arrays[b][place] for v in places_VBT for b in range(batch) for place in v[b]]
    sides_B3 = arrays.shapes_BD[:, 1:]
    bytes_B1 = sides_B3.prod(1)[:, None]
    offsets_VBT = arrays.offsets_B[:, None] + places_VBT * bytes_B1
    shapes_VBT3 = np.broadcast_to(sides_B3[:, None], (*places_VBT.shape, 3))
    return Ragged(
        arrays.flat_N, offsets_VBT.ravel(), shapes_VBT3.reshape(-1, 3).copy(), arrays.dtype
    )
