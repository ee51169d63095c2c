"""JPEG decoding on a CUDA device, in lists; everything else stays with the CPU.

A list fails as a whole on one bad image, so it is halved until the offenders stand alone. What the
device cannot decode, or decodes to one flat colour though its bytes say otherwise, is left to the
CPU, which also has the last word on what is bad. Coefficients that are damaged and valid code it
does not tell: checksums and `sslpipe verify` do. Its pixels differ from the CPU's (the inverse DCT,
how colour is enlarged), so which of the two decodes belongs to the recipe, not to `run`.

What goes to the CPU at once is said in `canvases.JpegBytes`.

The logic is tested on the CPU with engines that fail on purpose.
"""

import importlib.metadata
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ExtraError, RecipeError
from .. import Raw
from .canvases import CanvasDecode, JpegBytes
from .decode import shrunk

log = logging.getLogger(__name__)

OLDEST = (0, 17)  # of torchcodec; before it, decoding races with other streams' use of the memory
BYTES_OF_HEADERS = 2048
FLAT_BYTES_PER_BLOCK = 2  # a block of 8 x 8 pixels of one colour takes about one byte
BROKEN = 8  # images of which none decodes: it is the engine that is at fault


class Engine(Protocol):
    """What decodes lists of JPEGs on a device."""

    def __call__(self, encoded: list[Tensor]) -> list[Tensor]:
        """(n,) uint8 on the CPU -> (3, H, W) uint8 on the device; RuntimeError, ValueError."""
        ...

    def stream(self) -> AbstractContextManager[object]:
        """Where it decodes; what was queued within is done when it is left."""
        ...

    def extremes(self, images: list[Tensor]) -> list[tuple[int, int]]:
        """The least and the highest level of each image."""
        ...

    def canvases(self, images: list[Tensor], targets: list[tuple[int, int]]) -> Sequence[Tensor]:
        """(H, W, 3) uint8 of these sizes, made as `OneByOne` makes them."""
        ...


class OneByOne:
    """The part of an engine after decoding, image by image: the reference, on any device."""

    def extremes(self, images: list[Tensor]) -> list[tuple[int, int]]:
        """The least and the highest level of each image."""
        return [(int(image.min()), int(image.max())) for image in images]

    def canvases(self, images: list[Tensor], targets: list[tuple[int, int]]) -> Sequence[Tensor]:
        """(H, W, 3), shrunk as `decode` does, in float32 rounded to levels."""
        return [shrink(image, target) for image, target in zip(images, targets, strict=True)]


class GpuDecode:
    """In two stages: `first` in workers, `finish` for a whole share in one thread.

    It counts what the device decoded, and what came back to the CPU: `done`, `returned`.
    """

    def __init__(self, cpu: CanvasDecode, engine: Engine, *, baseline: int) -> None:
        """`baseline`: the flag of the index that says baseline JPEG of three components."""
        self.first, self._cpu, self._engine = JpegBytes(cpu, baseline), cpu, engine
        self.done = self.returned = 0

    def finish(self, arrays: Sequence[Tensor]) -> list[Raw | None]:
        """Decode what waits, (n,) uint8; None: the CPU must do it. Canvases stay as they are."""
        waiting = [array for array in arrays if array.ndim == 1]
        with self._engine.stream():
            images = iter(self.decode(waiting))
        return [
            next(images) if array.ndim == 1 else Raw(array, tuple(array.shape[:2]))
            for array in arrays
        ]

    def decode(self, jpegs: Sequence[Tensor]) -> list[Raw | None]:
        """Canvases of JPEGs, in their order."""
        images = halve(self._engine, list(jpegs))
        keep = sane(self._engine, images, [len(data) for data in jpegs])
        kept = [i for i, good in zip(images, keep, strict=True) if good and i is not None]
        targets = [shrunk(i.shape[1], i.shape[2], self._cpu.size) for i in kept]
        made = zip(self._engine.canvases(kept, targets) if kept else [], targets, strict=True)
        canvases = [Raw(*next(made)) if good else None for good in keep]
        missed = canvases.count(None)
        self.done, self.returned = self.done + len(jpegs) - missed, self.returned + missed
        if missed:
            log.warning("the device left %d of %d images to the CPU", missed, len(jpegs))
        return canvases


def halve(engine: Engine, encoded: list[Tensor]) -> list[Tensor | None]:
    """Decode a list that may hold bad images: None stands for each of them.

    Raises:
        RuntimeError, ValueError: the engine's own, if none of several images decodes.
    """
    failures: list[Exception] = []

    def attempt(part: list[Tensor]) -> list[Tensor | None]:
        try:
            return list(engine(part)) if part else []
        except (RuntimeError, ValueError) as error:
            failures.append(error)
        if len(part) == 1:
            return [None]
        middle = len(part) // 2
        return attempt(part[:middle]) + attempt(part[middle:])

    images = attempt(encoded)
    if len(encoded) >= BROKEN and all(image is None for image in images):
        raise failures[-1]
    return images


def sane(engine: Engine, images: Sequence[Tensor | None], sizes: Sequence[int]) -> list[bool]:
    """Whether each image is one, and is not of one colour where `sizes` in bytes say it is not.

    Reads the device once: its result is awaited anyway.
    """
    found = [image for image in images if image is not None]
    flat = iter([low == high for low, high in engine.extremes(found)] if found else [])
    return [
        image is not None and not (next(flat) and size > most_bytes_if_flat(image))
        for image, size in zip(images, sizes, strict=True)
    ]


def most_bytes_if_flat(image: Tensor) -> float:
    """The length of a JPEG of one colour and this size, at most."""
    return BYTES_OF_HEADERS + FLAT_BYTES_PER_BLOCK * image.shape[-2] * image.shape[-1] / 64


def shrink(image_CHW: Tensor, target: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 of this size, bicubic and antialiased, in float32 rounded to levels."""
    if target != tuple(image_CHW.shape[1:]):
        small_BCHW = F.interpolate(image_CHW[None].float(), target, mode="bicubic", antialias=True)
        image_CHW = small_BCHW[0].round().clamp(0, 255).to(torch.uint8)
    return image_CHW.permute(1, 2, 0).contiguous()


class TorchCodec:
    """The engine: nvJPEG by TorchCodec, on a stream of its own; call it from one thread.

    where: `decode.device` is, for messages.

    Raises:
        RecipeError: the device is no CUDA device.
        ExtraError: TorchCodec is missing, or older than OLDEST.
    """

    def __init__(self, device: torch.device, where: str = "recipe") -> None:
        check_device(device, where)
        check_version(where)
        from torchcodec.decoders import decode_jpeg

        from . import gpu_shrink  # Triton is there wherever CUDA is

        self._decode, self._device = decode_jpeg, device
        self.extremes, self.canvases = gpu_shrink.extremes, gpu_shrink.canvases
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, encoded: list[Tensor]) -> list[Tensor]:
        """Decode when the stream has come to rest.

        The decoder's hardware does not follow streams, so it is the host that must wait.
        """
        self._stream.synchronize()
        images: list[Tensor] = self._decode(encoded, mode="RGB", device=self._device)
        return images

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The engine's own stream, waited for when it is left."""
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()


def check_device(device: torch.device, where: str) -> None:
    """Raise RecipeError unless it is a CUDA device."""
    if device.type != "cuda":
        raise RecipeError(
            f"{where}: decode.device = 'cuda': views are made on {device}; write decode: "
            "{device: cpu}"
        )


def check_version(where: str = "recipe") -> None:
    """Raise ExtraError unless a TorchCodec is installed that is safe on CUDA streams."""
    if importlib.util.find_spec("torchcodec") is None:
        raise ExtraError(
            f"{where}: decode.device = 'cuda': torchcodec is missing; pip install 'sslpipe[gpu]'"
        )
    version = importlib.metadata.version("torchcodec")
    if tuple(map(int, version.split("+")[0].split(".")[:2])) < OLDEST:
        raise ExtraError(
            f"{where}: decode.device = 'cuda': torchcodec {version} may corrupt memory that other "
            f"streams use; pip install 'torchcodec>={OLDEST[0]}.{OLDEST[1]}'"
        )
