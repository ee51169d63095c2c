"""A user's own modality, complete: series of numbers in `.npy` members, cut into windows.

It stands for text, audio and video, and knows nothing of images. Letters as in batch.py.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from sslpipe.batch import ViewSpec
from sslpipe.errors import SampleError
from sslpipe.masks import maskers
from sslpipe.modalities import Made, Modality, Raw, Tables
from sslpipe.recipe import Entry
from sslpipe.recipe.names import call, choose
from sslpipe.recipe.schema import ViewSection
from sslpipe.rng import Keys

from .toy_decode import SeriesDecode, load

NAME = "tests.modalities.toy:SeriesModality"


class SeriesCodec:
    """At rest: the extent is the number of steps."""

    modality = NAME
    extents = ("steps",)
    flag_bits = {}  # noqa: RUF012
    measure = "steps"
    bins = (64, 128, 256)
    extensions = frozenset({"npy"})
    refused_options = {}  # noqa: RUF012
    shrunk_extension = "npy"
    version = "toy 1"

    def measured(self, extents):
        return extents[:, 0].astype(np.int64)

    def extension(self, data):
        return "npy"

    def extent(self, data):
        return self.inspect(data)

    def inspect(self, data):
        return (load(data).shape[1],)

    def flags(self, data):
        return 0

    def shrink(self, data, *, side, quality):
        raise SampleError("series are not shrunk")

    def perceptual_hash(self, data):
        raise SampleError("series have no perceptual hash")


class Window:
    """The one op of a group: `length` steps, from a random place or the middle."""

    def __init__(self, *, length: int, channels: int = 2, random: bool = True) -> None:
        self.length, self.channels, self.random = length, channels, random

    def start(self, keys, stream, steps):
        room = np.maximum(steps - self.length + 1, 1)
        if not self.random:
            return np.broadcast_to(room // 2, (len(keys.views), len(steps)))
        return np.floor(keys.uniforms(stream, 1)[..., 0] * room)


class SeriesDecider:
    """Where windows begin, and masks over their steps."""

    targets = {}  # noqa: RUF012

    def __init__(self, recipe, groups):
        self.seed = recipe.stream.seed
        self.windows = {name: self.window(recipe.views[name].ops) for name in groups}
        self.views = {
            name: ViewSpec(
                name, recipe.views[name].count, "CT", (w.channels, w.length), columns=("start",)
            )
            for name, w in self.windows.items()
        }
        mine = {name: mask for name, mask in recipe.masks.items() if mask.view in groups}
        self.maskers = maskers(mine, self.views)
        self.masks = {name: masker.spec for name, masker in self.maskers.items()}
        self.summaries = {name: f"windows of {w.length}" for name, w in self.windows.items()}

    def window(self, ops):
        (entry,) = ops
        return call(choose(entry, {"Window": Window}, "op"), entry)

    def instructions(self, *, epochs, uids, extents):
        return np.zeros((len(uids), 0), dtype=np.int64)

    def decide(self, *, epochs, uids, place, extents):
        params = {}
        for name, window in self.windows.items():
            keys = Keys(self.seed, epochs, uids, np.arange(self.views[name].count))
            start_VB = window.start(keys, f"views/{name}/start", extents[:, 0])
            params[name] = start_VB[..., None].astype(np.float32)
        masks = {
            name: masker.draw(seed=self.seed, epochs=epochs, uids=uids, place=place)
            for name, masker in self.maskers.items()
        }
        return Tables(params, masks, {}, extents)


class SeriesMaker:
    """Cut the windows."""

    def __init__(self, decider):
        self.decider = decider
        longest = max(view.size("T") for view in decider.views.values())
        channels = next(iter(decider.views.values())).size("C")
        self.blank = Raw(np.zeros((channels, longest), np.float32), (longest,))

    def make(self, arrays, tables, targets):
        views = {}
        for name, window in self.decider.windows.items():
            starts_VB = tables.params[name][..., 0].astype(int)
            views[name] = torch.stack(
                [
                    torch.stack(
                        [a[:, s : s + window.length] for a, s in zip(arrays, row, strict=True)]
                    )
                    for row in starts_VB
                ]
            )
        return Made(views, {}, {}, {})


class SeriesModality(Modality):
    """What a recipe names."""

    codec = SeriesCodec()

    def decider(self, recipe, groups):
        return SeriesDecider(recipe, groups)

    def decoder(self, recipe):
        return SeriesDecode()

    def maker(self, recipe, decider, *, device, threads):
        return SeriesMaker(decider)

    def sheet(self, batch, spec, decider, stored, *, rows):
        assert [len(array) for array in stored.arrays] == [len(stored.arrays[0])] * len(batch.keys)
        views_VBCT = next(iter(batch.views.values()))
        return plot(views_VBCT[0, :rows].flatten(0, 1))

    def thumbnails(self, items):
        return plot(torch.cat([torch.from_numpy(load(data)[:, :32]) for data, _ in items]))

    def evaluation_views(self, recipe):
        settings = recipe.views["global"].ops[0].settings
        return {"global": ViewSection(ops=(Entry("Window", {**settings, "random": False}),))}


def plot(lines_NT):
    """A line of 40 px for each row."""
    picture = Image.new("RGB", (4 * lines_NT.shape[1], 40 * len(lines_NT)), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines_NT.tolist()):
        points = [(4 * x, 40 * row + 20 - 8 * y) for x, y in enumerate(line)]
        pen.line(points, fill="black")
    return picture


class SeriesEncoder(nn.Module):
    """Named in a recipe as tests.modalities.toy:SeriesEncoder: magnitudes of frequencies, mixed."""

    def __init__(self, view: ViewSpec, *, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(view.size("C") * (view.size("T") // 2 + 1), dim)

    def forward(self, views_BCT):
        return self.mix(torch.fft.rfft(views_BCT).abs().flatten(1))
