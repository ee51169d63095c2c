"""Two SimCLR views of a batch of decoded images, by us and by others: the cases of augment.py.

The policy is that of simclr.yaml: bicubic crop of 224 px, flip, jitter, grey, blur, no
Normalize; output float32 in [0, 1]. What a peer does otherwise stands at its function.
A builder gets the images and a device and returns the function that is timed; it raises Skip where
the peer cannot run.
"""

import io
import itertools
import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import kornia.augmentation as K
import numpy as np
import torch
import torchvision.transforms as v1
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from sslpipe.augment import Augment
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.modalities.image.executors import Name
from sslpipe.modalities.image.maker import ImageMaker
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.rng import Place

SIZE, SCALE, JITTER, SIGMA = 224, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), (0.1, 2.0)
# Our executors by name, and the devices that they run on.
EXECUTORS: Mapping[Name, tuple[str, ...]] = MappingProxyType({
    "kornia": ("cpu", "cuda"),
    "cpu": ("cpu",),
    "compiled": ("cuda",),
    "triton": ("cuda",),
})  # fmt: skip


class Skip(Exception):
    """A case that cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Images:
    """The same images in the forms that peers start from, made before the clock starts."""

    canvases: Sequence[Tensor]  # (H, W, 3) uint8, on the device
    batch_BCHW: Tensor  # uint8, on the device
    pictures: Sequence[Image.Image]


Work = Callable[[], Tensor]  # one batch: (V, B, 3, h, w) or (V * B, 3, h, w)
Builder = Callable[[Images, torch.device], Work]


def images_of(jpegs: Sequence[bytes], device: torch.device) -> Images:
    """Decode a batch of one size."""
    pictures = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    canvases = [torch.from_numpy(np.array(picture)).to(device) for picture in pictures]
    batch = torch.stack(canvases).permute(0, 3, 1, 2).contiguous()
    return Images(canvases, batch, pictures)


def simclr_decider() -> ImageDecider:
    """What is drawn for the recipe's view group."""
    return ImageDecider(load_recipe(find_recipe("simclr")).views, {}, {}, seed=0)


def simclr_maker(name: Name, device: torch.device) -> ImageMaker:
    """The recipe's view group, made by one of our executors on all cores."""
    return ImageMaker(
        simclr_decider(),
        device=device,
        executor=name,
        threads=ThreadPoolExecutor(len(os.sched_getaffinity(0))),
    )


def ours(name: Name) -> Builder:
    """Draw the table and execute it, as the pipeline does."""

    def build(images: Images, device: torch.device) -> Work:
        if device.type not in EXECUTORS[name]:
            raise Skip(f"runs on {', '.join(EXECUTORS[name])} only")
        maker, count = simclr_maker(name, device), len(images.canvases)
        uids = np.arange(count, dtype=np.int64) * 2**40
        sizes_B2 = np.array([canvas.shape[:2] for canvas in images.canvases], dtype=np.int64)
        place = Place(0, np.arange(count, dtype=np.int64), count)
        passes = itertools.count()

        def work() -> Tensor:
            epochs = np.full(count, next(passes), dtype=np.int64)
            tables = maker.decider.decide(epochs=epochs, uids=uids, place=place, extents=sizes_B2)
            return maker.make(images.canvases, tables, {}).views["global"]

        return work

    return build


def kornia_modules(order: tuple[int, ...] | None = None) -> list[torch.nn.Module]:
    """Kornia's own classes and samplers: no antialias, one jitter order per batch, or `order`."""
    return [
        K.RandomResizedCrop((SIZE, SIZE), scale=SCALE, resample="bicubic"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=0.8, order=order),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), SIGMA, p=0.5),
    ]


def kornia_eager(images: Images, device: torch.device) -> Work:
    augment = K.AugmentationSequential(*kornia_modules(), data_keys=["input"])
    return twice(augment, images)


def kornia_sequential(images: Images, device: torch.device) -> Work:
    """Kornia's other container."""
    return twice(K.ImageSequential(*kornia_modules()), images)


def module(images: Images, device: torch.device) -> Work:
    """`sslpipe.augment.Augment` in the place of a container: uint8 in, both views out."""
    augment = Augment("simclr", overrides=["run.threads=1"])
    return lambda: augment(images.batch_BCHW)["global"]


def kornia_compiled(images: Images, device: torch.device) -> Work:
    """In one graph, which only a fixed jitter order allows; compiling (a minute) is not timed."""
    modules = torch.nn.Sequential(*kornia_modules(order=(0, 1, 2, 3)))
    augment = torch.compile(modules, fullgraph=True)
    return twice(augment, images)


def twice(augment: Callable[[Tensor], Tensor], images: Images) -> Work:
    """Two calls on the batch as floats."""

    def work() -> Tensor:
        batch = images.batch_BCHW.float() / 255
        return torch.stack([augment(batch), augment(batch)])

    return work


def torchvision_ops() -> list[torch.nn.Module]:
    return [
        v2.RandomResizedCrop(SIZE, SCALE, interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(23, SIGMA)], p=0.5),
        v2.ToDtype(torch.float32, scale=True),
    ]


def torchvision_loop(images: Images, device: torch.device) -> Work:
    """v2 on each uint8 image: 8 bits after every op."""
    augment = v2.Compose(torchvision_ops())
    singles = list(images.batch_BCHW)
    return lambda: torch.stack([augment(image) for _ in range(2) for image in singles])


def torchvision_batched(images: Images, device: torch.device) -> Work:
    """v2 on the batch tensor. Not valid for SSL: one crop, one jitter for the whole batch."""
    augment = v2.Compose(torchvision_ops())
    return lambda: torch.stack([augment(images.batch_BCHW) for _ in range(2)])


def pil_blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))


def pil_transform() -> Callable[[Image.Image], Tensor]:
    """v1 transforms on PIL images with PIL's blur, as lightly and solo-learn have them."""
    return v1.Compose([
        v1.RandomResizedCrop(SIZE, SCALE, interpolation=v1.InterpolationMode.BICUBIC),
        v1.RandomHorizontalFlip(),
        v1.RandomApply([v1.ColorJitter(*JITTER)], p=0.8),
        v1.RandomGrayscale(p=0.2),
        v1.RandomApply([pil_blur], p=0.5),
        v1.ToTensor(),
    ])  # fmt: skip


def pil_loop(images: Images, device: torch.device) -> Work:
    augment = pil_transform()
    pictures = images.pictures
    return lambda: torch.stack([augment(picture) for _ in range(2) for picture in pictures])


def dali(images: Images, device: torch.device) -> Work:
    """Conditionals per sample. No grey op: saturation 0. Contrast is about 0.5, the order fixed."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        raise Skip("nvidia-dali is not installed") from None

    def draw(low: float, high: float) -> object:
        return fn.random.uniform(range=[low, high])

    def view(x: object) -> object:
        crop = {"random_area": SCALE, "interp_type": types.INTERP_CUBIC, "antialias": True}
        x = fn.random_resized_crop(x, size=(SIZE, SIZE), **crop)
        if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
            factors = {n: draw(0.2, 1.8) for n in ("brightness", "contrast", "saturation")}
            x = fn.color_twist(x, hue=draw(-72, 72), **factors)
        if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
            x = fn.color_twist(x, saturation=0.0)
        if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
            x = fn.gaussian_blur(x, sigma=draw(*SIGMA), window_size=23)
        mirror, unit = fn.random.coin_flip(), {"mean": [0.0] * 3, "std": [255.0] * 3}
        return fn.crop_mirror_normalize(x, mirror=mirror, output_layout="CHW", **unit)

    arrays = [canvas.cpu().numpy() for canvas in images.canvases]

    @pipeline_def(enable_conditionals=True, exec_async=False, exec_pipelined=False)
    def two_views() -> tuple[object, object]:
        x = fn.external_source(source=lambda: arrays, layout="HWC", dtype=types.UINT8)
        return view(x), view(x)

    threads = torch.get_num_threads()
    pipe = two_views(batch_size=len(arrays), num_threads=threads, device_id=None, seed=0)
    pipe.build()
    return lambda: torch.from_numpy(np.stack([v.as_array() for v in pipe.run()]))


def ffcv(images: Images, device: torch.device) -> Work:
    raise Skip("ffcv has no hue, grey or blur, so it cannot do this policy")


BASELINE = "kornia AugmentationSequential"
CASES: Mapping[str, Builder] = MappingProxyType({
    **{f"sslpipe {name}": ours(name) for name in EXECUTORS},
    BASELINE: kornia_eager,
    "kornia compiled, fixed jitter order": kornia_compiled,
    "torchvision v2, per image": torchvision_loop,
    "torchvision v2, batched (not valid: one draw per batch)": torchvision_batched,
    "PIL": pil_loop,
    "DALI": dali,
    "FFCV": ffcv,
})  # fmt: skip
# a module of ours in the place of Kornia's containers, and torchvision's way: for `--cases module`
MODULES: Mapping[str, Builder] = MappingProxyType({
    "sslpipe Augment": module,
    BASELINE: kornia_eager,
    "kornia ImageSequential": kornia_sequential,
    "torchvision v2, per image": torchvision_loop,
})  # fmt: skip
ON_CPU_ONLY = ("torchvision v2, per image", "PIL", "DALI", "FFCV")
