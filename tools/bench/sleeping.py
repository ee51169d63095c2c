"""A decoder that sleeps instead of decoding: as many cores as one likes, on any machine."""

import time

import numpy as np

from sslpipe.modalities import Raw
from sslpipe.modalities.image import ImageModality
from sslpipe.modalities.image.canvases import CanvasDecode

SECONDS = 1.3e-3  # of a JPEG of 500 x 375 on one core


class SleepingDecode(CanvasDecode):
    """Grey squares of 32 px, after a while."""

    def __call__(self, sample, instructions, memory=None):
        time.sleep(SECONDS)
        pixels = (memory or np).empty((32, 32, 3), np.uint8)
        pixels[:] = 128
        return Raw(pixels, (32, 32))


class Sleeping(ImageModality):
    """Images that take SECONDS each."""

    def decoder(self, recipe):
        return SleepingDecode(recipe.decode.size)
