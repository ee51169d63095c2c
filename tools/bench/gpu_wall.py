"""What gpu_parts measures on: pictures, shards, a decoder of lists for its dry run."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from provenance import write_corpus
from torch import Tensor

from sslpipe.bench import measure
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import decode
from sslpipe.modalities.image.gpu_decode import OneByOne
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.shards import PackSettings, pack

SMALL = 8  # times as many small pictures as photos


def jpegs(count: int, distinct: int = 128) -> list[bytes]:
    """Like ImageNet's: 500 x 375, about 100 kB; some come again, since 128 take a second or two."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder), min(count, distinct))
        made = [path.read_bytes() for path in sorted(corpus.rglob("*.jpg"))]
    return [made[i % len(made)] for i in range(count)]


def small_jpegs(count: int, side: int) -> list[bytes]:
    """Random pictures of few pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [simplejpeg.encode_jpeg(image, quality=90, colorspace="RGB") for image in pixels]


def packed(folder: Path, count: int, side: int) -> Path:
    """Shards of photos, or of pictures of `side` pixels."""
    pictures, shards = folder / "pictures", folder / "shards"
    pictures.mkdir()
    made = small_jpegs(SMALL * count, side) if side else jpegs(count)
    for number, data in enumerate(made):
        (pictures / f"{number:05d}.jpg").write_bytes(data)
    pack(pictures, shards, PackSettings(codec=ImageCodec()))
    return shards


def staged(
    recipe: str, decoder: str, shards: Path, device: str, seconds: float, batch: int | None
) -> dict[str, float | str]:
    """Images/s of each stage, in `seconds` each. batch: None: the recipe's."""
    settings = [f"decode.device={decoder}"]
    settings += [f"stream.batch_size={batch}", "stream.allow_repeats=true"] if batch else []
    chosen = load_recipe(find_recipe(recipe), overrides=settings)
    stages = measure(chosen, shards=shards, device=device, seconds=seconds)
    assert stages.step is not None
    return {
        **stages.rates,
        "cpu_us": stages.cpu_us,
        "of_step": stages.end_to_end / stages.step,
        "bottleneck": stages.bottleneck,
        "verdict": stages.verdict,
    }


class OnCpu(OneByOne):
    """Decodes lists as the GPU's engine does, on the CPU."""

    def __call__(self, encoded: list[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(decode(bytes(e.numpy()))).permute(2, 0, 1) for e in encoded]

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()
