"""What workers decode of the modality of `toy.py`: they import this file, and no torch with it."""

import io
import threading

import numpy as np

from sslpipe.errors import SampleError
from sslpipe.modalities import Raw

# np.load parses a header by ast.literal_eval, which Python 3.11 does not survive in threads
# ("AST constructor recursion depth mismatch", python/cpython#106905)
PARSING = threading.Lock()


def load(data):
    """(C, T) float32 of the bytes of an .npy file."""
    try:
        with PARSING:
            series = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise SampleError(f"does not decode: {error}") from error
    if series.ndim != 2:
        raise SampleError(f"has {series.ndim} axes, not 2: channels and steps")
    return series.astype(np.float32)


class SeriesDecode:
    """In workers."""

    def extent(self, sample):
        return (load(sample.data).shape[1],)

    def room(self, *, extents, sizes, instructions):
        return np.zeros_like(sizes)  # how many channels there are is not indexed

    def __call__(self, sample, instructions, memory=None):
        series = load(sample.data)
        return Raw(series, series.shape[1:])
