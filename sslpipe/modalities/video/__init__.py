"""Video: clips of frames that are planned before anything is decoded.

The first op of a group says which frames a clip has (clips.py), the others are those of images:

```yaml
modality: video
stream: {batch_size: 32}
views:
  global:
    ops:
      - DenseClip: {frames: 16, stride: 4}
      - RandomResizedCrop: {size: [224, 224], scale: [0.5, 1.0]}
      - Normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
masks:
  tube: {patch_size: [2, 16, 16], sampler: {tube: {ratio: 0.9}}}
```

One draw is for all frames of a clip, unless the sampling names an op in `per_frame`. Several views
are several clips of a video; all of them are decoded in one pass over it. Set `decode.size` where
frames are much larger than views: they are shrunk in the worker, before they take up memory.

A worker needs `decode` alone, not torch. A folder of numbered pictures is packed as one video,
the pictures as they are (shards/make/frames.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import RecipeError
from .. import Modality
from ..image import faster_executor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL.Image import Image

    from ...batch import Batch, BatchSpec
    from ...recipe import Recipe
    from ...recipe.schema import ViewSection
    from ...stream.source import Column
    from .. import Costs
    from .codec import VideoCodec
    from .decider import VideoDecider
    from .decode import ClipDecode
    from .maker import VideoMaker


class VideoModality(Modality):
    """What `modality: video` is: mp4, webm, mkv and avi to views of axes "CTHW"."""

    unit = "video"

    def advice(self, recipe: Recipe, what: Costs, *, cuda: bool) -> str:
        """Other files; smaller frames; executors, which are those of images."""
        if what == "making":
            return f"{faster_executor(cuda=cuda)}use shorter, smaller or fewer clips"
        if what == "memory":
            return "decode.size, or shorter or fewer clips"
        return "encode videos no larger than views need and with more key frames"

    @property
    def codec(self) -> VideoCodec:
        """What packing, indexing and verifying know of videos."""
        from .codec import VideoCodec

        return VideoCodec()

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> VideoDecider:
        """Clips, crops and colours, masks over tubelets."""
        from .decider import VideoDecider

        return VideoDecider.of_recipe(recipe, groups)

    def decoder(self, recipe: Recipe) -> ClipDecode:
        """The frames that views show, uint8.

        Raises:
            ExtraError: PyAV is not installed, as is to be known before workers start.
        """
        from .container import library
        from .decode import ClipDecode

        library()
        return ClipDecode(recipe.decode.size)

    def maker(
        self,
        recipe: Recipe,
        decider: VideoDecider,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> VideoMaker:
        """By the executor of `run.executor`, which is one of images."""
        from .maker import VideoMaker

        return VideoMaker(decider, device=device, executor=recipe.run.executor, threads=threads)

    def sheet(
        self, batch: Batch, spec: BatchSpec, decider: VideoDecider, stored: Column, *, rows: int = 8
    ) -> Image:
        """A band for each sample: strips of the stored frames, of its clips and their masks."""
        from .sheet import sheet

        return sheet(batch, spec, decider, stored, rows=rows)

    def beside(
        self, batch: Batch, spec: BatchSpec, decider: VideoDecider, stored: Column, *, rows: int = 8
    ) -> Mapping[str, bytes]:
        """The clips and masks of the sheet as they move: an animated WebP."""
        from .sheet import moving

        return {"webp": moving(batch, spec, decider, rows=rows)}

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """The first, middle and last frames of stored videos."""
        from .sheet import thumbnails

        return thumbnails(items)

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """One group of central crops of central clips, in which nothing is random."""
        from .decider import evaluation_views

        return evaluation_views(recipe)

    def share_decoder(self, recipe: Recipe, decode: ClipDecode, *, device: torch.device) -> None:
        """Videos are decoded by workers.

        Raises:
            RecipeError: the recipe wants a device to do it.
        """
        if recipe.decode.device != "cpu":
            raise RecipeError(
                f"{recipe.where('decode', 'device')}: decode.device = {recipe.decode.device!r}: "
                "videos are decoded on the CPU; write decode: {device: cpu}"
            )


MODALITY = VideoModality()
