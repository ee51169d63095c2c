"""Images. Whatever knows what an image is, is in this folder.

at rest   codec, describe, headers, hashing      decide   decider: ops/, draws, scale, targets/
decode    decode, jpeg/, other_formats,          make     maker: executors/
          canvases; gpu_decode                   look     sheet, thumbnails

MODALITY imports its parts when they are asked for: a worker needs `canvases` alone, not torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .. import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL.Image import Image

    from ...batch import Batch, BatchSpec
    from ...recipe import Recipe
    from ...recipe.schema import ViewSection
    from ...stream.source import Column
    from .. import Costs
    from .canvases import CanvasDecode
    from .codec import ImageCodec
    from .decider import ImageDecider
    from .gpu_decode import GpuDecode
    from .maker import ImageMaker


class ImageModality(Modality):
    """JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP to views of axes "CHW"."""

    unit = "image"

    def advice(self, recipe: Recipe, what: Costs, *, cuda: bool) -> str:
        """Smaller pictures; decoding on the device; executors."""
        if what == "memory":
            return "pack --resize and decode.size"
        if what == "making":
            return f"{faster_executor(cuda=cuda)}use smaller or fewer views"
        smaller = "shrink pictures once with pack --resize or at every read with decode.size"
        on_cpu = cuda and recipe.decode.device == "cpu"
        return f"{smaller}, or set decode.device: cuda" if on_cpu else smaller

    @property
    def codec(self) -> ImageCodec:
        """What packing, indexing and verifying know of images."""
        from .codec import ImageCodec

        return ImageCodec()

    def decider(self, recipe: Recipe, groups: Sequence[str]) -> ImageDecider:
        """Crops and colours, masks over patches, pretext tasks."""
        from .decider import ImageDecider

        # decoders, makers and sheets of somebody else may look at all of a canvas
        trims = type(self) is ImageModality and recipe.decode.device == "cpu"
        return ImageDecider.of_recipe(recipe, groups, trims=trims)

    def decoder(self, recipe: Recipe) -> CanvasDecode:
        """To uint8 canvases, no finer than the views can show."""
        from . import jpeg
        from .canvases import CanvasDecode

        jpeg.prepare()
        return CanvasDecode(recipe.decode.size)

    def maker(
        self,
        recipe: Recipe,
        decider: ImageDecider,
        *,
        device: torch.device,
        threads: ThreadPoolExecutor | None,
    ) -> ImageMaker:
        """By the executor of `run.executor`."""
        from .maker import ImageMaker

        return ImageMaker(
            decider,
            device=device,
            executor=recipe.run.executor,
            threads=threads,
            size=recipe.decode.size,
            where=recipe.where("run", "executor"),
        )

    def sheet(
        self, batch: Batch, spec: BatchSpec, decider: ImageDecider, stored: Column, *, rows: int = 8
    ) -> Image:
        """A band for each sample: the stored picture, views, masks and targets."""
        from .sheet import sheet

        return sheet(batch, spec, decider.policies, stored, rows=rows)

    def thumbnails(self, items: Sequence[tuple[bytes, Sequence[str]]]) -> Image:
        """Draw encoded images small, in rows, each with its lines of text."""
        from .sheet import thumbnails

        return thumbnails(items)

    def evaluation_views(self, recipe: Recipe) -> dict[str, ViewSection]:
        """One group of central crops, in which nothing is random."""
        from .decider import evaluation_views

        return evaluation_views(recipe)

    def share_decoder(
        self, recipe: Recipe, decode: CanvasDecode, *, device: torch.device
    ) -> GpuDecode | None:
        """JPEGs on CUDA, if `decode.device` is `cuda`."""
        if recipe.decode.device == "cpu":
            return None
        from .codec import GPU_JPEG
        from .gpu_decode import GpuDecode, TorchCodec

        codec = TorchCodec(device, recipe.where("decode", "device"))
        return GpuDecode(decode, codec, baseline=GPU_JPEG)


def faster_executor(*, cuda: bool) -> str:
    """What executors and types make views faster, to be followed by other advice; "": none."""
    if cuda:
        return "set run.executor: auto and views' dtype: bfloat16, or "
    return "" if find_spec("numba") else "install sslpipe[cpu] for the fast executor, or "


MODALITY = ImageModality()
