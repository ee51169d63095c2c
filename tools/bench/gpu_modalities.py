"""Sound, text and clips on a device, for gpu_parts: like on the CPU, how fast, and do they train.

Arrays are made here, as workers would have decoded them, so no library of sound or video is needed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gpu_augment import timed
from torch import Tensor

from sslpipe.batch import Batch, BatchSpec
from sslpipe.device.ragged import Ragged
from sslpipe.modalities import Made, Tables
from sslpipe.modalities.finding import find_modality
from sslpipe.recipe import Recipe, find_recipe, load_recipe, parse_recipe
from sslpipe.rng import Place
from sslpipe.train.optimizers import build_optimizer
from sslpipe.train.run import initial_method

Row = dict[str, Any]
CPU = torch.device("cpu")
FRAMES, SIDES, RATE = 24, (120, 160), 16  # of the videos
SOUND = """
modality: audio
stream: {batch_size: 4}
views:
  global:
    count: 2
    ops:
      - Crop: {seconds: 2, rate: 16000}
"""
MELS = {
    "Fbank": SOUND + "      - Mix: {ratio: 0.4}\n      - Fbank\n      - SpecAugment\n",
    "MelSpectrogram": SOUND + "      - MelSpectrogram\n      - MixLog\n      - RandomResizeCrop\n",
    "WhisperMel": SOUND + "      - WhisperMel\n      - SpecAugment\n",
}
CLIPS = """
modality: video
stream: {batch_size: 4}
views:
  global:
    count: 2
    ops:
      - DenseClip: {frames: 8, stride: 2}
      - RandomResizedCrop: {size: [64, 64]}
      - RandomHorizontalFlip
      - ColorJitter: {brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, p: 0.8}
      - RandomGrayscale
"""
# the largest difference that is right: of log energies in nepers, of 8-bit levels / 255, of ids.
# 1e-2 neper is that of float32 sums in another order where a band holds almost nothing
LIKE: Mapping[str, tuple[str, float]] = MappingProxyType({
    **{name: (text, 1e-2) for name, text in MELS.items()},
    "clips": (CLIPS, 1 / 255),
    **{name: (name, 0.0) for name in ("bert_bytes", "t5_bytes", "electra_bytes", "sop_bytes")},
})  # fmt: skip
TRAINED = ("wav2vec2_small", "audiomae_small", "videomae_small", "gpt_bytes", "bert_bytes")
STEPS = 6


@dataclass(frozen=True, slots=True)
class Given:
    """A recipe with samples as they were decoded."""

    recipe: Recipe
    size: int

    @property
    def groups(self) -> list[str]:
        return list(self.recipe.views)

    def decider(self) -> Any:
        return find_modality(self.recipe.modality).decider(self.recipe, self.groups)

    def decided(self, decider: Any) -> tuple[list[np.ndarray], Tables]:
        """The arrays of all samples, those of partners behind them, and the tables of a batch."""
        arrays, extents, segments, length = SAMPLES[self.recipe.modality](decider, self.size)
        uids = np.arange(self.size, dtype=np.int64)
        place = Place(0, uids, self.size, segments, length)
        return arrays, decider.decide(epochs=uids * 0, uids=uids, place=place, extents=extents)

    def on(self, device: torch.device) -> tuple[Any, Tables, Callable[[], Made]]:
        """Decider, tables, and what makes the views there, of arrays that are there."""
        decider = self.decider()
        arrays, tables = self.decided(decider)
        modality = find_modality(self.recipe.modality)
        maker = modality.maker(self.recipe, decider, device=device, threads=None)
        there = Ragged.of([torch.from_numpy(array).to(device) for array in arrays])
        targets = {n: torch.from_numpy(t).to(device) for n, t in tables.targets.items()}
        return decider, tables, lambda: maker.make(there, tables, targets)


def sounds(decider: Any, size: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """Rising tones in noise, int16: the crops of all views behind each other."""
    policies = list(decider.policies.values())
    count = size * (1 + decider.partners)
    steps, rng = sum(p.count * p.crop.size for p in policies), np.random.default_rng(0)
    tone = np.sin(np.cumsum(np.linspace(0.02, 0.9, steps)))
    waves = 9000 * tone + rng.normal(0, 900, (count, steps))
    crop = policies[0].crop
    extents = np.tile(np.array([2 * crop.size, crop.rate, 1], dtype=np.int64), (count, 1))
    return list(waves.astype(np.int16)), extents, np.empty((0, 4), dtype=np.int64), 0


def videos(decider: Any, size: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """All frames of smooth pictures that move."""
    y, x = np.mgrid[: SIDES[0], : SIDES[1]]
    frames = [
        [
            np.stack(
                [np.sin(0.05 * (x + 2 * t + 9 * b)), np.cos(0.07 * y + t), x / 160 + 0 * y], -1
            )
            for t in range(FRAMES)
        ]
        for b in range(size)
    ]
    arrays = [(127 * (1 + np.stack(film)) / 2 + 60).astype(np.uint8) for film in frames]
    extents = np.tile(np.array([FRAMES, *SIDES, 1000 * RATE], dtype=np.int64), (size, 1))
    return arrays, extents, np.empty((0, 4), dtype=np.int64), 0


def documents(decider: Any, size: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """Ids of bytes, a piece for each row, of three quarters of its length to all of it; with
    partners where a task wants them.
    """
    rng, length = np.random.default_rng(0), decider.tokens.length
    found = rng.integers(3 * decider.room // 4, decider.room + 1, size)
    many = [*found, *(found if decider.partners else ())]
    arrays = [rng.integers(4, 260, n).astype(np.int32) for n in many]
    zeros, rows = np.zeros(size, dtype=np.int64), np.arange(size, dtype=np.int64)
    segments = np.stack([rows, zeros, zeros, found], axis=1)
    return arrays, np.array(many, dtype=np.int64)[:, None], segments, length


SAMPLES = {"audio": sounds, "video": videos, "text": documents}


def recipe_of(text: str) -> Recipe:
    return parse_recipe(text) if "\n" in text else load_recipe(find_recipe(text))


def apart(got: Made, want: Made) -> float:
    """The largest difference of views, targets and lengths."""
    pairs = [
        (ours[name].cpu(), theirs[name])
        for ours, theirs in zip(got, want, strict=True)
        for name in theirs
    ]
    assert all(a.shape == b.shape for a, b in pairs)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs if b.numel())


def like(device: torch.device, size: int, repeats: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """A case for each chain: how far from the CPU, and us per sample."""
    for name, (text, most) in LIKE.items():

        def measure(text: str = text, most: float = most) -> Row:
            given = Given(recipe_of(text), size)
            make, reference = given.on(device)[2], given.on(CPU)[2]
            off = apart(make(), reference())
            assert off <= most, f"{off} apart from the CPU, at most {most} are right"
            took = timed(make, device=device, repeats=repeats)
            return {
                **took,
                "apart": off,
                "most": most,
                "us_per_sample": 1e3 * took["done_ms"] / size,
            }

        yield f"{name} as on the CPU", measure


def training(device: torch.device, size: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """A case for each recipe: a few steps in bf16 on one batch, by which its loss falls."""
    for name in TRAINED:

        def measure(name: str = name) -> Row:
            recipe = load_recipe(find_recipe(name))
            decider, tables, make = Given(recipe, size).on(device)
            spec = BatchSpec(size, size, decider.views, decider.masks, decider.targets, size)
            method = initial_method(recipe, spec).to(device)
            assert recipe.train is not None
            optimizer = build_optimizer(recipe.train.optimizer, method, scale=1.0)
            batch = batch_of(make(), tables, size, device)
            losses, start = [], time.perf_counter()
            for step in range(STEPS):
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16):
                    loss = method(batch).loss
                loss.backward()
                optimizer.step()
                method.after_step((step + 1) / STEPS)
                losses.append(loss.item())
            assert np.isfinite(losses).all(), losses
            assert losses[-1] < losses[0], losses
            seconds = time.perf_counter() - start
            return {"done_ms": 1e3 * seconds / STEPS, "first": losses[0], "last": losses[-1]}

        yield f"{name} trains in bf16", measure


def batch_of(made: Made, tables: Tables, size: int, device: torch.device) -> Batch:
    """As a pipeline puts it together."""

    def there(tables: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(table).to(device) for name, table in tables.items()}

    ids = torch.arange(size)
    return Batch(
        **made._asdict(), masks=there(tables.masks), hidden=tables.hidden,
        labels=torch.full((size,), -1, device=device), params={}, uids=ids,
        keys=tuple(map(str, range(size))), valid=ids >= 0, epoch=0, step=0,
    )  # fmt: skip
